"""``manage.py makeevents``."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command

from eventlogs.events.registry import registry
from eventlogs.operations.event_locks import locks
from example_project.payments import events

COMMITTED = {
    label: Path(apps.get_app_config(label).path) / locks.FILE for label in ("payments", "fines")
}


@pytest.fixture(autouse=True)
def lock(tmp_path, monkeypatch):
    """The files of the example's apps, in a folder of the test."""
    monkeypatch.setattr(
        "eventlogs.management.commands.makeevents.path_of",
        lambda app: tmp_path / f"{app.label}.{locks.FILE}",
    )
    return tmp_path / f"payments.{locks.FILE}"


def command(*arguments: str) -> str:
    out = StringIO()
    call_command("makeevents", *arguments, stdout=out, stderr=out, no_color=True)
    return out.getvalue()


def fails(*arguments: str, message: str, code: int = 1) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        command(*arguments)
    assert caught.value.returncode == code


def test_the_example_projects_own_files_are_up_to_date(monkeypatch):
    monkeypatch.undo()

    assert "No event has changed." in command("--check")
    assert all(path.exists() for path in COMMITTED.values())


def test_files_are_written_and_then_checked(lock):
    fails("--check", message="out of date")
    assert not lock.exists()

    assert "payments: payment.captured: compatible" in command()
    assert "payment.captured" in json.loads(lock.read_text())["events"]
    assert command("--check") == "No event has changed.\n"


def test_a_change_that_breaks_is_told_and_the_file_stays(lock):
    command("payments")
    text = lock.read_text().replace('"payment.captured"', '"payment.taken"')
    lock.write_text(text)

    fails("--check", "payments", message="1 type would not be decoded")
    fails("payments", message="1 type")
    written = json.loads(lock.read_text())
    assert {"payment.taken", "payment.captured"} <= written["events"].keys()
    found = StringIO()
    with pytest.raises(CommandError):
        call_command("makeevents", "--json", "payments", stdout=found)
    assert [each["verdict"] for each in json.loads(found.getvalue())] == ["breaks"]


def test_write_drafts_an_upcaster(lock, monkeypatch, tmp_path):
    source = tmp_path / "events.py"
    source.write_text(Path(events.__file__).read_text())
    monkeypatch.setattr("inspect.getfile", lambda cls: str(source))
    command("payments")
    lock.write_text(lock.read_text().replace('"amount"', '"sum"'))
    captured = registry.by_name("payment.captured")
    assert captured is not None

    said = command("--write", "payments")

    assert "drafted in" in said
    assert f'@upcaster("payment.captured", from_version={captured.version})' in source.read_text()
    assert 'data["amount"] = data.pop("sum")' in source.read_text()


def test_mistakes_are_told(lock):
    fails("nothing", message="nothing", code=2)
    lock.write_text("x")
    fails("payments", message="makeevents", code=2)
