"""Findings about a database, its triggers, its feed and its newest events, and the actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from io import StringIO
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.utils import timezone

from eventlogs import ConcurrentAppend, LogId, LogManager, health, retired_event
from eventlogs.events.codec import EncodedEvent
from eventlogs.feed.sources import FeedHolder, feed_source_for
from eventlogs.models import Checkpoint, Event
from eventlogs.operations.health import databases
from eventlogs.operations.health.look import Look
from eventlogs.stores import AppendRequest, store_for
from example_project.payments.events import Payment, Requested
from tests.accounts import Account, Opened
from tests.operations.health.wrong import (
    NAME,
    NOON,
    acts,
    hold,
    in_a_transaction,
    of,
    one,
    pay,
    work,
)

# The database


@pytest.fixture
def alias(django_db_setup: None, django_db_blocker: Any) -> Iterator[Callable[..., str]]:
    """A function that makes an alias that is like the tests' own, but for some settings."""
    made = "elsewhere"

    def make(**settings: Any) -> str:
        connections.databases[made] = {**connection.settings_dict, **settings}
        return made

    with django_db_blocker.unblock():
        yield make
        connections[made].close()
        del connections[made]
        del connections.databases[made]
        store_for.cache_clear()


@pytest.fixture
def unreachable(alias: Callable[..., str], tmp_path: Path) -> str:
    """The alias of a database that does not answer."""
    nowhere = {"HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    is_sqlite = connection.vendor == "sqlite"
    return alias(**({"NAME": str(tmp_path / "no folder" / "file")} if is_sqlite else nowhere))


def test_an_unreachable_database_is_reported_and_the_rest_is_checked(unreachable):
    found = health(using=unreachable)

    finding = one(found, "database")
    assert finding.must_act
    assert "The database 'elsewhere' does not answer: OperationalError:" in finding.message
    assert of(found, "cache")
    assert acts(found) == ["database"]


@pytest.mark.postgresql
def test_a_connection_that_the_server_has_closed_is_opened_again(transactional_db, elsewhere):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [pid] = cursor.fetchone()

    def end():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])

    elsewhere(end)

    assert health().is_healthy


@pytest.mark.sqlite
def test_a_database_that_was_not_migrated_is_reported(alias, tmp_path):
    finding = one(health(using=alias(NAME=str(tmp_path / "bare"))), "tables")

    assert finding.command == "manage.py migrate --database elsewhere"
    assert finding.must_act


# Triggers


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "trigger",
    [
        "eventlogs_event_refuse_change",
        pytest.param("eventlogs_event_fence", marks=pytest.mark.fence),
    ],
)
def test_a_dropped_trigger_is_reported_once_with_the_command_that_restores_it(
    second_database, trigger
):
    LogManager(Account, using=second_database).create(Opened(owner="Ada"))
    with connections[second_database].cursor() as cursor:
        cursor.execute(f"DROP TRIGGER {trigger} ON eventlogs_event")

    found = health(using=second_database)

    finding = one(found, "trigger")
    assert finding.must_act
    assert trigger in finding.message
    assert finding.command == f"manage.py eventlogs triggers --database {second_database}"
    assert acts(found) == ["trigger"]

    run(finding.command)

    assert not of(health(using=second_database), "trigger")


def run(command):
    """Run a command as a user who pastes it."""
    for each in command.split(" && "):
        program, *arguments = each.split()
        assert program == "manage.py"
        call_command(*arguments, verbosity=0, stdout=StringIO())


# The feed


@pytest.mark.postgresql
def test_a_forgotten_transaction_that_has_appended_is_named(transactional_db):
    pay()
    with in_a_transaction(pay) as pid:
        pay()
        found = health(max_held=0)
        assert health().is_healthy, "an append that is under way is nothing to act on"

    finding = one(found, "feed-held")
    assert finding.must_act
    assert f"server process {pid}" in finding.message
    assert "idle in transaction" in finding.message
    assert finding.command == f"SELECT pg_terminate_backend({pid});"
    assert finding.figures["pid"] == pid
    assert finding.figures["positions_waiting"] >= 1
    assert abs(finding.since - timezone.now()) < timedelta(minutes=5)


@pytest.mark.postgresql
def test_a_projection_that_has_applied_all_settled_events_has_no_finding(
    transactional_db,
):
    pay()
    with in_a_transaction(pay):
        pay()
        runner = work()
        found = health(max_held=0, max_lag=0)
        runner.close()

    assert acts(found) == ["feed-held"]


@pytest.mark.postgresql
def test_a_transaction_that_blocks_other_sessions_needs_action(
    transactional_db,
):
    state = pay()
    with in_a_transaction(lambda: Payment.logs.append(state, Requested(amount=1))) as pid:
        waiter = Thread(target=append_and_close, args=(state,))
        waiter.start()
        blocked = awaited(lambda: blocked_by(pid))
        found = health(max_held=0)
        assert health().is_healthy, "a moment is nothing to act on"
    waiter.join()

    assert blocked.sessions == 1
    finding = one(found, "feed-held")
    assert finding.must_act
    assert "1 session waits for it to end" in finding.message
    assert finding.figures["sessions_waiting"] == 1
    assert finding.since >= blocked.since - timedelta(seconds=1)


