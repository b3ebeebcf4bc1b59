"""Erased logs: nothing of them is left, they cannot come back, and only the owner can erase."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import DatabaseError, connection, connections, transaction
from django.utils import timezone

from eventlogs import (
    ANY,
    CannotErase,
    Feed,
    LogAlreadyExists,
    LogErased,
    LogId,
    LogManager,
    LogNotFound,
    LogState,
)
from eventlogs.events import chain
from eventlogs.models import (
    ErasedLog,
    Event,
    EventLog,
    IdempotencyKey,
    SubjectLog,
    UniqueValue,
)
from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.verification import Scope, verify
from eventlogs.stores import BaseStore, ExportedEvent, erasing, store_for
from eventlogs.stores.portable import PortableStore
from eventlogs.stores.retries import run_again
from tests.accounts import Account, Deposited, Opened, Parcel
from tests.members import Joined, Member

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])

DRIVER: Any = vars(type(connections["default"]))["Database"]
ROLE = f"eventlogs_app_{os.getpid()}"

postgresql = pytest.mark.postgresql


@pytest.fixture(params=["the database's", "portable"])
def store(request: pytest.FixtureRequest) -> BaseStore:
    """The store of the database, and the one for any database."""
    return store_for("default") if request.param == "the database's" else PortableStore("default")


@pytest.fixture
def accounts(store: BaseStore) -> LogManager[Account]:
    return LogManager(Account, store=store)


def erase(log_id: LogId) -> bool:
    return erasing.erase("default", log_id, by="grace", reason="an order of a court")


def sql(statement: str, *parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def test_all_rows_of_the_log_go_and_a_tombstone_stays():
    members = LogManager(Member)
    state = members.create(Joined("ada@example.com", 7), idempotency_key="k")
    SubjectLog.objects.create(key_id=LogId.new("key").uuid, log_id=state.log_id)
    other = members.create(Joined("bob@example.com", 8), idempotency_key="l")
    before = timezone.now()

    assert erase(state.log_id) is True

    for model in (Event, IdempotencyKey, UniqueValue):
        assert {each.log_id for each in model.objects.all()} == {other.log_id.uuid}
    assert not SubjectLog.objects.exists()
    assert EventLog.objects.get().log_id == other.log_id
    marks = sql("SELECT id FROM eventlogs_eventlog WHERE log_type = ''")
    assert len(marks) == 1
    stone = ErasedLog.objects.get()
    assert (stone.log_id, stone.count) == (state.log_id, 1)
    assert (stone.erased_by, stone.reason) == ("grace", "an order of a court")
    assert before <= stone.erased_at <= timezone.now()
    assert len(bytes(stone.digest)) == 32
    # Its unique values are free again.
    assert members.create(Joined("ada@example.com", 7)).version == 1


def test_erasing_again_changes_nothing():
    state = Account.logs.create(Opened("ada"))
    erase(state.log_id)
    first = ErasedLog.objects.values().get()

    assert erasing.erase("default", state.log_id, by="hal", reason="another one") is False

    assert ErasedLog.objects.values().get() == first


def test_a_log_that_never_existed_is_not_erased():
    log_id = Account.logs.new_id()
    with pytest.raises(LogNotFound) as caught:
        erase(log_id)
    assert type(caught.value) is LogNotFound
    parcel = LogId("parcel", Account.logs.create(Opened("ada")).log_id.uuid)
    with pytest.raises(LogNotFound):
        erase(parcel)
    assert not ErasedLog.objects.exists()
    assert EventLog.objects.count() == 1


def test_nothing_is_erased_inside_of_a_transaction():
    state = Account.logs.create(Opened("ada"))
    with transaction.atomic(), pytest.raises(RuntimeError):
        erase(state.log_id)
    assert Account.logs.reduce(state.log_id).version == 1


@pytest.mark.parametrize("chained", [False, True])
def test_the_digest_is_the_one_that_a_chained_log_has(settings, chained):
    settings.EVENTLOGS = {"CHAIN": chained}
    state = Account.logs.create(Opened("ada"), Deposited(5))
    Account.logs.append(state, Deposited(7), metadata={"b": 1.50, "a": "ä"}, idempotency_key="k")
    events = store_for("default").events(state.log_id, start=0, limit=9)
    head = EventLog.objects.values_list("head", flat=True).get()
    assert (head is not None) is chained

    erase(state.log_id)

    digest = bytes(ErasedLog.objects.get().digest)
    assert digest == list(chain.chained(None, events))[-1]
    assert not chained or digest == bytes(head)


def uses(accounts: LogManager[Account], state: LogState) -> dict[str, Callable[[], object]]:
    log_id = state.log_id
    return {
        "reduce": lambda: accounts.reduce(log_id),
        "reduce to a version": lambda: accounts.reduce(log_id, version=1),
        "reduce to a moment": lambda: accounts.reduce(log_id, at=timezone.now()),
        "append": lambda: accounts.append(state, Deposited(1)),
        "append with a key": lambda: accounts.append(state, Deposited(1), idempotency_key="l"),
        "append many": lambda: accounts.append(state, Deposited(1), Deposited(2)),
        "append to any": lambda: accounts.append(log_id, Deposited(1), expected_version=ANY),
        "execute": lambda: accounts.execute(log_id, lambda _: [Deposited(1)]),
        "create": lambda: accounts.create(Opened("ada"), log_id=log_id),
        "create many": lambda: accounts.create(Opened("ada"), Deposited(1), log_id=log_id),
        "create with a key": lambda: accounts.create(
            Opened("ada"), log_id=log_id, idempotency_key="k"
        ),
        "create another type": lambda: LogManager(Member, store=accounts._writing_store()).create(
            Joined("eve@example.com"), log_id=LogId("member", log_id.uuid)
        ),
        "expect it": lambda: accounts.create(Opened("bob"), also_expect=[state]),
        "not found": lambda: raised(accounts.not_found(log_id)),
    }


def raised(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("use", uses(Account.logs, LogState(LogId.new("account"), 1, 1)))
def test_an_erased_log_is_log_erased_in_every_use(accounts, use, inside):
    state = accounts.create(Opened("ada"), idempotency_key="k")
    erase(state.log_id)

    with transaction.atomic() if inside else nullcontext():
        with pytest.raises(LogErased) as caught:
            uses(accounts, state)[use]()
        other = accounts.create(Opened("bob"))  # the transaction is usable

    assert isinstance(caught.value, LogNotFound)
    assert caught.value.log_id.uuid == state.log_id.uuid
    assert caught.value.erased_at == ErasedLog.objects.get().erased_at
    assert "court" not in str(caught.value)
    assert EventLog.objects.get().log_id == other.log_id
    assert not IdempotencyKey.objects.exists()
    assert not UniqueValue.objects.exists()


def test_an_erased_log_is_empty_like_one_that_never_existed(accounts):
    state = accounts.create(Opened("ada"))
    erase(state.log_id)

    assert (accounts.exists(state.log_id), accounts.version(state.log_id)) == (False, 0)
    assert len(accounts.load(state.log_id)) == 0
    assert type(accounts.not_found(accounts.new_id())) is LogNotFound
    other = LogId("parcel", state.log_id.uuid)
    assert type(LogManager(Parcel).not_found(other)) is LogNotFound


def test_an_id_of_a_key_that_was_erased_is_refused_too(accounts):
    log_id = LogId.from_key("account", "customer:42")
    accounts.create(Opened("ada"), log_id=log_id)
    erase(log_id)
    with pytest.raises(LogErased):
        accounts.create(Opened("ada"), log_id=LogId.from_key("account", "customer:42"))


@postgresql
def test_joined_creates_and_appends_are_refused_and_the_others_stored():
    state = Account.logs.create(Opened("ada"))
    erase(state.log_id)

    async def all_at_once() -> list[Any]:
        calls = [Account.logs.acreate(Opened(str(number))) for number in range(8)]
        calls += [
            Account.logs.acreate(Opened("ada"), log_id=state.log_id),
            Account.logs.aappend(state, Deposited(1)),
            Account.logs.aappend(state.log_id, Deposited(1), expected_version=ANY),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    *stored, create, append, append_any = async_to_sync(all_at_once)()
    assert {type(each) for each in stored} == {LogState}
    assert {type(each) for each in (create, append, append_any)} == {LogErased}
    assert EventLog.objects.count() == 8


def exported(state: LogState, manager: LogManager[Account]) -> list[ExportedEvent]:
    events = store_for("default").events(state.log_id, start=0, limit=100)
    return [ExportedEvent(each) for each in events]


def test_a_restore_leaves_an_erased_log_out_and_says_so(accounts, store):
    state, other = (accounts.create(Opened(name), Deposited(1)) for name in ("ada", "bob"))
    batch = [*exported(state, accounts), *exported(other, accounts)]
    erase(state.log_id)
    erase(other.log_id)
    third = accounts.create(Opened("eve"))
    batch += exported(third, accounts)

    done = store.restore(batch)

    assert (done.stored, done.present) == (0, 1)
    assert done.erased == {state.log_id, other.log_id}
    assert store.restore_new_logs(batch) == frozenset()
    assert store.restore(batch[1:2]).erased == {state.log_id}
    assert Event.objects.count() == 1


def test_verify_and_the_feed_go_on_without_it():
    first = Account.logs.create(Opened("ada"), Deposited(1))
    erased = Account.logs.create(Opened("bob"), Deposited(2))
    last = Account.logs.create(Opened("eve"))
    last_of_all = Account.logs.create(Opened("zoe"))
    erase(erased.log_id)
    erase(last_of_all.log_id)

    assert list(verify(Scope("default"))) == []
    if connection.vendor != "mysql":
        read = Feed().read()
        assert [each.log_id for each in read] == [first.log_id] * 2 + [last.log_id]


def test_verify_chain_and_the_command_that_chains_pass_it_over(settings):
    before = Account.logs.create(Opened("ada"))
    settings.EVENTLOGS = {"CHAIN": True}
    after = Account.logs.create(Opened("bob"))
    Account.logs.create(Opened("eve"))
    erase(before.log_id)
    erase(after.log_id)

    verifier = ChainVerifier()
    assert list(verify(Scope("default"), [verifier])) == []
    assert (verifier.chained, verifier.unchained) == (1, 0)


def test_events_of_an_erased_log_are_a_finding():
    state = Account.logs.create(Opened("ada"))
    erase(state.log_id)
    now = timezone.now()
    erasing._rows("Event", "default").bulk_create(
        [
            Event(
                position=state.position,
                log_id=state.log_id.uuid,
                log_type="account",
                index=0,
                type="account.opened",
                schema_version=1,
                data={"owner": "ada"},
                metadata={},
                recorded_at=now,
            )
        ]
    )
    [finding] = [each for each in verify(Scope("default")) if each.check == "versions"]
    assert "no log of this UUID" in finding.message


# Races


def racing(calls: list[Callable[[], Any]]) -> list[Any]:
    """Call functions at the same time, each in a thread; return their answers and errors."""
    barrier = Barrier(len(calls))

    def call(function: Callable[[], Any]) -> Any:
        try:
            connections["default"].ensure_connection()
            barrier.wait(30)
            return function()
        except Exception as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_a_race_of_an_erasure_with_appends_and_creators():
    # On SQLite, all wait for one lock by trying again and again, and the erasure seldom gets it.
    writers, rounds = (2, 2) if connection.vendor == "sqlite" else (8, 5)
    for _ in range(rounds):
        state = Account.logs.create(Opened("ada"))

        def append(state: LogState = state) -> list[Any]:
            answers: list[Any] = []
            while not answers or isinstance(answers[-1], LogState):
                with suppress(LogErased):
                    answers.append(
                        Account.logs.append(state.log_id, Deposited(1), expected_version=ANY)
                    )
                    continue
                answers.append(None)
            return answers[:-1]

        def create(state: LogState = state) -> list[Any]:
            answers: list[Any] = []
            while not answers or not isinstance(answers[-1], LogErased):
                try:
                    answers.append(Account.logs.create(Opened("eve"), log_id=state.log_id))
                except (LogAlreadyExists, LogErased) as error:
                    answers.append(error)
            return answers

        *appended, one, two, erased = racing(
            [*[append] * writers, create, create, partial(erase, state.log_id)]
        )

        assert erased is True
        stored = [answer for answers in appended for answer in answers]
        assert sorted(each.version for each in stored) == list(range(2, 2 + len(stored)))
        assert not [each for each in [*one, *two] if isinstance(each, LogState)]
        assert ErasedLog.objects.get(pk=state.log_id.uuid).count == 1 + len(stored)
        assert not Event.objects.filter(log_id=state.log_id.uuid).exists()
        assert not EventLog.objects.filter(pk=state.log_id.uuid).exists()
        with pytest.raises(LogErased):
            Account.logs.create(Opened("eve"), log_id=state.log_id)


@postgresql
def test_a_creator_with_an_older_snapshot_cannot_create_the_log_again():
    state = Account.logs.create(Opened("ada"))
    assert created_with_an_older_snapshot(state.log_id) == []


@postgresql
def test_a_broken_version_that_looks_at_tombstones_instead_creates_the_log_again(monkeypatch):
    """Without the mark, a look at the tombstones in the creating statement is too early."""
    state = Account.logs.create(Opened("ada"))

    def without_mark(connection: Any, log_id: LogId, **options: str) -> bool:
        done = whole(connection, log_id, **options)
        sql("DELETE FROM eventlogs_eventlog WHERE id = %s", log_id.uuid)
        return done

    whole = erasing._erase
    monkeypatch.setattr(erasing, "_erase", without_mark)
    assert created_with_an_older_snapshot(state.log_id) == ["account"]


def created_with_an_older_snapshot(log_id: LogId) -> list[str]:
    """Erase a log while a creator looks at tombstones first; return the types of what it made."""
    with ThreadPoolExecutor(1) as pool, sessions() as other:
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT count(*) FROM eventlogs_erasedlog")
        assert other.fetchone() == (0,)
        pool.submit(erase_apart, log_id).result(30)
        with suppress(DatabaseError, DRIVER.Error):
            other.execute(
                "INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)"
                " SELECT %s, 'account', 1, now(), now()"
                " WHERE NOT EXISTS (SELECT FROM eventlogs_erasedlog WHERE id = %s)"
                " ON CONFLICT (id) DO NOTHING",
                [log_id.uuid, log_id.uuid],
            )
        with suppress(DRIVER.Error):
            other.execute("COMMIT")
    return [each for (each,) in sql("SELECT log_type FROM eventlogs_eventlog") if each]


def erase_apart(log_id: LogId) -> None:
    """Erase a log in a thread, with the thread's own connection."""
    try:
        erase(log_id)
    finally:
        connections.close_all()


