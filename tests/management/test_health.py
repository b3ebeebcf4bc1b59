"""``eventlogs health``: the answer for a person on call, and for a program."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections

from eventlogs import LogId
from eventlogs.models import ParkedEvent
from example_project.payments.events import Payment, Requested
from tests.management.test_grants import ROLE, connected_as, execute

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def hold(count: int, error: str = "ZeroDivisionError") -> None:
    ParkedEvent.objects.bulk_create(
        ParkedEvent(
            projection="payment-summary",
            log_id=LogId.new("payment"),
            index=1,
            position=1,
            type="payment.captured",
            attempts=5,
            error=error,
            handler="captured",
            first_failed_at=NOON,
            failed_at=NOON,
        )
        for _ in range(count)
    )


def answer(*arguments: Any) -> tuple[int, str, str]:
    """Return the exit code, the output, and the message at the end."""
    out = io.StringIO()
    try:
        call_command("eventlogs", "health", *map(str, arguments), stdout=out)
    except CommandError as error:
        return error.returncode, out.getvalue(), str(error)
    return 0, out.getvalue(), ""


def test_a_healthy_project_exits_with_0(db):
    code, shown, said = answer()

    assert (code, said) == (0, "")
    assert shown.splitlines()[0] == "All is well."


def test_a_finding_is_shown_with_its_cause_its_start_and_the_action(db):
    hold(1_804)

    code, shown, said = answer()

    assert code == 1
    lines = shown.splitlines()
    assert lines[0] == "Somebody must act: 1 finding."
    at = lines.index(next(line for line in lines if line.startswith("parked  payment-summary")))
    assert "since 2026-11-23 12:00:00 UTC" in lines[at]
    assert "1,804 parked: ZeroDivisionError in captured()" in lines[at + 1]
    assert "Developer: fix captured() and deploy the fix." in lines[at + 2]
    assert lines[at + 3] == "    manage.py eventlogs parked payment-summary --retry-all"
    assert said == "Somebody must act: parked of payment-summary."


def test_json_output_is_one_document_with_the_same_exit_code(db):
    hold(2)

    code, shown, _ = answer("--json")

    found = json.loads(shown)
    assert (code, found["healthy"]) == (1, False)
    assert found["findings"][0]["figures"]["logs"] == 2
    assert found["projections"]["payment-summary"]["parked"] == 2
    code, shown, _ = answer("--json", "--max-parked", 2)
    assert (code, json.loads(shown)["healthy"]) == (0, True)


@pytest.mark.feed
def test_each_limit_is_an_option(db):
    Payment.logs.create(Requested(amount=1))

    assert answer()[0] == 0
    assert answer("--max-lag", 0)[0] == 1
    for option in ("--max-lag", "--max-held", "--max-parked", "--max-deploy"):
        assert answer(option, "60.5")[0] == 0
        with pytest.raises(CommandError, match="not a number from 0"):
            call_command("eventlogs", "health", option, "-1")


def test_control_characters_in_a_name_are_escaped(db):
    hold(1, error="Evil\x1b[2J")

    _, shown, said = answer()

    assert "\x1b" not in shown + said


@pytest.fixture
def nowhere(django_db_setup: None, django_db_blocker: Any, tmp_path: Path) -> Iterator[str]:
    """The alias of a database that does not answer."""
    alias, settings = "nowhere", connection.settings_dict
    away = {"HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    if connection.vendor == "sqlite":
        away = {"NAME": str(tmp_path / "no folder" / "file")}
    connections.databases[alias] = {**settings, **away}
    with django_db_blocker.unblock():
        yield alias
        del connections[alias]
        del connections.databases[alias]


def test_an_unreachable_database_is_a_finding_and_no_command_error(nowhere):
    code, shown, said = answer("--database", nowhere)

    assert code == 1
    assert "The database 'nowhere' does not answer" in shown
    assert said == "Somebody must act: database of nowhere."
    assert json.loads(answer("--database", nowhere, "--json")[1])["healthy"] is False


@pytest.fixture
def role(transactional_db: None) -> Iterator[str]:
    """Connect this process as a role without tables and without grants."""
    from eventlogs.management.subcommands import grants

    quoted = grants.quoted(ROLE)
    execute(f"CREATE ROLE {quoted} LOGIN PASSWORD 'secret'")
    try:
        yield quoted
    finally:
        execute(f"DROP OWNED BY {quoted}")
        execute(f"DROP ROLE {quoted}")


@pytest.mark.postgresql
def test_a_role_learns_its_missing_grants_and_is_healthy_with_them(role):
    out = io.StringIO()
    call_command("eventlogs", "grants", ROLE, stdout=out)
    with connected_as(ROLE, "secret"):
        code, shown, _ = answer("--json")
    findings = [each for each in json.loads(shown)["findings"] if each["level"] == "act"]
    assert code == 1
    assert {each["code"] for each in findings} == {"permission"}
    assert {each["command"] for each in findings} == {
        f"manage.py eventlogs grants {shlex.quote(ROLE)}"
    }

    execute(out.getvalue())

    with connected_as(ROLE, "secret"):
        assert answer()[0] == 0
