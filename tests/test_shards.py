"""Logs that a router spreads over two databases, by their ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connections, router, transaction
from django.db.models import QuerySet
from django.test import Client
from django.utils import timezone

from eventlogs import (
    ANY,
    DatabasesDiffer,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogAlreadyExists,
    LogErased,
    LogId,
    LogManager,
    LogNotFound,
    LogState,
    NameTaken,
)
from eventlogs.contrib.http import ChangeRequest
from eventlogs.models import EventLog, IdempotencyKey
from eventlogs.operations import erasure
from eventlogs.routing import MovedLogs, databases_of
from eventlogs.testing import MemoryStore
from example_project.shards import ShardRouter
from tests.accounts import Account, Deposited, Opened, encoded
from tests.contrib.http.test_change_requests import request_of
from tests.members import Joined, Member
from tests.processes import Place, Processes
from tests.test_routers import said, told


class Shards:
    """The two databases, and what is in them."""

    def __init__(self, second: str) -> None:
        self.aliases = ("default", second)

    def of(self, log_id: LogId) -> str:
        """Return the alias of a log, as the router says."""
        return router.db_for_write(EventLog, log_id=log_id)

    def new_id(self, alias: str) -> LogId:
        """Return a new id that belongs to a database."""
        return next(each for each in iter(Account.logs.new_id, None) if self.of(each) == alias)

    def created(self, alias: str) -> LogState:
        """Create a log in a database."""
        return Account.logs.create(Opened("ada"), log_id=self.new_id(alias))

    def holding(self, log_id: LogId) -> list[str]:
        """Return the aliases of the databases that have a log."""
        logs = [(each, EventLog.objects.using(each)) for each in self.aliases]
        return [alias for alias, found in logs if found.filter(pk=log_id.uuid).exists()]


@pytest.fixture
def second(transactional_db: None, request: pytest.FixtureRequest) -> str:
    """The second database, created after Django's own, so that it is not blocked."""
    return str(request.getfixturevalue("second_database"))


