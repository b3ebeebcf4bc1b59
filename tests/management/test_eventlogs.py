"""The command itself: its subcommands, common options and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command, get_commands
from django.db import connection

from eventlogs import LogId
from eventlogs.management.subcommands import SUBCOMMANDS

ROOT = Path(__file__).parents[2]


def test_django_knows_the_command():
    assert get_commands()["eventlogs"] == "eventlogs"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        call_command("eventlogs", name, "--help")

    assert caught.value.code == 0
    assert SUBCOMMANDS[name].HELP.rstrip(".")[:20] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_takes_the_common_options(name, capsys):
    with pytest.raises(SystemExit):
        call_command("eventlogs", name, "--help")

    shown = capsys.readouterr().out
    assert "--database" in shown
    assert "--json" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "nonsense"],
        ["show"],
        ["unheard-of"],
        ["stats", "--database", "unheard-of"],
        ["stats", "--days", "-1"],
        ["reduce", str(LogId.new("account")), "--version", "0"],
        ["reduce", str(LogId.new("account")), "--at", "yesterday"],
    ],
)
def test_a_mistake_is_a_command_error(arguments, run, db):
    with pytest.raises(CommandError):
        run(*arguments)


def test_an_error_of_eventlogs_is_a_command_error(run, db):
    with pytest.raises(CommandError, match="does not exist") as caught:
        run("show", LogId.new("account"))

    assert caught.value.returncode == 2


def in_a_process(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    name = str(connection.settings_dict["NAME"])
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.management.manage", name, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["stats"], 0, ""),
        (["show", "nonsense"], 2, "This is not a log id"),
        (["show", str(LogId.new("account"))], 2, "does not exist"),
        (["unheard-of"], 2, "invalid choice"),
    ],
)
def test_exit_codes(arguments, code, said, transactional_db):
    done = in_a_process("eventlogs", *arguments)

    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_options_of_django_work_behind_the_subcommand(transactional_db):
    done = in_a_process("eventlogs", "stats", "--no-color", "--traceback", "-v", "2")

    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout


def test_colours_are_there_when_forced(account, run):
    assert "\x1b[" in run("show", account, "--force-color")
    assert "\x1b[" not in run("show", account)
