"""Health: what is wrong, since when, and who must act, tried with each thing that can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connection, connections, transaction
from django.test import override_settings
from django.utils import timezone
from django.utils.connection import ConnectionDoesNotExist

from eventlogs import Finding, Health, LogId, LogManager, health, retired_event
from eventlogs.codec import EncodedEvent
from eventlogs.models import Checkpoint, Event, ParkedEvent, ProjectionState, ProjectionWorker
from eventlogs.monitoring import caching, databases, projections
from eventlogs.monitoring.look import Look
from eventlogs.projections import leases, releases
from eventlogs.projections.running import Runner
from eventlogs.stores import AppendRequest, store_for
from eventlogs.stores.feeds import FeedHolder
from example_project.payments.events import Payment, Requested
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Opened
from tests.parked import parked_payment
from tests.projections.release import Release
from tests.reliability.redises import MORTAL, MortalRedis

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
NAME = "payment-summary"
DEAD = f"{leases.HOST}:{2**22 + 1}:dead"  # no process has such a number


def of(found: Health, code: str) -> list[Finding]:
    return [each for each in found.findings if each.code == code]


def one(found: Health, code: str) -> Finding:
    [each] = of(found, code)
    return each


def acts(found: Health) -> list[str]:
    return [each.code for each in found.findings if each.must_act]


def pay(count: int = 1) -> Any:
    for _ in range(count):
        state = Payment.logs.create(Requested(amount=5))
    return state


def work() -> Runner:
    """Return a worker of all projections, after a round."""
    runner = Runner()
    runner.round()
    return runner


def hold(count: int = 1, **values: Any) -> None:
    values = {
        "projection": NAME,
        "index": 1,
        "position": 1,
        "type": "payment.captured",
        "attempts": 5,
        "error": "ZeroDivisionError",
        "handler": "captured",
        "first_failed_at": NOON,
        "failed_at": NOON,
        **values,
    }
    ParkedEvent.objects.bulk_create(
        ParkedEvent(log_id=LogId.new("payment"), **values) for _ in range(count)
    )


def declare(name: str, *, age: float = -10.0, **values: Any) -> None:
    """Let there be a worker that says it handles what this process handles."""
    handled = {each.name: releases.handles_of(each).as_json for each in (PaymentSummaries,)}
    ProjectionWorker.objects.create(
        name=name,
        **{
            "projections": handled,
            "seen_until": timezone.now() - timedelta(seconds=age),
            "declared_at": NOON,
            **values,
        },
    )


# All is well


@pytest.mark.feed
def test_nothing_is_wrong_where_nothing_is(db):
    found = health()

    assert found.is_healthy
    assert [each.code for each in found.findings] == ["cache"]  # it is the memory of one process
    assert found.using == "default"


@pytest.mark.mariadb
def test_projections_that_need_a_feed_are_named_where_there_is_none(db):
    found = health()

    assert found.is_healthy
    assert NAME in one(found, "feed").message


@pytest.mark.feed
def test_a_project_at_work_is_healthy_and_has_its_figures(transactional_db):
    state = pay()
    runner = work()

    found = health()

    runner.close()
    assert found.is_healthy
    assert found.figures["newest_position"] == found.figures["settled_position"] == state.position
    figures = found.projections[NAME]
    assert (figures["is_running"], figures["parked"], figures["positions_behind"]) == (1, 0, 0)


@pytest.mark.feed
def test_a_look_costs_the_same_however_many_events_and_findings_there_are(
    db, django_assert_max_num_queries
):
    health()  # what is looked up once is looked up
    pay(20)
    hold(50)
    for number in range(5):
        declare(f"elsewhere:{number}:x")

    with django_assert_max_num_queries(40):
        health()


def test_all_that_is_answered_is_json(db):
    hold(2)

    found = health().as_json()

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["healthy"], found["database"]) == (False, "default")
    first = found["findings"][0]
    assert (first["code"], first["level"], first["subject"]) == ("parked", "act", NAME)
    assert first["since"] == "2026-11-23T12:00:00Z"
    assert first["figures"]["logs"] == 2


def test_an_alias_that_there_is_not_is_a_mistake_of_the_caller():
    with pytest.raises(ConnectionDoesNotExist):
        health("nowhere")


def test_the_limits_are_those_of_the_settings_unless_they_are_given(db, settings):
    hold(2)
    assert acts(health()) == ["parked"]
    assert acts(health(max_parked=2)) == []

    settings.EVENTLOGS = {"HEALTH": {"MAX_PARKED": 2}}
    assert acts(health()) == []
    assert acts(health(max_parked=1)) == ["parked"]


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


def test_a_database_that_does_not_answer_is_said_and_the_rest_is_looked_at(unreachable):
    found = health(unreachable)

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
def test_a_database_that_was_not_migrated_is_said(alias, tmp_path):
    finding = one(health(alias(NAME=str(tmp_path / "bare"))), "tables")

    assert finding.command == "manage.py migrate --database elsewhere"
    assert finding.must_act


@pytest.mark.parametrize("is_in_a_transaction", [True, False])
def test_a_part_that_fails_is_a_finding_and_the_others_are_looked_at(
    transactional_db, monkeypatch, is_in_a_transaction
):
    def fail(*args, **kwargs):
        with connection.cursor() as cursor:
            cursor.execute("SELECT secret_column FROM eventlogs_event")

    hold()
    monkeypatch.setattr(projections, "standings", fail)
    if is_in_a_transaction:
        with transaction.atomic():
            found = health()
            assert Event.objects.count() == 0  # the caller's transaction is usable
    else:
        found = health()

    codes = acts(found)
    assert "parked" in codes
    assert len(codes) == 2
    assert "secret" not in json.dumps(found.as_json())


@pytest.mark.postgresql
def test_a_look_writes_nothing_to_the_database_and_waits_for_no_lock(transactional_db, monkeypatch):
    monkeypatch.setattr("eventlogs.monitoring.look.PATIENCE", 0.2)
    with lock_table("eventlogs_parkedevent"):
        found = health()

    assert {each.code for each in found.findings if each.must_act} == {"unknown"}
    assert "took longer" in of(found, "unknown")[0].message


@contextmanager
def lock_table(name: str) -> Iterator[None]:
    with in_a_transaction(
        lambda: connection.cursor().execute(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
    ):
        yield


@contextmanager
def in_a_transaction(work: Callable[[], Any]) -> Iterator[int | None]:
    """Let another connection do something and leave its transaction open; give its process id."""
    begun, end = Flag(), Flag()
    pids: list[int | None] = []

    def run() -> None:
        try:
            with transaction.atomic():
                work()
                raw = connection.connection
                pids.append(raw.info.backend_pid if connection.vendor == "postgresql" else None)
                begun.set()
                end.wait(60)
        finally:
            begun.set()
            connections.close_all()

    thread = Thread(target=run)
    thread.start()
    try:
        assert begun.wait(60)
        assert pids, "it has failed"
        yield pids[0]
    finally:
        end.set()
        thread.join()


# Triggers


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("trigger", "command"),
    [("eventlogs_event_refuse_change", "0001"), ("eventlogs_event_fence", "0002")],
)
def test_a_trigger_that_is_dropped_is_said_once_with_how_to_put_it_back(
    second_database, trigger, command
):
    LogManager(Account, using=second_database).create(Opened(owner="Ada"))
    with connections[second_database].cursor() as cursor:
        cursor.execute(f"DROP TRIGGER {trigger} ON eventlogs_event")

    found = health(second_database)

    finding = one(found, "trigger")
    assert finding.must_act
    assert trigger in finding.message
    assert f"migrate eventlogs {command} --fake --database {second_database}" in finding.action
    assert acts(found) == ["trigger"]


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
def test_a_projection_that_has_applied_what_is_settled_waits_for_the_holder_and_for_nobody_else(
    transactional_db,
):
    pay()
    with in_a_transaction(pay):
        pay()
        runner = work()
        found = health(max_held=0, max_lag=0)
        runner.close()

    assert acts(found) == ["feed-held"]


def holder(position=0, *, pid=4711, minutes=None, **more):
    age = None if minutes is None else timedelta(minutes=minutes)
    values = {"user": None, "application": None, "state": None, "query": None, "prepared_as": None}
    return FeedHolder(position, pid, age, **{**values, **more})


def held(*holders, minutes=5):
    """Return what is found of transactions, so many minutes later."""
    look = Look("default", timezone.now() + timedelta(minutes=minutes), {"MAX_HELD": 10})
    return list(databases._held(look, holders))


def test_a_transaction_that_has_appended_a_moment_ago_is_nothing_however_long_it_is_open(db):
    pay()

    assert held(holder(minutes=0), minutes=0) == []
    [finding] = held(holder(minutes=60), minutes=0)
    assert not finding.must_act
    assert "Nothing has waited long for it" in finding.message


def test_a_holder_that_this_role_may_not_see_is_known_by_what_waits_behind_it(db):
    assert held(holder()) == []

    pay()

    [finding] = held(holder())
    assert (finding.must_act, finding.figures["pid"]) == (True, 4711)
    assert 290 < finding.figures["held_seconds"] < 310
    assert finding.since == Event.objects.get().recorded_at


def test_a_prepared_transaction_is_named_with_how_to_end_it(db):
    pay()

    [finding] = held(holder(pid=None, minutes=7, user="ada", prepared_as="it's"))

    assert 'The prepared transaction "it\'s" of the user ada' in finding.message
    assert "open for 7 minutes" in finding.message
    assert finding.command == "ROLLBACK PREPARED 'it''s';"
    assert finding.must_act


@pytest.mark.feed
def test_a_checkpoint_beyond_the_feed_says_that_a_backup_was_restored(transactional_db):
    pay()
    work().close()
    Checkpoint.objects.filter(projection=NAME).update(position=10**9)

    found = health()

    finding = one(found, "restored")
    assert (finding.must_act, finding.subject) == (True, NAME)
    assert finding.command == f"manage.py eventlogs rebuild {NAME} --restart"
    assert acts(found) == ["restored"]


@pytest.mark.postgresql
def test_a_sequence_that_is_behind_the_events_is_said_before_an_append_fails(transactional_db):
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


# What projections hold


def test_one_bug_in_many_logs_is_one_finding(db):
    hold(1_804)

    found = health()

    finding = one(found, "parked")
    assert "1,804 parked: ZeroDivisionError in captured()" in finding.message
    assert finding.since == NOON
    assert "mends captured()" in finding.action
    assert finding.command == f"manage.py eventlogs parked {NAME} --retry-all"
    assert acts(found) == ["parked"]


@pytest.mark.feed
def test_what_an_error_says_is_not_shown(db, monkeypatch):
    parked_payment(monkeypatch, "4111-1111")

    found = health()

    assert one(found, "parked").figures["logs"] == 1
    assert "4111" not in json.dumps(found.as_json())


def test_what_is_tried_again_by_itself_is_for_information(db):
    hold(2, retry_at=timezone.now() + timedelta(minutes=1), attempts=1)

    found = health()

    assert found.is_healthy
    assert one(found, "retrying").figures["logs"] == 2


@pytest.mark.feed
def test_events_that_nobody_tries_again_are_overdue(db):
    hold(2, retry_at=NOON)

    finding = one(health(), "no-worker")

    assert finding.must_act
    assert finding.figures["overdue"] == 2


def test_what_a_projection_holds_that_nobody_declares_is_for_information(db):
    hold(projection="gone")

    found = health()

    assert found.is_healthy
    assert one(found, "undeclared").subject == "gone"


# Who runs


@pytest.mark.feed
def test_a_projection_that_nobody_runs_and_that_has_something_to_do(transactional_db):
    pay()

    assert not one(health(), "no-worker").must_act  # for a moment
    finding = one(health(max_lag=0), "no-worker")
    assert (finding.must_act, finding.subject) == (True, NAME)
    assert "never run" in finding.message
    assert finding.command == f"manage.py eventlogs project {NAME}"

    runner = work()
    found = health(max_lag=0)
    runner.close()
    assert not of(found, "no-worker")


@pytest.mark.feed
def test_a_worker_that_is_too_slow_is_another_finding_than_none(transactional_db):
    pay()
    declare("elsewhere:1:x")

    found = health(max_lag=0)

    assert not of(found, "no-worker")
    finding = one(found, "lag")
    assert (finding.must_act, finding.subject) == (True, NAME)
    assert finding.figures["positions_behind"] >= 1


@pytest.mark.feed
def test_a_schedule_of_single_runs_is_no_missing_worker(transactional_db):
    PaymentSummaries.catch_up()
    pay()

    found = health()

    assert not of(found, "no-worker")
    assert one(health(max_lag=0), "no-worker").must_act


@pytest.mark.feed
def test_a_worker_that_has_died_is_told_and_one_that_has_ended_is_not(transactional_db):
    runner = work()
    runner.close()
    assert not of(health(), "worker-died")

    declare(DEAD, age=30.0)
    declare("elsewhere:1:silent", age=200.0)
    declare("elsewhere:2:busy", age=30.0)
    declare("elsewhere:3:long-ago", age=86_400.0)

    found = health()
    assert [each.subject for each in of(found, "worker-died")] == ["elsewhere:1:silent", DEAD]
    assert f"nobody runs {NAME}" in of(found, "worker-died")[0].message


@pytest.mark.feed
def test_since_when_a_worker_runs_is_kept(transactional_db):
    before = timezone.now() - timedelta(seconds=5)
    runner = work()
    [declared] = ProjectionWorker.objects.all()
    runner._declared.clear()  # as if what it handles had changed
    runner._next_beat = 0.0
    runner.round()
    [again] = ProjectionWorker.objects.all()
    runner.close()
    [ended] = ProjectionWorker.objects.all()

    assert before < declared.declared_at == again.declared_at
    assert (again.ended_at, ended.ended_at is None) == (None, False)


# Releases

OLD = """
import sys
from dataclasses import dataclass
from eventlogs import *
from eventlogs.projections.running import Runner