@pytest.fixture
def shards(second: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """Two databases, over which the example's router spreads all logs."""
    made = Shards(second)
    monkeypatch.setattr(ShardRouter, "databases", made.aliases)
    moved = MovedLogs(seconds=3600)
    monkeypatch.setattr(ShardRouter, "moved", moved)
    for alias in made.aliases:
        moved.database_of(LogId.new("account"), alias)  # read before a test watches the databases
    settings.DATABASE_ROUTERS = ["example_project.shards.ShardRouter"]
    return made


@contextmanager
def renamed(table: str, *, using: str) -> Iterator[None]:
    """Rename a table for a time."""

    def rename(old: str, new: str) -> None:
        with connections[using].cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename(table, f"{table}_away")
    try:
        yield
    finally:
        rename(f"{table}_away", table)


@contextmanager
def unused(alias: str) -> Iterator[None]:
    """Fail where a statement is sent to a database."""

    def refuse(execute: Any, sql: str, *call: Any) -> Any:
        raise AssertionError(f"{alias} was asked: {sql}")

    with connections[alias].execute_wrapper(refuse):
        yield


@pytest.mark.parametrize("number", [0, 1])
def test_every_method_of_a_log_asks_its_own_database_only(shards, number):
    mine, other = shards.aliases[number], shards.aliases[1 - number]
    accounts, log_id = Account.logs, shards.new_id(mine)

    with unused(other):
        state = accounts.create(Opened("ada"), log_id=log_id)
        state = accounts.append(state, Deposited(5), idempotency_key="a")
        with pytest.raises(IdempotentReplay):
            accounts.append(state, Deposited(5), idempotency_key="a")
        with pytest.raises(IdempotencyKeyReused):
            accounts.append(state, Deposited(6), idempotency_key="a")
        accounts.execute(log_id, lambda account: Deposited(1), idempotency_key="e")
        accounts.execute(log_id, lambda account: Deposited(1), idempotency_key="e")
        accounts.get_or_append(log_id, Deposited(1), expected_version=ANY, idempotency_key="g")
        with transaction.atomic(using=mine):
            accounts.append(log_id, Deposited(1), expected_version=ANY)
            assert accounts.reduce(log_id).version == 5
        assert accounts.reduce(log_id).version == 5
        assert accounts.reduce(log_id, version=2).aggregate.balance == 5
        assert len(accounts.load(log_id)) == len(list(accounts.stream(log_id))) == 5
        assert accounts.version(log_id) == 5
        assert accounts.exists(log_id)
        assert told("reduce", str(log_id))["version"] == 5
        assert len(told("show", str(log_id))["events"]) == 5
        with pytest.raises(LogAlreadyExists):
            accounts.create(Opened("bob"), log_id=log_id)
        with pytest.raises(LogNotFound):
            accounts.reduce(shards.new_id(mine))
        assert type(accounts.not_found(shards.new_id(mine))) is LogNotFound

    assert shards.holding(log_id) == [mine]


def test_new_logs_go_to_both_databases(shards):
    logs = [Account.logs.create(Opened("ada")).log_id for _ in range(40)]

    assert {shards.of(each) for each in logs} == set(shards.aliases)
    assert all(shards.holding(each) == [shards.of(each)] for each in logs)


@pytest.mark.parametrize("number", [0, 1])
def test_async_methods_append_to_the_database_of_the_log(shards, number):
    log_id = shards.new_id(shards.aliases[number])

    async def use() -> int:
        state = await Account.logs.acreate(Opened("ada"), log_id=log_id)
        await Account.logs.aappend(state, Deposited(5))
        await Account.logs.aexecute(log_id, lambda account: Deposited(5))
        return (await Account.logs.areduce(log_id)).version

    assert async_to_sync(use)() == 3
    assert shards.holding(log_id) == [shards.aliases[number]]


def test_rows_that_are_appended_go_to_the_database_of_their_log(shards):
    log_id = shards.new_id(shards.aliases[1])

    EventLog.objects.append(log_id, encoded(1), expected_version=0)

    assert shards.holding(log_id) == [shards.aliases[1]]


# Keys


def test_a_key_creates_one_log_over_all_databases(shards):
    keys = [f"order-{number}" for number in range(20)]

    first = [Account.logs.get_or_create(Opened("ada"), idempotency_key=key) for key in keys]
    again = [Account.logs.get_or_create(Opened("ada"), idempotency_key=key) for key in keys]

    assert [made for _, made in first] == [True] * 20
    assert again == [(state, False) for state, _ in first]
    assert {shards.of(state.log_id) for state, _ in first} == set(shards.aliases)
    assert sum(IdempotencyKey.objects.using(each).count() for each in shards.aliases) == 20
    assert len({state.log_id for state, _ in first}) == 20
    with pytest.raises(IdempotencyKeyReused):
        Account.logs.create(Opened("bob"), idempotency_key=keys[0])
    with pytest.raises(IdempotentReplay):
        Account.logs.create(Opened("ada"), idempotency_key=keys[0])


def test_callers_that_use_one_key_at_once_create_one_log(shards, race):
    def create() -> Any:
        return Account.logs.get_or_create(Opened("ada"), idempotency_key="k")

    answers = race(*[create] * 6)

    assert sorted(made for _, made in answers) == [False] * 5 + [True]
    assert len({state for state, _ in answers}) == 1
    assert sum(EventLog.objects.using(each).count() for each in shards.aliases) == 1


def create_and_deposit(
    place: Place, aliases: tuple[str, str], second: dict[str, Any], keys: list[str]
) -> dict[str, tuple[LogId, bool]]:
    """Get or create the log of each key, in an order of this process's own, and append to it."""
    connections.databases[aliases[1]] = second
    ShardRouter.databases = aliases
    place.random.shuffle(keys)
    found = {}
    for key in keys:
        state, made = Account.logs.get_or_create(Opened("ada"), idempotency_key=key)
        Account.logs.execute(state.log_id, lambda account: Deposited(1), retries=20)
        found[key] = (state.log_id, made)
    return found


def test_processes_that_race_with_the_same_keys_create_one_log_for_each(shards):
    keys = [f"order-{number}" for number in range(12)]
    second = dict(connections[shards.aliases[1]].settings_dict)
    settings = {"DATABASE_ROUTERS": ["example_project.shards.ShardRouter"]}

    with Processes(settings=settings) as processes:
        processes.line_up(4, create_and_deposit, shards.aliases, second, keys)
        processes.go()
        reports = processes.reports()

    logs = {key: {report[key][0] for report in reports} for key in keys}
    assert all(len(found) == 1 for found in logs.values())
    assert [sum(report[key][1] for report in reports) for key in keys] == [1] * 12
    assert {shards.of(log_id) for [log_id] in logs.values()} == set(shards.aliases)
    for [log_id] in logs.values():
        assert shards.holding(log_id) == [shards.of(log_id)]
        reduction = Account.logs.reduce(log_id)
        assert (reduction.version, reduction.aggregate.balance) == (5, 4)


def test_a_key_with_an_id_that_a_retry_may_not_have_is_refused(shards):
    accounts = Account.logs
    state = accounts.create(Opened("ada"), idempotency_key="k")

    with pytest.raises(DatabasesDiffer) as caught:
        accounts.create(Opened("ada"), log_id=accounts.new_id(), idempotency_key="k")

    assert caught.value.reason == "key"
    assert accounts.get_or_create(Opened("ada"), log_id=state.log_id, idempotency_key="k") == (
        state,
        False,
    )


def test_a_key_whose_row_was_pruned_creates_no_second_log(shards):
    state = Account.logs.create(Opened("ada"), idempotency_key="k")
    for alias in shards.aliases:
        IdempotencyKey.objects.using(alias).prune(older_than=timedelta())

    with pytest.raises(LogAlreadyExists) as caught:
        Account.logs.create(Opened("ada"), idempotency_key="k")

    assert caught.value.log_id == state.log_id


def test_ids_of_keyed_creates_are_new_where_logs_are_in_one_database(shards, settings):
    spread = Account.logs.create(Opened("ada"), idempotency_key="k").log_id
    named = LogManager(Account, using="default").create(Opened("ada"), idempotency_key="l").log_id
    stored = (
        LogManager(Account, store=MemoryStore()).create(Opened("a"), idempotency_key="k").log_id
    )
    settings.DATABASE_ROUTERS = []
    plain = Account.logs.create(Opened("ada"), idempotency_key="m").log_id

    assert spread == LogId.from_key("account", "idempotency-key:k")
    assert [each.uuid.version for each in (named, stored, plain)] == [7, 7, 7]


def test_a_request_with_a_key_is_answered_from_the_database_of_its_log(shards):
    def ask() -> Any:
        return ChangeRequest(request_of({"owner": "ada"}, key='"abc"'), caller="ann")

    first = ask().create(Account.logs, Opened("ada"))
    with unused(next(each for each in shards.aliases if each != shards.of(first.log_id))):
        assert ask().create(Account.logs, Opened("ada")).log_id == first.log_id
        changed = ChangeRequest(request_of({}, if_match=first.etag)).append(
            Account.logs, first.log_id, Deposited(1)
        )

    assert changed.version == 2


# What needs several databases at once


def test_states_of_logs_in_another_database_cannot_be_expected(shards):
    here, there = (
        Account.logs.create(Opened("a"), log_id=shards.new_id(e)) for e in shards.aliases
    )
    beside = Account.logs.create(Opened("a"), log_id=shards.new_id(shards.aliases[0]))

    with pytest.raises(DatabasesDiffer) as caught:
        Account.logs.append(here, Deposited(1), also_expect=[beside, there])
    with pytest.raises(DatabasesDiffer):
        Account.logs.execute(here.log_id, lambda account: Deposited(1), also_expect=[there])

    assert caught.value.reason == "expected"
    assert (caught.value.using, caught.value.other) == shards.aliases
    assert Account.logs.append(here, Deposited(1), also_expect=[beside]).version == 2


def test_an_append_beside_a_transaction_of_another_database_is_refused(shards):
    first, second = shards.aliases
    log_id = shards.created(second).log_id

    with transaction.atomic(using=first):
        with pytest.raises(DatabasesDiffer) as caught:
            Account.logs.append(log_id, Deposited(1), expected_version=ANY)
        with pytest.raises(DatabasesDiffer):
            Account.logs.execute(log_id, lambda account: Deposited(1))
        with transaction.atomic(using=second):  # the caller knows that there are two
            Account.logs.append(log_id, Deposited(1), expected_version=ANY)

    assert (caught.value.reason, caught.value.using, caught.value.other) == (
        "transaction",
        second,
        first,
    )
    assert Account.logs.version(log_id) == 2


def test_unique_values_of_spread_logs_are_refused(shards):
    with pytest.raises(DatabasesDiffer) as caught:
        Member.logs.create(Joined("ada@example.com"))

    assert caught.value.reason == "unique"
    assert Member.logs.find("member.email", "ada@example.com") is None
    there = LogManager(Member, using=shards.aliases[1])
    state = there.create(Joined("ada@example.com"))
    assert Member.logs.find("member.email", "ADA@example.com") == state.log_id


def test_log_types_of_one_database_are_as_without_shards(shards, monkeypatch):
    def one(self: ShardRouter, log_type: str | None) -> Any:
        return shards.aliases[:1] if log_type == "member" else shards.aliases

    def home(self: ShardRouter, model: Any, log_id: LogId | None = None, **hints: Any) -> str:
        return shards.aliases[0]

    monkeypatch.setattr(ShardRouter, "log_databases", one)
    monkeypatch.setattr(ShardRouter, "db_for_write", home)
    state = Member.logs.create(Joined("ada@example.com"), idempotency_key="k")

    assert state.log_id.uuid.version == 7
    assert Member.logs.find("member.email", "ada@example.com") == state.log_id
    with pytest.raises(NameTaken):
        Member.logs.create(Joined("ADA@example.com"))


def test_a_log_that_is_sent_to_a_database_that_nobody_knows_of_is_refused(shards, monkeypatch):
    log_id = shards.new_id(shards.aliases[1])
    monkeypatch.setattr(ShardRouter, "log_databases", lambda self, log_type: shards.aliases[:1])

    with pytest.raises(ImproperlyConfigured, match="log_databases"):
        Account.logs.create(Opened("ada"), log_id=log_id)

    assert shards.holding(log_id) == []


# What is not about a single log


def test_routers_without_shards_are_asked_as_before(second, settings):
    asked: list[dict[str, Any]] = []

    class Router:
        def db_for_write(self, model: Any, **hints: Any) -> str:
            asked.append(hints)
            return "default"

        db_for_read = db_for_write

    settings.DATABASE_ROUTERS = [Router()]
    state = Account.logs.create(Opened("ada"), idempotency_key="k")

    assert state.log_id.uuid.version == 7
    assert {"log_id": state.log_id} in asked
    assert databases_of() == ()
    with transaction.atomic(using=second):
        assert Account.logs.append(state, Deposited(1)).version == 2


def test_a_log_is_erased_in_its_own_database(shards):
    second = shards.aliases[1]
    log_id = shards.created(second).log_id

    assert erasure.preview(log_id).events == 1
    with unused("default"):
        said("erase", str(log_id), "--reason", "test", "--yes")

    assert erasure.tombstone(log_id) is not None
    with pytest.raises(LogErased):
        Account.logs.reduce(log_id)


def test_a_command_about_logs_of_several_databases_asks_which_one_is_meant(shards):
    logs = [str(shards.created(each).log_id) for each in shards.aliases]

    with pytest.raises(CommandError, match="several databases"):
        said("export", "-", "--log", logs[0], "--log", logs[1])


# Commands


def test_commands_show_all_databases(shards):
    for alias in (*shards.aliases, shards.aliases[1]):
        shards.created(alias)

    shown = said("stats")
    rows = [json.loads(line) for line in said("stats", "--json").splitlines()]
    checked = [json.loads(line) for line in said("verify", "--json").splitlines()]

    assert shown.index("Database 'default'") < shown.index(f"Database '{shards.aliases[1]}'")
    assert [each["database"] for each in rows] == [*shards.aliases]
    assert [each["events"] for each in rows] == [1, 2]
    assert [(each["database"], each["events"]) for each in checked] == [
        (shards.aliases[0], 1),
        (shards.aliases[1], 2),
    ]
    assert json.loads(said("stats", "--json", "--database", "default"))["events"] == 1


def test_a_command_that_fails_in_one_database_runs_in_the_others(shards):
    shards.created(shards.aliases[1])
    out = StringIO()
    with renamed("eventlogs_event", using="default"), pytest.raises(CommandError) as caught:
        call_command("eventlogs", "stats", "--json", stdout=out)

    assert str(caught.value).startswith("default: ")
    assert caught.value.returncode == 2
    assert [json.loads(line)["database"] for line in out.getvalue().splitlines()] == [
        shards.aliases[1]
    ]


def test_keys_are_pruned_in_all_databases(shards):
    for key in map(str, range(12)):
        Account.logs.create(Opened("ada"), idempotency_key=key)
    for alias in shards.aliases:
        keys: QuerySet[Any] = QuerySet(IdempotencyKey, using=alias)
        keys.update(created_at=timezone.now() - timedelta(days=2))

    lines = said("prune", "--older-than", "1d", "--json").splitlines()

    counted = [json.loads(line)["keys"] for line in lines]
    assert sum(counted) == 12
    assert all(counted)


# The admin


@pytest.fixture
def client(shards: Shards) -> Client:
    """The client of a user who may do everything."""
    User.objects.create_superuser("ada", password="x")
    made = Client()
    made.login(username="ada", password="x")
    return made


def text_of(client: Client, address: str) -> str:
    """Return the page of an address, after redirects."""
    response = client.get(address, follow=True)
    assert response.status_code == 200
    return str(response.content.decode())


def test_the_admin_shows_the_database_that_is_chosen(shards, client):
    here, there = (shards.created(each).log_id for each in shards.aliases)
    logs, second = "/admin/eventlogs/eventlog/", shards.aliases[1]

    first_page = text_of(client, logs)
    assert str(here) in first_page
    assert str(there) not in first_page
    assert f'href="?database={second}"' in first_page

    assert str(there) in text_of(client, f"{logs}?database={second}&type=account&before=x")
    assert str(there) in text_of(client, logs)  # it stays chosen
    assert str(here) not in text_of(client, logs)
    assert str(there) in text_of(client, "/admin/eventlogs/event/")
    assert f"<strong>{second}</strong>" in text_of(client, "/admin/eventlogs/projectionstate/")
    assert str(here) in text_of(client, f"{logs}?database=default")
    assert str(here) in text_of(client, f"{logs}?database=unknown")


def test_the_admin_finds_a_log_in_all_databases(shards, client):
    there = shards.created(shards.aliases[1]).log_id
    logs = "/admin/eventlogs/eventlog/"

    assert str(there) in text_of(client, f"{logs}{there}/change/")
    assert str(there) in text_of(client, f"{logs}?q={there}")
    assert str(there) in text_of(client, f"/admin/eventlogs/event/{there}:0/")
    assert str(there) in text_of(client, f"/admin/eventlogs/event/{there}:0/tree/")
    exported = client.get(f"{logs}{there}/export/")
    assert str(there) in b"".join(exported.streaming_content).decode()
    assert client.get(f"{logs}{Account.logs.new_id()}/change/").status_code == 404
    erasure.erase(there, reason="test", by="ada")
    assert client.get(f"{logs}{there}/change/").status_code == 410


def test_the_admin_of_one_database_has_no_choice(shards, client, settings):
    settings.DATABASE_ROUTERS = []

    assert "database=" not in text_of(client, "/admin/eventlogs/eventlog/")
    assert client.get("/admin/eventlogs/eventlog/?database=default").status_code == 200