@contextmanager
def sessions(**settings: Any) -> Iterator[Any]:
    """Open a session of its own, and yield a cursor."""
    with DRIVER.connect(
        **{**connection.get_connection_params(), **settings}, autocommit=True
    ) as session:
        yield session.cursor()


# Roles of PostgreSQL


@contextmanager
def as_application(statement: str = "") -> Iterator[None]:
    """Be a role that has every grant on the tables, and owns none, within a transaction."""
    with transaction.atomic():
        sql(f"CREATE ROLE {ROLE}")
        sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}")
        sql(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}")
        if statement:
            sql(statement)
        sql(f"SET LOCAL ROLE {ROLE}")
        yield
        sql("RESET ROLE")
        transaction.set_rollback(True)


def refused(statement: str, *parameters: Any) -> str:
    """Return the error that a statement gives."""
    with pytest.raises(DatabaseError) as caught, transaction.atomic():
        sql(statement, *parameters)
    return str(caught.value)


MARK = "SELECT set_config('eventlogs.erasing', concat(%s::uuid, ' ', pg_current_xact_id()), true)"
DELETE = "DELETE FROM eventlogs_event WHERE log_id = %s"


@postgresql
def test_the_application_cannot_forge_the_mark():
    log_id = Account.logs.create(Opened("ada")).log_id
    with as_application():
        sql(MARK, log_id.uuid)
        assert "append-only: DELETE is refused" in refused(DELETE, log_id.uuid)
        assert "append-only: UPDATE is refused" in refused("UPDATE eventlogs_event SET type = 'x'")
    assert Event.objects.count() == 1


