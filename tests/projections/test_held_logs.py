"""Held logs: attempts are counted before they are made, and an event waits for its time."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from eventlogs import LogId
from eventlogs.models import ParkedEvent, SkippedEvent
from eventlogs.projections import error_text
from eventlogs.projections.base import BaseProjection
from eventlogs.projections.error_text import MAX_DETAILS
from eventlogs.projections.held_logs import IN_FLIGHT, LONGEST_WAIT, HeldLogs
from eventlogs.values import StoredEvent

pytestmark = pytest.mark.django_db


def row(log_id=None, index=3, position=7):
    return StoredEvent(
        log_id=log_id or LogId.new("account"),
        index=index,
        position=position,
        type="account.noted",
        schema_version=1,
        data="{}",
        metadata="{}",
        idempotency_key=None,
        recorded_at=timezone.now(),
    )


def held_logs(*, max_attempts=3, backoff=10.0, is_rebuild=False):
    options = {"name": "each", "max_attempts": max_attempts, "backoff": backoff}
    return HeldLogs(type("Each", (BaseProjection,), options), "default", is_rebuild=is_rebuild)


def wait_over(waiting):
    ParkedEvent.objects.filter(pk=waiting.pk).update(retry_at=timezone.now() - timedelta(days=1))
    waiting.refresh_from_db()


def test_an_attempt_is_counted_before_it_is_made():
    each = held_logs()
    log_id = LogId.new("account")

    waiting = each.hold(row(log_id))

    waiting.refresh_from_db()
    assert (waiting.attempts, waiting.error, waiting.is_parked) == (1, IN_FLIGHT, False)
    assert each.held() == {log_id}
    assert each.due(99) == []


def test_an_event_is_due_at_its_retry_time_behind_the_checkpoint():
    each = held_logs()
    waiting = each.hold(row(position=7))
    wait_over(waiting)

    assert each.due(6) == []
    assert each.due(7) == [(waiting.pk, waiting.log_id)]
    assert each.begin_attempt(waiting)
    waiting.refresh_from_db()
    assert (waiting.attempts, waiting.error) == (2, IN_FLIGHT)
    assert each.due(7) == []


def test_the_event_that_is_due_longest_comes_first():
    each = held_logs()
    events = [each.hold(row()) for _ in range(3)]
    for number, waiting in enumerate(events):
        waiting.retry_at = timezone.now() - timedelta(days=3 - number)
        waiting.save()
    assert [pk for pk, _ in each.due(7)] == [waiting.pk for waiting in events]


def test_after_the_last_attempt_an_event_is_parked():
    each = held_logs()
    failing = row()
    waiting = each.hold(failing)
    for _ in range(2):
        each.note_failure(waiting, ValueError("secret"), failing)
        assert not waiting.is_parked
        assert each.begin_attempt(waiting)
    each.note_failure(waiting, ValueError("secret"), failing)

    waiting.refresh_from_db()
    assert (waiting.is_parked, waiting.attempts, waiting.error) == (True, 3, "ValueError")
    assert "secret" in waiting.details


def test_an_event_whose_attempts_crashed_is_parked_without_another_attempt():
    each = held_logs(max_attempts=1)
    waiting = each.hold(row())

    assert not each.begin_attempt(waiting)
    assert waiting.is_parked


def test_a_log_is_held_by_one_event_in_a_projection_and_its_rebuild_apart():
    log_id = LogId.new("account")
    live, rebuild = held_logs(), held_logs(is_rebuild=True)
    live.hold(row(log_id))

    assert rebuild.held() == set()
    rebuild.hold(row(log_id))
    assert rebuild.held() == live.held() == {log_id}


def test_after_an_event_is_applied_the_next_one_of_its_log_is_due():
    each = held_logs()
    log_id = LogId.new("account")
    waiting = each.hold(row(log_id, index=3, position=7))

    each.continue_with(row(log_id, index=4, position=9), waiting)
    waiting.refresh_from_db()
    assert (waiting.index, waiting.position, waiting.attempts, waiting.error) == (4, 9, 0, "")
    assert [pk for pk, _ in each.due(9)] == [waiting.pk]

    each.continue_with(None, waiting)
    assert each.held() == set()


def test_an_event_that_is_skipped_during_an_attempt_is_not_held_again():
    each = held_logs()
    failing = row()
    waiting = each.hold(failing)
    other = ParkedEvent.objects.get(pk=waiting.pk)
    each.skip(other, None)

    assert not each.is_held_by(waiting)
    each.note_failure(waiting, ValueError(), failing)

    assert not ParkedEvent.objects.exists()
    assert each.skipped_positions(7, 7) == {7}
    assert each.skipped_positions(8, 99) == set()
    each.skip(other, None)  # the second call changes nothing
    assert SkippedEvent.objects.count() == 1


def test_a_retry_gives_all_attempts_back():
    each = held_logs(max_attempts=1)
    failing = row()
    waiting = each.hold(failing)
    each.hold(row())
    each.note_failure(waiting, ValueError(), failing)

    assert each.retry(LogId.new("account")) == 0
    assert each.retry(waiting.log_id) == 1
    waiting.refresh_from_db()
    assert (waiting.attempts, waiting.is_parked) == (0, False)
    assert each.retry() == 2


def test_no_wait_is_longer_than_five_minutes():
    each = held_logs(backoff=10.0)
    assert each._delay(1) == timedelta(seconds=10)
    assert each._delay(3) == timedelta(seconds=40)
    assert each._delay(5_000) == timedelta(seconds=LONGEST_WAIT)


class WithoutText(Exception):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    "error", [WithoutText(), ValueError("\ud800"), ValueError("a\0b"), ValueError("x" * 99_999)]
)
def test_any_text_of_an_error_can_be_stored(error):
    each = held_logs()
    failing = row()
    waiting = each.hold(failing)

    each.note_failure(waiting, error, failing)

    waiting.refresh_from_db()
    assert 0 < len(waiting.details) <= MAX_DETAILS


def test_an_event_that_is_retried_during_its_last_attempt_is_not_parked():
    """A user fixed the cause and retried the event during its last attempt."""
    each = held_logs(max_attempts=1)
    failing = row()
    waiting = each.hold(failing)
    assert each.retry(waiting.log_id) == 1
    each.note_failure(waiting, ValueError(), failing)

    waiting.refresh_from_db()
    assert (waiting.attempts, waiting.is_parked) == (0, False)
    assert [pk for pk, _ in each.due(7)] == [waiting.pk]


def test_an_event_that_is_retried_just_before_it_is_parked_is_not_parked():
    each = held_logs(max_attempts=1)
    waiting = each.hold(row())
    each.retry()

    assert not each.begin_attempt(waiting)
    waiting.refresh_from_db()
    assert not waiting.is_parked
    assert each.begin_attempt(waiting)


def test_attempts_are_added_to_the_stored_count():
    each = held_logs()
    waiting = each.hold(row())
    other = ParkedEvent.objects.get(pk=waiting.pk)
    each.begin_attempt(other)
    each.retry()

    assert each.begin_attempt(waiting)
    assert waiting.attempts == 1


def test_a_skipped_event_is_not_attempted():
    each = held_logs()
    waiting = each.hold(row())
    each.skip(ParkedEvent.objects.get(pk=waiting.pk), None)

    assert not each.begin_attempt(waiting)


class RefusesZero(Exception):
    pass


def divide(amount, by):
    return amount / by


class Handlers:
    def captured(self):
        return [divide(1, by) for by in (0,)]

    def noted(self):
        json.loads("no JSON")

    def by_a_lambda(self):
        return (lambda: 1 / 0)()

    def of_django(self):
        ParkedEvent.objects.get(pk="no number")


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("captured", "divide"),  # the innermost function of the project
        ("noted", "noted"),  # and not the function of the standard library
        ("by_a_lambda", "by_a_lambda"),  # a lambda has no name
        ("of_django", "of_django"),
    ],
)
def test_a_failure_names_the_function_of_the_project_that_raised_it(handler, expected):
    each = held_logs()
    failing = row()
    waiting = each.hold(failing)

    try:
        getattr(Handlers(), handler)()
    except Exception as error:
        each.note_failure(waiting, error, failing)

    waiting.refresh_from_db()
    assert waiting.handler == expected


def test_an_error_without_a_traceback_names_no_function():
    assert error_text.handler_of(RefusesZero()) == ""


def test_a_project_that_is_installed_like_a_library_is_named_all_the_same(monkeypatch):
    monkeypatch.setattr(error_text, "LIBRARIES", ("/",))
    try:
        Handlers().captured()
    except ZeroDivisionError as error:
        # The outermost function: it is not known which of the inner ones belongs to the project.
        called = error.with_traceback(error.__traceback__.tb_next)
        assert error_text.handler_of(called) == "captured"


def test_the_function_is_forgotten_with_the_failure():
    each = held_logs()
    failing = row()
    waiting = each.hold(failing)
    try:
        Handlers().captured()
    except ZeroDivisionError as error:
        each.note_failure(waiting, error, failing)

    each.begin_attempt(waiting)
    waiting.refresh_from_db()
    assert (waiting.error, waiting.handler) == (IN_FLIGHT, "")