@pytest.mark.postgresql
def test_an_append_in_progress_is_not_reported_as_lag(transactional_db):
    pay()
    with in_a_transaction(pay):
        pay()
        runner = work()
        found = health()
        runner.close()

    assert not of(found, "lag"), "no feed-held says more"


def append_and_close(state):
    try:
        with suppress(ConcurrentAppend):
            Payment.logs.append(state, Requested(amount=2))
    finally:
        connections.close_all()


def blocked_by(pid):
    found = [each for each in feed_source_for("default").blocked() if each.pid == pid]
    return found[0] if found else None


def awaited(look):
    for _ in range(600):
        if found := look():
            return found
        Flag().wait(0.05)
    raise AssertionError("it does not come")


def holder(position=0, *, pid=4711, minutes=None, **more):
    age = None if minutes is None else timedelta(minutes=minutes)
    values = {"user": None, "application": None, "state": None, "query": None, "prepared_as": None}
    return FeedHolder(position, pid, age, **{**values, **more})


def held(*holders, minutes=5):
    """Return the findings about transactions, a number of minutes later."""
    look = Look(
        "default", timezone.now() + timedelta(minutes=minutes), {"MAX_HELD": 10, "MAX_LAG": 60}
    )
    return list(databases._held(look, holders))


@pytest.mark.feed
def test_a_long_transaction_that_has_just_appended_needs_no_action(db):
    pay()

    assert held(holder(minutes=0), minutes=0) == []
    [finding] = held(holder(minutes=60), minutes=0)
    assert not finding.must_act
    assert "Nothing has waited long for it" in finding.message


@pytest.mark.feed
def test_a_holder_that_this_role_cannot_see_is_known_by_events_held_back(db):
    assert held(holder()) == []

    pay()

    [finding] = held(holder())
    assert (finding.must_act, finding.figures["pid"]) == (True, 4711)
    assert 290 < finding.figures["held_seconds"] < 310
    assert finding.since == Event.objects.get().recorded_at


@pytest.mark.feed
def test_a_prepared_transaction_is_named_with_the_statement_that_ends_it(db):
    pay()

    [finding] = held(holder(pid=None, minutes=7, user="ada", prepared_as="it's"))

    assert 'The prepared transaction "it\'s" of the user ada' in finding.message
    assert "open for 7 minutes" in finding.message
    assert finding.command == "ROLLBACK PREPARED 'it''s';"
    assert finding.must_act


@pytest.mark.feed
def test_a_checkpoint_ahead_of_the_feed_is_reported_as_a_restored_backup(transactional_db):
    pay()
    work().close()
    Checkpoint.objects.filter(projection=NAME).update(position=2**62)

    found = health()

    finding = one(found, "restored")
    assert (finding.must_act, finding.subject) == (True, NAME)
    assert finding.command == f"manage.py eventlogs rebuild {NAME} --restart"
    assert acts(found) == ["restored"]


@pytest.mark.postgresql
@pytest.mark.fence
def test_a_sequence_behind_the_events_is_reported_before_an_append_fails(transactional_db):
    state = pay(3)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'), %s)",
            [state.position - 2],
        )
    finding = one(health(), "sequence")
    assert finding.must_act

    with connection.cursor() as cursor:
        cursor.execute(finding.command)
    assert not of(health(), "sequence")
    assert pay().position == state.position + 1


# Event types


def test_an_event_type_without_a_class_is_named_and_acted_on_when_no_deployment_is_the_reason(
    db, scratch_registry
):
    state = Account.logs.create(Opened(owner="Ada"))
    unknown = EncodedEvent("account.teleported", 3, "{}")
    store_for("default").append(AppendRequest(state.log_id, [unknown], None, None, "{}"))

    finding = one(health(), "unknown-type")
    assert (finding.subject, finding.must_act) == ("account.teleported", False)
    assert finding.figures == {"events": 1, "logs": 0, "schema_version": 3}
    finding = one(health(max_deploy=0), "unknown-type")
    assert finding.must_act
    assert 'retired_event("account.teleported")' in finding.command

    retired_event("account.teleported")
    assert not of(health(max_deploy=0), "unknown-type")


def test_a_type_in_logs_that_no_aggregate_here_has_may_be_another_projects(db):
    log_id = LogId.new("spaceship")
    other = EncodedEvent("spaceship.built", 1, "{}")
    store_for("default").append(AppendRequest(log_id, [other], 0, None, "{}"))

    finding = one(health(max_deploy=0), "unknown-type")

    assert not finding.must_act


def test_logs_that_are_held_for_an_unknown_type_are_counted_with_it(db):
    hold(3, type="payment.teleported", awaits="mark", attempts=0, error="")

    finding = one(health(), "unknown-type")

    assert finding.must_act  # since NOON
    assert finding.figures["logs"] == 3
    assert NAME in finding.message
    assert finding.since == NOON
