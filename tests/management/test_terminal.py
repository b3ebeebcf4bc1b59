"""The commands in a real terminal: colours, widths, Ctrl-C, closed pipes."""

from __future__ import annotations

import os
import re
import sys
from io import StringIO

import pytest

from eventlogs.management import terminal as layout
from tests.accounts import Account, Noted, Opened
from tests.management.conftest import manage
from tests.processes import ROOT

pexpect = pytest.importorskip("pexpect")

UP_AND_ERASED = "\x1b[1A\x1b[2K"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def terminal(transactional_db):
    """A function that starts a command in a terminal with a number of columns."""
    started = []

    def start(*arguments, columns: int = 80, **env: str):
        child = pexpect.spawn(
            sys.executable,
            [*manage(), *map(str, arguments)],
            cwd=str(ROOT),
            dimensions=(50, columns),
            env={**os.environ, "TERM": "xterm", **env},
            encoding="utf-8",
            timeout=30,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def finish(child) -> str:
    """Return the output of a command, without the characters that the terminal adds."""
    child.expect(pexpect.EOF)
    child.close()
    return child.before.replace("\r\n", "\n")


def test_a_terminal_gets_colours(terminal, account):
    child = terminal("show", account)

    assert "\x1b[" in finish(child)
    assert child.exitstatus == 0


@pytest.mark.parametrize(
    ("arguments", "env"),
    [(["--no-color"], {}), ([], {"NO_COLOR": "1"})],
    ids=["option", "NO_COLOR"],
)
def test_colours_can_be_switched_off(terminal, account, arguments, env):
    assert "\x1b[" not in finish(terminal("show", account, *arguments, **env))


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_the_terminal(terminal, columns, transactional_db):
    state = Account.logs.create(Opened(owner="Ada"))
    state = Account.logs.append(
        state,
        Noted(note="wide 日本語 " * 30),
        metadata={"user": "grace", "note": "long " * 40},
        idempotency_key="k" * 200,
    )

    for arguments in (["show", state.log_id], ["stats"]):
        shown = ESCAPES.sub("", finish(terminal(*arguments, columns=columns)))

        assert max(width(line) for line in shown.splitlines()) <= columns, shown
    assert shown.count("\n") > 10


def width(text: str) -> int:
    return sum(2 if "\u2e80" <= each <= "\uffef" else 1 for each in text)


def test_lines_in_a_pipe_are_not_cut(start, account):
    state = Account.logs.append(account, Noted(note="x" * 500), expected_version=3)

    assert "x" * 500 in start("show", state.log_id).ended()


def test_a_closed_pipe_ends_a_command_without_a_message(start):
    state = Account.logs.create(Opened(owner="Ada"), *[Noted(note="x" * 2_000)] * 200)
    program = start("show", state.log_id, "--last", "201")

    program.line()
    program.stop_reading()

    program.ended(code=141)
    assert program.error_text == ""


def test_a_progress_bar_stays_on_one_line_and_is_removed(terminal, account):
    pytest.importorskip("rich")

    shown = finish(terminal("verify"))

    assert "Verifying" in shown
    assert shown.count(UP_AND_ERASED) == shown.count("\n") - 1
    result = ESCAPES.sub("", shown.rpartition(UP_AND_ERASED)[2])
    assert result == "3 events were checked. No findings.\n"


@pytest.mark.feed
def test_ctrl_c_ends_a_command_without_a_traceback(terminal, account):
    child = terminal("tail", "--follow", "-n", "1")
    child.expect("account.withdrawn")
    child.sendintr()

    shown = finish(child)

    assert "Interrupted." in shown
    assert "Traceback" not in shown
    assert child.exitstatus == 130


def test_ctrl_c_ends_an_import_and_says_how_to_resume(terminal, transactional_db):
    pytest.importorskip("rich")
    child = terminal("import", "-")
    child.expect("Importing")
    child.sendline('{"format":"eventlogs","version":1}')
    child.sendintr()

    shown = finish(child)

    assert "Import the same file again to resume." in shown
    assert "Traceback" not in shown
    assert child.exitstatus == 130


def test_progress_is_shown_only_on_a_terminal(capsys):
    shown = layout.progress(sys.stderr, "Doing", total=10, unit="events")
    shown.advance(5)
    shown.close()

    assert capsys.readouterr().err == ""


class Terminal(StringIO):
    """A stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def without_rich(monkeypatch):
    monkeypatch.setattr(layout, "HAS_RICH", False)
    monkeypatch.setattr(layout, "PAUSE", 0)


@pytest.mark.parametrize(
    ("total", "unit", "counted"),
    [
        (1_000, "events", "500 of 1,000 events"),
        (None, "events", "500 events"),
        (2**20, "B", "1.0 MiB"),
    ],
)
def test_a_progress_bar_shows_how_much_is_done(monkeypatch, total, unit, counted):
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    shown = layout.progress(stream, "Doing", total=total, unit=unit)
    shown.advance(500)
    shown.close()

    text = ESCAPES.sub("", stream.getvalue())
    assert "Doing" in text
    assert counted in text


@pytest.mark.parametrize(
    ("done", "line"),
    [
        (500, "Doing: 500 of 1,000 events, about 0 s left\n"),
        (1_000, "Doing: 1,000 of 1,000 events\n"),
    ],
)
def test_without_rich_progress_is_lines(without_rich, done, line):
    stream = Terminal()

    shown = layout.progress(stream, "Doing", total=1_000, unit="events")
    shown.advance(done)
    shown.clear()
    shown.close()

    assert stream.getvalue() == line


NAMES = ["short", "wide 日本語 " * 9, "combining e\u0301", "שלום", "emoji \U0001f600"]


def test_columns_are_aligned_by_the_width_on_a_terminal(without_rich):
    lines = layout.table([(name, "1") for name in NAMES], width=80, right=[1])

    assert {layout.columns(line) for line in lines} == {layout.columns(NAMES[1]) + 3}


def test_with_rich_a_table_fits_the_terminal():
    pytest.importorskip("rich")

    lines = layout.table([(name, "1,000,000") for name in NAMES], width=60, right=[1])

    assert max(layout.columns(line) for line in lines) <= 60
    assert sum(line.endswith("1,000,000") for line in lines) == len(NAMES)
    assert "".join(lines).count("日") == 9


def test_without_rich_nothing_is_broken_or_cut(without_rich):
    text = "word " * 100

    assert layout.wrapped(text, width=80) == [text]