@postgresql
def test_a_broken_version_that_does_not_ask_for_the_owner_lets_the_application_delete():
    log_id = Account.logs.create(Opened("ada")).log_id
    body = sql("SELECT pg_get_functiondef('eventlogs_refuse_change'::regproc)")[0][0]
    broken = body.replace("pg_catalog.pg_has_role(current_user, relowner, 'USAGE')", "true")
    assert broken != body
    with as_application(broken.replace("%", "%%")):
        sql(MARK, log_id.uuid)
        sql(DELETE, log_id.uuid)
        assert sql("SELECT count(*) FROM eventlogs_event") == [(0,)]


@postgresql
def test_the_application_cannot_call_the_function():
    log_id = Account.logs.create(Opened("ada")).log_id
    call = "SELECT eventlogs_erase_log(%s, %s, 1, ''::bytea, 'me', 'why')"
    with as_application():
        assert "permission denied for function" in refused(call, log_id.uuid, str(log_id))
    granted = f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {ROLE}"
    with as_application(granted):
        assert "only the owner" in refused(call, log_id.uuid, str(log_id))
        with pytest.raises(CannotErase) as caught:
            erasing.check_owner("default", log_id)
    assert caught.value.role == ROLE
    assert caught.value.owner in str(caught.value)


@postgresql
def test_the_owner_deletes_nothing_by_mistake():
    log_id, other = (Account.logs.create(Opened(name)).log_id for name in ("ada", "bob"))
    assert "or erase the whole log" in refused(DELETE, log_id.uuid)
    with transaction.atomic():
        sql(MARK, log_id.uuid)
        assert "append-only: DELETE" in refused(DELETE, other.uuid)
        assert "append-only: DELETE" in refused("DELETE FROM eventlogs_event")
        assert "append-only: UPDATE" in refused("UPDATE eventlogs_event SET type = 'x'")
    sql("SET eventlogs.erasing = %s", f"{log_id.uuid} 1")  # of an earlier transaction
    try:
        assert "append-only: DELETE" in refused(DELETE, log_id.uuid)
    finally:
        sql("RESET eventlogs.erasing")
    assert Event.objects.count() == 2


