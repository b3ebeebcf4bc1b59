from __future__ import annotations

from eventlogs.operations.commands import command


def test_a_command_names_the_database_unless_logs_are_written_there():
    assert command("health", using="default") == "manage.py eventlogs health"
    assert command("health", using="second") == "manage.py eventlogs health --database second"
