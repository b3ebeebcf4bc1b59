"""``health`` says that a table was left half partitioned, and nothing while the command runs."""

from __future__ import annotations

from datetime import timedelta
from threading import Event as Flag
from threading import Thread

import pytest
from django.core.management import call_command
from django.db import connections, transaction
from django.utils import timezone

from eventlogs import health
from eventlogs.operations import partitioning
from eventlogs.operations.health import partitions as look
from eventlogs.operations.partitioning import running
from tests.accounts import Opened
from tests.operations.health.wrong import acts, of, one
from tests.operations.partitioning.logs import accounts, sql
from tests.operations.partitioning.test_others import once, roles
from tests.projections.crashes import before, killed_in
from tests.reliability.test_feed_schemas import alias_for

pytestmark = [pytest.mark.postgresql, pytest.mark.fence]


def silent_for(alias, minutes):
    """Let the command have done nothing for some minutes."""
    sql(
        alias,
        "UPDATE eventlogs_partitioning SET seen_at = now() - %s, begun_at = now() - %s",
        [timedelta(minutes=minutes), timedelta(minutes=minutes + 1)],
    )


STEPS = [
    pytest.param(lambda m: before(m, running, "_copy"), "still has events", True, id="begun"),
    pytest.param(
        lambda m: before(m, running, "_swap_when_ready"), "stored in the copy", True, id="copied"
    ),
    pytest.param(lambda m: before(m, running, "_remove"), "The old table", False, id="swapped"),
]


@pytest.mark.parametrize(("step", "cost", "can_abandon"), STEPS)
@pytest.mark.parametrize(("wanted", "what"), [(3, "--partitions 3"), (0, "--undo")])
def test_a_copy_of_a_killed_command_is_a_finding(
    alias, monkeypatch, wanted, what, step, cost, can_abandon
):
    if not wanted:
        partitioning.partition(2, using=alias)
    with monkeypatch.context() as dying:
        step(dying)
        assert killed_in(lambda: partitioning.partition(wanted, using=alias))

    assert not one(health(using=alias), "partitioning").must_act  # it may be under way
    silent_for(alias, 12)

    finding = one(health(using=alias), "partitioning")
    assert finding.must_act
    assert finding.command == f"manage.py eventlogs partition {what} --database {alias}"
    assert ("--abandon" in finding.action) == can_abandon
    assert cost in finding.message
    [(user,)] = sql(alias, "SELECT session_user")
    assert repr(user) in finding.message
    assert "12 minutes" in finding.message
    assert abs(timezone.now() - timedelta(minutes=12) - finding.since) < timedelta(minutes=1)

    partitioning.partition(wanted, using=alias)
    assert of(health(using=alias), "partitioning") == []


def test_a_copy_that_is_given_up_is_no_finding(alias, monkeypatch):
    with monkeypatch.context() as dying:
        before(dying, running, "_copy")
        assert killed_in(lambda: partitioning.partition(3, using=alias))
    silent_for(alias, 12)
    assert acts(health(using=alias)) == ["partitioning"]

    partitioning.abandon(using=alias)

    assert of(health(using=alias), "partitioning") == []


@pytest.mark.parametrize("doing", ["copying", "comparing", "swapping", "removing the old table"])
def test_a_command_that_goes_on_is_no_alarm(alias, doing):
    """Also if it was silent before: the next step shows that it runs."""
    seen = []
    with alias_for(alias, "public") as other:

        def look_twice():
            silent_for(other, 60)
            seen.append(one(health(using=other), "partitioning").must_act)

        def after_a_step(done):
            if seen and len(seen) == 1 and done.doing != doing:
                seen.append(one(health(using=other), "partitioning").must_act)

        first = once(doing, look_twice)
        partitioning.partition(4, using=alias, tell=lambda done: (first(done), after_a_step(done)))

    assert seen == ([True] if doing == "removing the old table" else [True, False])
    assert of(health(using=alias), "partitioning") == []


def test_a_step_that_takes_long_is_no_alarm(alias, monkeypatch):
    """Nothing is committed meanwhile: the step is known by its lock."""
    analyze, found = running._analyze, []

    def for_an_hour(cursor, using):
        analyze(cursor, using)
        with alias_for(alias, "public") as other:
            found.append(one(health(using=other), "partitioning"))

    monkeypatch.setattr(running, "_analyze", for_an_hour)
    monkeypatch.setattr(look, "SILENT", timedelta(0))

    partitioning.partition(3, using=alias)

    assert [each.must_act for each in found] == [False]
    assert "begun by the role" in found[0].message


def test_a_command_that_waits_for_transactions_is_no_alarm(alias, monkeypatch):
    monkeypatch.setattr(running, "BEAT", 0.2)
    monkeypatch.setattr(running, "POLL", 0.01)
    waits, end = Flag(), Flag()
    found: list[bool] = []

    def hold():
        with alias_for(alias, "public") as other, transaction.atomic(using=other):
            sql(other, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            sql(other, "SELECT 1")
            begun.set()
            assert waits.wait(20)
            with alias_for(alias, "public") as third:
                silent_for(third, 60)
                for _ in range(200):
                    found.append(one(health(using=third), "partitioning").must_act)
                    if not found[-1] or end.wait(0.05):
                        break

    begun = Flag()
    thread = Thread(target=hold)
    thread.start()
    try:
        assert begun.wait(20)
        partitioning.partition(
            3, using=alias, tell=lambda done: waits.set() if done.waiting_for else None
        )
    finally:
        end.set()
        waits.set()
        thread.join()
        connections[alias].close()

    assert found[-1] is False


def test_a_role_that_owns_nothing_sees_it_and_changes_nothing(alias, monkeypatch):
    with roles(alias, "eventlogs_monitor"):
        sql(alias, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO eventlogs_monitor")
        with monkeypatch.context() as dying:
            before(dying, running, "_swap_when_ready")
            assert killed_in(lambda: partitioning.partition(3, using=alias))
        silent_for(alias, 12)

        sql(alias, "SET ROLE eventlogs_monitor")
        assert "partitioning" in acts(health(using=alias))
        sql(alias, "RESET ROLE")


def test_a_copy_in_another_schema_is_another_one(alias, monkeypatch):
    sql(alias, "CREATE SCHEMA ann")
    with alias_for(alias, "ann") as ann:
        call_command("migrate", "eventlogs", database=ann, verbosity=0)
    with monkeypatch.context() as dying:
        before(dying, running, "_copy")
        assert killed_in(lambda: partitioning.partition(3, using=alias))
    silent_for(alias, 12)

    assert acts(health(using=alias)) == ["partitioning"]
    with alias_for(alias, "ann,public") as ann:
        accounts(ann).create(Opened("ann"))
        assert of(health(using=ann), "partitioning") == []
