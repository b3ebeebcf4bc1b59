"""The commands that read one log, on a log that is archived."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from eventlogs import LogManager
from eventlogs.models import ArchiveFile
from eventlogs.operations import archiving
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.operations.archiving.conftest import use

pytestmark = pytest.mark.django_db(transaction=True)

accounts = LogManager(Account)


@pytest.fixture
def directory(tmp_path, settings):
    use(settings, tmp_path / "archives", CHAIN=True)
    return tmp_path / "archives"


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("eventlogs", *arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


def answers(log_id, path) -> list[object]:
    return [
        json.loads(run("show", log_id, "--json", "--diff")),
        json.loads(run("show", log_id, "--json", "--version", "2")),
        json.loads(run("reduce", log_id)),
        json.loads(run("reduce", log_id, "--version", "1")),
        exported(log_id, path),
    ]


def exported(log_id, path) -> list[str]:
    run("export", str(path), "--log", log_id)
    return path.read_text().splitlines()[1:-1]


def test_show_reduce_and_export_read_the_archive(directory, tmp_path):
    state = accounts.create(Opened("Ada"), Deposited(50), idempotency_key="open-1")
    log_id = str(accounts.append(state, Withdrawn(50)).log_id)
    before = answers(log_id, tmp_path / "before.jsonl")

    archiving.archive(by="grace")

    assert answers(log_id, tmp_path / "after.jsonl") == before


def test_an_export_of_several_logs_says_that_one_is_archived(directory, tmp_path):
    log_id = str(accounts.create(Opened("Ada")).log_id)
    still_open = str(accounts.create(Opened("Mary"), Deposited(1)).log_id)
    archiving.archive(by="grace")
    said = (
        f"{log_id} is archived. Export it alone, as JSON lines, without --after and --resume; or "
        f"bring it back first (eventlogs archive --restore)."
    )

    for more in (["--log", still_open], ["--format", "xes"], ["--after", "1"]):
        with pytest.raises(CommandError) as caught:
            run("export", str(tmp_path / "some.jsonl"), "--log", log_id, *more)
        assert str(caught.value) == said
    assert not (tmp_path / "some.jsonl").exists()


def test_tail_says_that_a_log_is_archived(directory):
    log_id = str(accounts.create(Opened("Ada")).log_id)
    archiving.archive(by="grace")
    err = StringIO()

    call_command("eventlogs", "tail", "--log", log_id, stdout=StringIO(), stderr=err)

    said = f"{log_id} is archived, so its events are not in the feed. `show` has them."
    assert said in " ".join(err.getvalue().split())


def test_a_missing_archive_is_an_error_and_no_file_is_written(directory, tmp_path):
    log_id = str(accounts.create(Opened("Ada")).log_id)
    archiving.archive(by="grace")
    (directory / ArchiveFile.objects.get().name).unlink()

    for arguments in (["show", log_id], ["export", str(tmp_path / "x.jsonl"), "--log", log_id]):
        with pytest.raises(CommandError, match="the file is not in the storage"):
            run(*arguments)
    assert not (tmp_path / "x.jsonl").exists()
