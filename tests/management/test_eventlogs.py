"""The command itself: its subcommands, common options and exit codes."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command, get_commands

from eventlogs import LogId
from eventlogs.management.subcommands import SUBCOMMANDS


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


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["stats"], 0, ""),
        (["show", "nonsense"], 2, "This is not a log id"),
        (["show", str(LogId.new("account"))], 2, "does not exist"),
        (["unheard-of"], 2, "invalid choice"),
    ],
)
def test_each_outcome_has_its_exit_code(start, arguments, code, said):
    program = start(*arguments)

    program.ended(code=code)
    assert said in program.error_text
    assert "Traceback" not in program.error_text


def test_options_of_django_work_behind_the_subcommand(start):
    program = start("stats", "--no-color", "--traceback", "-v", "2")

    assert "\x1b" not in program.ended()


def test_colours_are_there_when_forced(account, run):
    assert "\x1b[" in run("show", account, "--force-color")
    assert "\x1b[" not in run("show", account)
