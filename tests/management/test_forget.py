from __future__ import annotations

import json

import pytest
from django.core.management import CommandError

from eventlogs import LogManager
from eventlogs.models import Event, SubjectKey
from eventlogs.operations import forgetting
from eventlogs.privacy import memory
from tests.guests import SETTINGS, Guest, Joined, Paid

pytestmark = pytest.mark.django_db
ADA, NAME = "member:1", "Countess Lovelace"


@pytest.fixture(autouse=True)
def _settings(settings):
    settings.EVENTLOGS = {**SETTINGS, "CACHE": None}
    memory.clear()
    yield
    memory.clear()


@pytest.fixture
def log_id():
    return LogManager(Guest).create(Joined(ADA, NAME), Paid(1)).log_id


def test_a_person_is_forgotten_and_the_receipt_is_named(run, log_id):
    told = run("forget", ADA, "--by", "grace")

    assert "1 key destroyed, of data in 1 log." in told
    assert "Receipt: eventlogs_forgetting_" in told
    assert LogManager(Guest).reduce(log_id).aggregate.name == "erased"
    assert Event.objects.get(type="eventlogs_forgetting.forgotten").data["by"] == "grace"


def test_a_dry_run_names_the_logs_and_changes_nothing(run, run_json, log_id):
    assert str(log_id) in run("forget", ADA, "--dry-run")
    told = run_json("forget", ADA, "--dry-run")

    assert told["dry_run"] is True
    assert told["named_logs"] == [{"log": str(log_id), "database": "default"}]
    assert LogManager(Guest).reduce(log_id).aggregate.name == NAME
    assert SubjectKey.objects.get(subject=ADA).wrapped is not None


def test_one_database_can_be_named(run, log_id, monkeypatch):
    real, asked = forgetting.databases, []

    def databases(using):
        asked.append(using)
        return real(using)

    monkeypatch.setattr(forgetting, "databases", databases)

    run("forget", ADA, "--dry-run")
    assert set(asked) == {None}
    asked.clear()
    run("forget", ADA, "--dry-run", "--database", "default")
    run("forget", ADA, "--database", "default")
    run("forget", "--again", "--database", "default")
    assert set(asked) == {"default"}


def test_the_result_is_also_json(run_json, log_id):
    told = run_json("forget", ADA)

    assert (told["logs"], told["failed"], told["new_receipts"]) == (1, 0, 1)
    assert told["keys"] == [str(SubjectKey.objects.get(subject=ADA).pk)]


def test_all_are_forgotten_again(run_json, log_id):
    run_json("forget", ADA)

    told = run_json("forget", "--again")

    assert (told["logs"], told["new_receipts"]) == (1, 0)


def test_an_unknown_person_is_a_mistake(run, log_id):
    with pytest.raises(CommandError, match="has no key") as caught:
        run("forget", "member:3")

    assert caught.value.returncode == 2


@pytest.mark.parametrize("arguments", [(), (ADA, "--again")])
def test_a_person_or_all_again_must_be_named(run, arguments):
    with pytest.raises(CommandError, match="Name one SUBJECT"):
        run("forget", *arguments)


def test_open_appends_are_named_with_the_next_action(run, log_id, monkeypatch):
    monkeypatch.setattr(forgetting, "_wait_for_open_appends", lambda using: 1)

    with pytest.raises(CommandError, match="run this command again when it has ended") as caught:
        run("forget", ADA)

    assert caught.value.returncode == 1


def test_a_persons_data_are_written_as_json_lines(run, log_id, tmp_path):
    [line] = run("export-subject", ADA).splitlines()
    told = json.loads(line)

    assert (told["log"], told["index"], told["type"]) == (str(log_id), 0, "visitor.joined")
    assert told["data"] == {"$.name": NAME}

    file = tmp_path / "ada.jsonl"
    run("export-subject", ADA, "--output", str(file))
    assert json.loads(file.read_text()) == told
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CommandError, match="File exists"):
        run("export-subject", ADA, "--output", str(file))


def test_data_of_a_forgotten_or_unknown_person_cannot_be_exported(run, log_id):
    with pytest.raises(CommandError, match="has no key"):
        run("export-subject", "member:3")
    run("forget", ADA)
    with pytest.raises(CommandError, match="forgotten"):
        run("export-subject", ADA)
