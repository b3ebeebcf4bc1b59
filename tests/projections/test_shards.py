"""Projections, reactors and workers over two databases among which a router spreads logs."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import OperationalError, connections, models, router
from django.test import Client

from eventlogs import (
    DatabasesDiffer,
    LogId,
    LogIdField,
    LogManager,
    LogState,
    Projection,
    ProjectionUnavailable,
    Reactor,
    RegistrationError,
    handles,
    projection,
)
from eventlogs.models import Checkpoint, EventLog, ProjectionState
from eventlogs.projections import databases
from eventlogs.projections.all_databases import WorkerOfDatabases, names_by_database
from eventlogs.projections.lags import Lag
from eventlogs.projections.workers import Worker, run
from eventlogs.testing import catch_up
from example_project.shards import ShardRouter
from tests.accounts import Account, Deposited, Opened
from tests.projections.tables import Known, made
from tests.tables import Table


class ShardedRow(Table):
    log_id = LogIdField(primary_key=True)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_shards"

    def __str__(self):
        return str(self.log_id)


FAILING: list[Any] = []
WRITTEN: list[Any] = []


@projection("sharded-sums")
class ShardedSums(Projection):
    log_types = ["account"]
    model = ShardedRow
    max_attempts = 1
    backoff = 0.0

    @handles(Deposited)
    def deposited(self, row, record):
        if FAILING:
            raise ValueError
        row.balance += record.event.amount


@projection("sharded-letters")
class ShardedLetters(Reactor):
    log_types = ["account"]

    @handles(Deposited)
    def write(self, record):
        WRITTEN.append((record.id, record.event.amount))


KNOWN = Known(ShardedSums, ShardedLetters)
accounts = Account.logs


@pytest.fixture
def shards(second_alias: str, settings: Any, monkeypatch: Any) -> Iterator[tuple[str, str]]:
    """The aliases of two databases, over which a router spreads logs and rows."""
    aliases = ("default", second_alias)
    monkeypatch.setattr(ShardRouter, "databases", aliases)
    monkeypatch.setattr(ShardRouter, "apps", ("eventlogs", "tests_of_shards"))
    with made(ShardedRow), made(ShardedRow, using=second_alias), KNOWN.declared():
        settings.DATABASE_ROUTERS = ["example_project.shards.ShardRouter"]
        yield aliases
        settings.DATABASE_ROUTERS = []
    FAILING.clear()
    WRITTEN.clear()
    databases._found.clear()
    databases._missing.clear()


def created(alias: str, amount: int) -> LogState:
    """Create a log in a database."""
    ids = iter(accounts.new_id, None)
    log_id = next(each for each in ids if router.db_for_write(EventLog, log_id=each) == alias)
    return accounts.create(Opened("ada"), Deposited(amount), log_id=log_id)


def rows(alias: str) -> dict[LogId, int]:
    return dict(ShardedRow.objects.using(alias).values_list("log_id", "balance"))


def test_each_method_works_on_all_databases(shards):
    here, there = (created(alias, amount) for alias, amount in zip(shards, (1, 5), strict=True))

    assert ShardedSums.lag()[::2] == (2, False)
    assert ShardedSums.catch_up() == 2
    assert (rows(shards[0]), rows(shards[1])) == ({here.log_id: 1}, {there.log_id: 5})
    assert Checkpoint.objects.filter(projection="sharded-sums").count() == 1
    assert Checkpoint.objects.using(shards[1]).filter(projection="sharded-sums").count() == 1
    assert ShardedSums.lag() == Lag(0, ShardedSums.lag().age)
    assert ShardedSums.verify(sample=None).checked == 2

    for alias in shards:
        ShardedRow.objects.using(alias).update(balance=0)
    assert len(ShardedSums.verify(sample=None).differences) == 2
    assert ShardedSums.rebuild(there.log_id) == 1
    assert (rows(shards[0]), rows(shards[1])) == ({here.log_id: 0}, {there.log_id: 5})
    assert ShardedSums.rebuild() == 2
    assert rows(shards[0]) == {here.log_id: 1}

    ProjectionState.objects.using(shards[1]).filter(name="sharded-sums").update(version=0)
    assert ShardedSums.is_rebuild_due()
    ShardedSums.request_rebuild()
    states = [ProjectionState.objects.using(each).get(name="sharded-sums") for each in shards]
    assert all(each.rebuild_requested_at for each in states)


def test_events_that_are_held_are_found_in_all_databases(shards):
    FAILING.append(1)
    here, there = (created(alias, 1) for alias in shards)
    ShardedSums.catch_up()

    assert [each.log_id for each in ShardedSums.parked()] == [here.log_id, there.log_id]
    assert ShardedSums.lag().held == 2
    assert ShardedSums.retry() == 2
    assert [each.log_id for each in ShardedSums.waiting()] == [here.log_id, there.log_id]
    assert ShardedSums.retry(there.log_id) == 1
    assert ShardedSums.skip(there.log_id)
    FAILING.clear()
    ShardedSums.catch_up()
    assert (ShardedSums.parked(), ShardedSums.waiting()) == ([], [])
    assert rows(shards[0]) == {here.log_id: 1}


def test_waiting_for_a_state_asks_the_database_of_its_log(shards):
    states = [created(alias, 1) for alias in shards]
    states.append(created(shards[1], 1))
    reduction = accounts.reduce(states[1].log_id)
    [*_, record] = accounts.stream(states[1].log_id)

    ShardedSums.catch_up(using=shards[0])
    assert ShardedSums.wait_for(states[0], timeout=0)
    assert not any(ShardedSums.wait_for(each, timeout=0) for each in states[1:])
    ShardedSums.catch_up(using=shards[1])

    assert all(ShardedSums.wait_for(each, timeout=0) for each in states)
    assert ShardedSums.wait_for(reduction, timeout=0)
    assert ShardedSums.wait_for(record, timeout=0)
    assert ShardedSums.wait_for(states[2].position, timeout=0, using=shards[1])
    with pytest.raises(DatabasesDiffer) as caught:
        ShardedSums.wait_for(states[2].position)
    assert caught.value.reason == "position"


def test_waiting_for_a_state_without_shards(second_alias):
    with made(ShardedRow), made(ShardedRow, using=second_alias), KNOWN.declared():
        here = accounts.create(Opened("ada"), Deposited(1))
        there = LogManager(Account, using=second_alias).create(Opened("bob"), Deposited(1))
        ShardedSums.catch_up()
        ShardedSums.catch_up(using=second_alias)

        assert ShardedSums.wait_for(here, timeout=0)
        assert ShardedSums.wait_for(there, timeout=0, using=second_alias)
        assert ShardedSums.catch_up() == 0


def test_reactors_react_once_to_the_events_of_all_databases(shards):
    states = [created(alias, amount) for amount in (1, 2) for alias in shards]

    assert ShardedLetters.catch_up() == 4
    assert run(["sharded-letters"]) == {"sharded-letters": 0}
    created(shards[1], 3)
    assert catch_up(ShardedLetters) == {"sharded-letters": 1}

    assert [amount for _, amount in WRITTEN] == [1, 2, 1, 2, 3]
    assert {each for each, _ in WRITTEN[:4]} == {f"{each.log_id}:1" for each in states}
    with pytest.raises(DatabasesDiffer) as caught:
        ShardedLetters.pass_over()
    assert (caught.value.reason, caught.value.other) == ("all", "sharded-letters")
    assert ShardedLetters.pass_over(using=shards[1]).events == 0


def test_a_projection_runs_on_the_databases_that_it_names(shards, monkeypatch):
    here, there = (created(alias, 1) for alias in shards)
    monkeypatch.setattr(ShardedSums, "databases", [shards[1]])

    assert names_by_database(KNOWN.classes) == {
        shards[0]: ["sharded-letters"],
        shards[1]: ["sharded-sums", "sharded-letters"],
    }
    assert ShardedSums.catch_up() == 1
    assert (rows(shards[0]), rows(shards[1])) == ({}, {there.log_id: 1})
    with pytest.raises(ProjectionUnavailable) as caught:
        ShardedSums.catch_up(using=shards[0])
    with pytest.raises(ProjectionUnavailable):
        ShardedSums.wait_for(LogState(here.log_id, 2, here.position), using=shards[0])

    assert caught.value.reason == "database"


def test_databases_that_no_router_spreads_logs_over_can_be_named(second_alias, monkeypatch):
    monkeypatch.setattr(ShardedSums, "databases", ["default", second_alias])
    with made(ShardedRow), made(ShardedRow, using=second_alias), KNOWN.declared("sharded-sums"):
        accounts.create(Opened("ada"), Deposited(1))
        LogManager(Account, using=second_alias).create(Opened("ada"), Deposited(2))

        assert run(["sharded-sums"]) == {"sharded-sums": 2}
        assert list(rows(second_alias).values()) == [2]

    with pytest.raises(RegistrationError, match="databases is empty"):

        @projection("in-no-database")
        class Nowhere(Reactor):
            databases = ()


def test_a_database_without_the_table_is_left_out_until_it_has_one(shards):
    created(shards[0], 1)
    created(shards[1], 1)
    editor = connections[shards[1]].schema_editor
    with editor() as changes:
        changes.delete_model(ShardedRow)
    databases._found.clear()

    assert ShardedSums.catch_up() == 1
    assert ShardedSums.database_aliases() == [shards[0]]

    with editor() as changes:
        changes.create_model(ShardedRow)
    databases._missing.clear()
    assert ShardedSums.catch_up() == 1


# Workers


def test_one_worker_runs_on_all_databases(shards):
    created(shards[0], 1)
    created(shards[1], 2)
    applied = Counter[str]()
    stop = threading.Event()

    def tell(counts: dict[str, int]) -> None:
        applied.update(counts)
        if applied.total() == 4:
            stop.set()

    limit = threading.Timer(30, stop.set)  # a worker that leaves a database out fails the test
    limit.start()
    WorkerOfDatabases(KNOWN.classes, stop=stop, tell=tell).run()
    limit.cancel()

    assert applied == {"sharded-sums": 2, "sharded-letters": 2}
    assert list(rows(shards[0]).values()) + list(rows(shards[1]).values()) == [1, 2]
    owners = [Checkpoint.objects.using(each).exclude(owner="").count() for each in shards]
    assert owners == [0, 0]  # all leases are given back


def test_a_database_that_does_not_answer_does_not_stop_the_others(shards, monkeypatch, caplog):
    created(shards[0], 1)
    created(shards[1], 2)
    round_of = Worker.round

    def fail_on_the_first(self: Worker) -> bool:
        if self._using == shards[0]:
            raise OperationalError("gone")
        return round_of(self)

    worker = WorkerOfDatabases(["sharded-sums"])
    with monkeypatch.context() as broken:
        broken.setattr(Worker, "round", fail_on_the_first)
        worker.turn()
    assert (len(rows(shards[0])), len(rows(shards[1]))) == (0, 1)
    assert "Projections wait for 0.5 s" in caplog.text

    worker._due = dict.fromkeys(worker._workers, 0.0)  # as after the half second
    worker.turn()
    assert len(rows(shards[0])) == 1
    for each in worker._workers:
        each.close()


# The admin and commands


def test_people_operate_the_projections_of_each_database(shards):
    User.objects.create_superuser("ada", password="x")
    client = Client()
    client.login(username="ada", password="x")
    FAILING.append(1)
    here, there = (created(alias, 1) for alias in shards)
    ShardedSums.catch_up()
    pages = "/admin/eventlogs/projectionstate/sharded-sums"

    assert str(here.log_id) in client.get(f"{pages}/held/").content.decode()
    client.get(f"{pages}/held/", {"database": shards[1]})
    assert str(there.log_id) in client.get(f"{pages}/held/").content.decode()
    assert client.get("/admin/eventlogs/projectionstate/").status_code == 200
    assert client.get(f"{pages}/change/").status_code == 200
    client.post(f"{pages}/retry/", {"log_id": str(there.log_id)})
    assert [each.log_id for each in ShardedSums.waiting()] == [there.log_id]
    client.post(f"{pages}/rebuild/", {"post": "yes"})
    states = [ProjectionState.objects.using(each).get(name="sharded-sums") for each in shards]
    assert [each.rebuild_requested_at is not None for each in states] == [False, True]

    out = StringIO()
    call_command("eventlogs", "parked", "sharded-sums", "--json", stdout=out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(each["database"], each["log_id"]) for each in rows] == [
        (shards[0], str(here.log_id)),
        (shards[1], str(there.log_id)),
    ]


def test_commands_run_and_rebuild_projections_of_all_databases(shards):
    here, there = (created(alias, amount) for alias, amount in zip(shards, (1, 5), strict=True))
    out = StringIO()

    call_command("eventlogs", "project", "sharded-sums", "--once", "--json", stdout=out)
    assert json.loads(out.getvalue()) == {"applied": {"sharded-sums": 2}}
    for alias in shards:
        ShardedRow.objects.using(alias).update(balance=0)
    call_command("eventlogs", "rebuild", "sharded-sums", stdout=out)
    assert (rows(shards[0]), rows(shards[1])) == ({here.log_id: 1}, {there.log_id: 5})
    call_command("eventlogs", "verify", "--projections", "--json", stdout=out)

    created(shards[1], 3)
    call_command("eventlogs", "project", "--once", database=shards[1], stdout=out)
    assert sorted(rows(shards[1]).values()) == [3, 5]
