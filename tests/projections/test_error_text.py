"""The text of an error in a log line: the place where it was raised, and no value."""

from __future__ import annotations

import logging
from operator import attrgetter

import pytest
from django.db import IntegrityError

from eventlogs import LogId
from eventlogs.exceptions import (
    EventLogError,
    InvalidLogId,
    LogNotFound,
    ProjectionTimedOut,
    RegistrationError,
)
from eventlogs.projections.error_text import described, traceback_of
from tests.accounts import Account, Deposited
from tests.projections.readmodels import Balances, behaviour, fail_on

SECRET = "4111-1111"


class Paid:
    amount = SECRET

    def __getattr__(self, name):
        if name == "of_its_own":
            raise AttributeError(SECRET)
        raise AttributeError(name=name, obj=self)


def raised(deed):
    try:
        deed()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def undefined():
    return no_such_name  # type: ignore[name-defined]  # noqa: F821


def imported():
    import no_such_module  # type: ignore[import-not-found]  # noqa: F401


def imported_from():
    from logging import no_such_thing  # type: ignore[attr-defined]  # noqa: F401


amonut = attrgetter("amonut")  # no object has it


class TestTexts:
    @pytest.mark.parametrize(
        ("deed", "text"),
        [
            (lambda: amonut(1), "AttributeError: 'int' object has no attribute 'amonut'"),
            (lambda: amonut(None), "AttributeError: 'NoneType' object has no attribute 'amonut'"),
            (lambda: amonut(int), "AttributeError: type object 'int' has no attribute 'amonut'"),
            (lambda: amonut(logging), "AttributeError: module 'logging' has no attribute 'amonut'"),
            (undefined, "NameError: name 'no_such_name' is not defined"),
            (imported, "ModuleNotFoundError: no module named 'no_such_module'"),
            (imported_from, "ImportError: cannot import from 'logging'"),
        ],
    )
    def test_a_name_that_is_written_in_the_code_is_shown(self, deed, text):
        assert described(raised(deed)) == text

    @pytest.mark.parametrize(
        ("deed", "name"),
        [
            (lambda: int(SECRET), "ValueError"),
            (lambda: dict[str, str]()[SECRET], "KeyError"),
            (lambda: getattr(1, SECRET), "AttributeError"),
            (lambda: Paid().of_its_own.strip(), "AttributeError"),
            (lambda: (lambda: 1)(**{SECRET: 1}), "TypeError"),
            (lambda: __import__(SECRET), "ModuleNotFoundError"),
            (lambda: LogId.parse(SECRET), "InvalidLogId"),
        ],
    )
    def test_a_value_is_not_shown(self, deed, name):
        error = raised(deed)

        assert described(error).partition(":")[0] == name
        assert SECRET not in described(error)
        # Nor in the traceback: its lines are those of the source code.
        assert SECRET not in traceback_of(error)

    def test_a_broken_version_that_keeps_the_text_of_each_error_shows_the_value(self, monkeypatch):
        monkeypatch.setattr(f"{__name__}.described", lambda error: f"ValueError: {error}")

        with pytest.raises(AssertionError):
            self.test_a_value_is_not_shown(lambda: int(SECRET), "ValueError")

    def test_our_own_errors_are_shown_if_their_class_writes_the_text(self):
        log_id = LogId.new("account")
        assert str(log_id) in described(LogNotFound(log_id))
        assert described(ProjectionTimedOut("rows", 1.0)).startswith("ProjectionTimedOut: A han")
        for error in (EventLogError(SECRET), RegistrationError(SECRET), InvalidLogId(SECRET)):
            assert described(error) == type(error).__name__

        class OfTheProject(EventLogError):
            pass

        assert SECRET not in described(OfTheProject(SECRET))
        assert SECRET not in described(IntegrityError(SECRET))


class TestTracebacks:
    def test_the_traceback_has_files_lines_and_functions(self):
        text = traceback_of(raised(undefined))

        assert text.startswith("Traceback (most recent call last):\n")
        assert f'File "{__file__}", line ' in text
        assert "in undefined\n    return no_such_name" in text
        assert text.endswith("NameError: name 'no_such_name' is not defined")

    def test_causes_come_first_without_their_texts(self):
        def inner():
            raise ValueError(SECRET)

        def outer():
            try:
                inner()
            except ValueError as error:
                error.add_note(SECRET)
                raise RuntimeError(SECRET) from error

        text = traceback_of(raised(outer))
        assert "in inner" in text
        assert text.index("in inner") < text.index("direct cause") < text.rindex("in outer")
        assert "\nValueError\n\nThe above exception" in text
        assert text.endswith("\nRuntimeError")
        assert SECRET not in text

    def test_the_traceback_of_a_cyclic_chain_ends(self):
        error = raised(undefined)
        error.__cause__ = ValueError()
        error.__cause__.__cause__ = error

        assert traceback_of(error).count("NameError") == 1

    def test_an_error_that_was_not_raised_has_no_traceback(self):
        assert traceback_of(ProjectionTimedOut("rows", 1.0)) == ""


@pytest.mark.feed
class TestTheLogLine:
    def test_a_failed_attempt_is_recorded_with_its_error_and_place(self, tables, declared, caplog):
        def before(record):
            record.event.amonut  # noqa: B018

        behaviour["before"] = before
        state = Account.logs.create(Deposited(1))
        with caplog.at_level("WARNING", logger="eventlogs.projections"):
            Balances.catch_up()

        [line] = caplog.messages
        head, _, trace = line.partition("\n")
        assert head == (
            f"Projection balances: the event at position {state.position} of {state.log_id} failed "
            f"with AttributeError: 'Deposited' object has no attribute 'amonut', attempt 1 of 3."
        )
        assert f'File "{__file__}"' in trace
        assert "in before\n    record.event.amonut" in trace

    def test_no_part_of_a_failed_attempt_contains_a_value(self, tables, declared, caplog):
        fail_on(Deposited)
        Account.logs.create(Deposited(1))
        with caplog.at_level("DEBUG"):
            Balances.catch_up()

        assert "failed with ValueError, attempt 1 of 3.\nTraceback" in caplog.text
        assert "in before" in caplog.text
        assert SECRET not in caplog.text.replace('raise error("4111-1111")', "")