@postgresql
def test_the_mark_is_gone_after_the_function():
    log_id = Account.logs.create(Opened("ada")).log_id
    with transaction.atomic():
        sql(
            "SELECT eventlogs_erase_log(%s, %s, 1, ''::bytea, 'me', 'why')",
            log_id.uuid,
            str(log_id),
        )
        assert sql("SELECT current_setting('eventlogs.erasing')") == [("",)]


@postgresql
def test_the_function_refuses_a_digest_of_another_version_and_a_log_that_is_not_there():
    state = Account.logs.create(Opened("ada"))
    Account.logs.append(state, Deposited(1))
    call = "SELECT eventlogs_erase_log(%s, %s, 1, ''::bytea, 'me', 'why')"
    uuid, text = state.log_id.uuid, str(state.log_id)
    assert "is at version 2" in refused(call, uuid, text)
    assert "there is no such log" in refused(call, LogId.new("account").uuid, text)
    erase(state.log_id)
    assert "there is no such log" in refused(call, uuid, text)
    assert ErasedLog.objects.count() == 1


@postgresql
def test_an_erasure_that_the_database_aborts_is_run_again(monkeypatch):
    state = Account.logs.create(Opened("ada"))
    attempts = []

    def aborted_once(connection: Any, log_id: LogId, **options: str) -> bool:
        attempts.append(log_id)
        if len(attempts) == 1:
            sql("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
        return whole(connection, log_id, **options)

    whole = erasing._erase
    monkeypatch.setattr(erasing, "_erase", aborted_once)
    assert erase(state.log_id) is True
    assert len(attempts) == 2
    assert run_again("default", lambda _: ErasedLog.objects.count()) == 1