@event("booking.booked")
@dataclass(frozen=True)
class Booked:
    seats: int

@dataclass
class Booking(Aggregate, log_type="booking", events=[Booked]):
    def apply(self, record): pass

@projection("letters")
class Letters(Reactor):
    log_types = ["booking"]

    @handles(Booked)
    def on_booked(self, record): pass

def findings(code, **limits):
    return [(each.level, each.message) for each in health(**limits).findings if each.code == code]
"""
REFUNDED = """
@event("booking.refunded")
@dataclass(frozen=True)
class Refunded:
    seats: int
"""
NEW = (
    OLD.replace("\n@dataclass\nclass Booking", f"{REFUNDED}\n@dataclass\nclass Booking")
    .replace("[Booked]", "[Booked, Refunded]")
    .replace("@handles(Booked)", "@handles(Booked, Refunded)")
)


@pytest.mark.feed
def test_a_worker_of_an_old_release_is_named_and_acted_on_when_something_waits_for_the_new_one(
    transactional_db, tmp_path
):
    database = str(connection.settings_dict["NAME"])
    with (
        Release(database, tmp_path / "old", OLD) as old,
        Release(database, tmp_path / "new", NEW) as new,
    ):
        old.do("exec('runner = Runner([\"letters\"]); runner.round()', globals())")
        [[level, message]] = new.do("findings('old-release')")
        assert (level, "nothing waits for it" in message) == ("info", True)

        new.do("Booking.logs.create(Booked(1), Refunded(1))")
        old.do("runner.round()")
        assert [level for level, _ in new.do("findings('awaiting-release')")] == ["info"]
        [[level, message]] = new.do("findings('old-release', max_deploy=0)")
        assert (level, "1 log wait" in message) == ("act", True)
        assert [level for level, _ in new.do("findings('awaiting-release', max_deploy=0)")] == [
            "act"
        ]
        # To the old release it is a type without a class, and its worker is its own.
        assert old.do("findings('old-release')") == []
        [[level, message]] = old.do("findings('unknown-type', max_deploy=0)")
        assert (level, "1 log held in letters" in message) == ("act", True)

        new.do("exec('runner = Runner([\"letters\"]); runner.round()', globals())")
        new.do("runner.round()")
        [[level, message]] = old.do("findings('old-release')")
        assert (level, "newer release" in message) == ("info", True)
        [[level, message]] = new.do("findings('old-release', max_deploy=0)")
        assert (level, "run beside" in message) == ("info", True)


# Rebuilds


@pytest.fixture
def state(transactional_db: None) -> Any:
    """The state of a projection that has run."""
    work().close()
    return ProjectionState.objects.filter(name=NAME)


@pytest.mark.feed
def test_a_rebuild_that_is_due(state):
    state.update(version=0)

    finding = one(health(), "rebuild-due")

    assert (finding.must_act, finding.command) == (True, f"manage.py eventlogs rebuild {NAME}")


@pytest.mark.feed
def test_a_rebuild_that_came_to_nothing(state):
    state.update(rebuild_error="ValueError", rebuild_started_at=NOON)

    finding = one(health(), "rebuild-failed")

    assert (finding.must_act, finding.since) == (True, NOON)
    assert "ValueError" in finding.message


@pytest.mark.feed
def test_a_rebuild_that_nobody_goes_on_with_and_one_that_is_under_way(state):
    state.update(version=0, rebuild_version=1, rebuild_started_at=NOON)
    Checkpoint.objects.create(
        projection=NAME, is_rebuild=True, partition=0, partitions=1, owner=DEAD
    )
    found = health()
    assert acts(found) == ["rebuild-stopped"]

    Checkpoint.objects.filter(is_rebuild=True).update(
        owner="elsewhere:1:x", leased_until=timezone.now() + timedelta(minutes=1)
    )
    found = health()
    assert acts(found) == []
    assert one(found, "rebuilding").since == NOON


@pytest.mark.feed
def test_a_rebuild_that_was_asked_for_and_that_nobody_begins(state):
    state.update(rebuild_requested_at=NOON)
    assert one(health(), "rebuild-waiting").must_act

    declare("elsewhere:1:x")
    assert not one(health(), "rebuild-waiting").must_act


@pytest.mark.feed
def test_rows_of_a_newer_version_say_that_this_process_is_of_an_old_release(state):
    state.update(version=2)

    finding = one(health(), "old-release")

    assert finding.must_act
    assert finding.command == f"manage.py eventlogs rebuild {NAME} --downgrade"


# The cache


@pytest.fixture
def mortal(settings: Any) -> Iterator[MortalRedis]:
    """A Redis of our own, in which reductions are cached."""
    with MortalRedis() as server, override_settings(CACHES=server.caches):
        settings.EVENTLOGS = {"CACHE": MORTAL}
        yield server
        caches[MORTAL].client.get_client().connection_pool.disconnect()


@pytest.mark.redis
def test_a_cache_that_takes_what_is_written_is_nothing_to_speak_of(db, mortal):
    found = health()

    assert not of(found, "cache")
    assert found.figures["cache_used_bytes"] > 0


@pytest.mark.redis
def test_a_cache_that_is_full_is_named_with_what_to_do(db, mortal):
    with mortal.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
        with pytest.raises(Exception, match="maxmemory"):
            for number in range(1_000):
                client.set(f"filling {number}", b"x" * 10_000, ex=600)

        finding = one(health(), "cache")
        assert finding.must_act
        assert "is full, and takes no writes" in finding.message
        assert "answers stay right" in finding.message
        client.execute_command(*finding.command.split()[1:])  # behind redis-cli

        finding = one(health(), "cache")
        assert not finding.must_act
        assert "throws entries out" in finding.message


@pytest.mark.redis
def test_a_cache_that_will_be_full_soon_is_named_before(db, mortal):
    with mortal.client() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", int(used * 1.03) + 50_000)

    finding = one(health(), "cache")

    assert finding.must_act
    assert "nearly full" in finding.message


@pytest.mark.redis
def test_a_cache_that_is_down_is_named(db, mortal):
    mortal.stop()

    finding = one(health(), "cache")

    assert finding.must_act
    assert "cannot be reached" in finding.message


@pytest.mark.redis
def test_a_cache_that_hangs_does_not_hang_the_look(db, mortal, settings, monkeypatch):
    monkeypatch.setattr(caching, "PATIENCE", 0.2)
    settings.CACHES = {**mortal.caches, MORTAL: {**mortal.caches[MORTAL], "OPTIONS": {}}}
    mortal.hang()
    try:
        found = health()
        again = health()  # one thread waits, however often somebody looks
    finally:
        mortal.wake()

    for each in (found, again):
        assert "did not answer" in next(f for f in of(each, "cache") if f.must_act).message
    for _ in range(100):
        if not caching._under_way:
            break
        Flag().wait(0.05)
    assert not caching._under_way


def test_a_cache_that_would_pickle_is_named(db, settings):
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": "/nowhere",
        }
    }

    finding = one(health(), "cache")

    assert finding.must_act
    assert "pickle" in finding.message


def test_without_a_cache_there_is_nothing_to_say_of_it(db, settings):
    settings.EVENTLOGS = {"CACHE": None}

    assert not of(health(), "cache")


def test_an_unknown_alias_of_a_cache_is_named(db, settings):
    settings.EVENTLOGS = {"CACHE": "elsewhere"}

    assert one(health(), "cache").must_act
