"""Appends of async code that are joined into one statement."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    InvalidEvent,
    InvalidLogId,
    LogAlreadyExists,
    LogId,
    LogManager,
    LogNotFound,
    LogState,
    NameTaken,
    event_context,
)
from eventlogs import context as of_context
from eventlogs import logs as of_logs
from eventlogs.context import Layer
from eventlogs.events.unique import UniqueValue
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.refreshers import BaseRefresher
from eventlogs.stores import AppendRequest, Rules, group_commit, joined, participants
from eventlogs.stores.base import UNDECIDED
from eventlogs.testing import MemoryStore
from eventlogs.testing.contracts.stores import new_key
from tests.accounts import Account, Deposited, Noted, Opened, encoded
from tests.locks import a_session_waits
from tests.members import Joined, Member
from tests.processes import until
from tests.stores.test_group_commit import elsewhere

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.fence,  # with buckets, no appends are joined
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]

accounts = Account.logs


def statements(queries: CaptureQueriesContext) -> list[str]:
    """Return what kinds of appends there were."""
    return [
        "joined" if "WITH patience" in each["sql"] else "alone"
        for each in queries.captured_queries
        if "INSERT INTO eventlogs_event " in each["sql"]
    ]


def at_once(*calls: Callable[[], Any], is_watched: bool = True) -> tuple[list[Any], list[str]]:
    """Make calls of async code at the same time; return answers, and the kinds of statements."""

    async def main() -> list[Any]:
        return [*await asyncio.gather(*(each() for each in calls), return_exceptions=True)]

    if not is_watched:
        return async_to_sync(main)(), []
    with CaptureQueriesContext(connection) as queries:  # this thread runs the queries
        answers = async_to_sync(main)()
    return answers, statements(queries)


def test_appends_at_the_same_time_are_one_statement():
    states = [accounts.create(Opened(f"{n}")) for n in range(20)]
    new = accounts.new_id()

    answers, kinds = at_once(
        *(lambda state=state: accounts.aappend(state, Deposited(1)) for state in states),
        lambda: accounts.acreate(Opened("new"), Deposited(2), log_id=new),
        lambda: accounts.aget_or_create(Opened("newer"), idempotency_key="newer"),
    )

    assert kinds == ["joined"]
    assert answers[:21] == [
        LogState(each.log_id, each.version, each.position) for each in answers[:21]
    ]
    assert [each.version for each in answers[:21]] == [2] * 21
    assert answers[21][1] is True
    assert accounts.reduce(new).aggregate == Account("new", 2)


def test_a_single_call_is_not_joined():
    state = accounts.create(Opened("ada"))

    answers, kinds = at_once(lambda: accounts.aappend(state, Deposited(1)))

    assert (answers[0].version, kinds) == (2, ["alone"])


def test_each_call_keeps_its_own_answer_and_error():
    one, other = accounts.create(Opened("ada")), accounts.create(Opened("eve"))
    done = accounts.append(one, Deposited(1), idempotency_key="done")

    answers, kinds = at_once(
        lambda: accounts.aappend(one, Deposited(9)),
        lambda: accounts.aappend(one, Deposited(1), idempotency_key="done"),
        lambda: accounts.aget_or_append(one, Deposited(1), idempotency_key="done"),
        lambda: accounts.aappend(one, Deposited(2), idempotency_key="done"),
        lambda: accounts.acreate(Opened("x"), log_id=other.log_id),
        lambda: accounts.aappend(accounts.new_id(), Deposited(1), expected_version=ANY),
        lambda: accounts.aappend(other, Noted(float("nan"))),
        lambda: accounts.aappend("nonsense", Deposited(1), expected_version=ANY),
        lambda: accounts.aappend(other.log_id, Deposited(1)),
        lambda: accounts.acreate(Opened("fine"), metadata={"till": 7}, idempotency_key="fine"),
    )

    assert [type(each) for each in answers] == [
        ConcurrentAppend,
        IdempotentReplay,
        tuple,
        IdempotencyKeyReused,
        LogAlreadyExists,
        LogNotFound,
        InvalidEvent,
        InvalidLogId,
        TypeError,
        LogState,
    ]
    assert answers[1].state == done
    assert answers[2] == (done, False)
    assert kinds.count("joined") >= 1
    stored = Event.objects.for_log(answers[-1].log_id).get()
    assert (stored.metadata, stored.idempotency_key) == ({"till": 7}, "fine")


def test_appends_to_one_log_are_stored_in_the_order_of_the_calls():
    log_id = accounts.create(Opened("ada")).log_id

    answers, kinds = at_once(
        *(
            lambda n=n: accounts.aappend(log_id, Deposited(n), expected_version=ANY)
            for n in range(5)
        ),
    )

    assert [each.version for each in answers] == [2, 3, 4, 5, 6]
    assert [each.event.amount for each in accounts.load(log_id)[1:]] == [0, 1, 2, 3, 4]
    assert "alone" not in kinds


def test_a_key_that_two_calls_share_is_stored_once():
    answers, _ = at_once(
        lambda: accounts.acreate(Opened("ada"), idempotency_key="k"),
        lambda: accounts.acreate(Opened("ada"), idempotency_key="k"),
        lambda: accounts.acreate(Opened("eve"), idempotency_key="k"),
    )

    assert [type(each) for each in answers] == [LogState, IdempotentReplay, IdempotencyKeyReused]
    assert EventLog.objects.count() == 1


@pytest.mark.django_db(transaction=False)
def test_calls_in_a_transaction_of_a_test_are_rolled_back_with_it():
    answers, kinds = at_once(
        *(lambda n=n: accounts.acreate(Opened(f"{n}"), idempotency_key=f"{n}") for n in range(5))
    )

    assert {type(each) for each in answers} == {LogState}
    assert kinds == ["alone"] * 5
    transaction.set_rollback(True)
    assert connection.in_atomic_block


def test_calls_in_a_callers_transaction_are_rolled_back_with_it():
    state = accounts.create(Opened("ada"))

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        answers, kinds = at_once(
            lambda: accounts.aappend(state, Deposited(1)),
            lambda: accounts.acreate(Opened("eve")),
        )
        assert {type(each) for each in answers} == {LogState}
        raise ZeroDivisionError

    assert kinds == ["alone", "alone"]
    assert EventLog.objects.count() == accounts.version(state.log_id) == 1


def test_a_version_that_joins_inside_of_transactions_is_found(monkeypatch):
    """The broken version of the test above: it does not check for a transaction."""
    monkeypatch.setattr("eventlogs.stores.group_commit._is_alone", lambda connection: True)

    with pytest.raises(AssertionError):
        test_calls_in_a_callers_transaction_are_rolled_back_with_it()


def test_requests_with_connections_of_their_own_are_not_joined():
    states = [accounts.create(Opened(f"{n}")) for n in range(2)]

    async def request(state: LogState) -> list[Any]:
        async with ThreadSensitiveContext():
            try:
                return [
                    *await asyncio.gather(
                        accounts.aappend(state, Deposited(1)),
                        accounts.acreate(Opened("new")),
                        sync_to_async(threading.get_ident)(),
                    )
                ]
            finally:
                await sync_to_async(connections.close_all)()

    async def main() -> list[Any]:
        return [*await asyncio.gather(*map(request, states))]

    one, other = asyncio.run(main())
    assert one[2] != other[2]
    assert [each.version for each in (*one[:2], *other[:2])] == [2, 1, 2, 1]


def test_the_setting_switches_joining_off(settings):
    settings.EVENTLOGS = {"GROUP_COMMIT": False}

    _, kinds = at_once(*(lambda: accounts.acreate(Opened("x")) for _ in range(3)))

    assert kinds == ["alone"] * 3


class Quiet(LogManager[Account]):
    """A manager that counts what is appended."""

    appended = 0

    def append(self, *args: Any, **kwargs: Any) -> LogState:
        self.appended += 1
        return super().append(*args, **kwargs)


def test_a_method_that_is_overridden_is_called():
    manager = Quiet(Account)
    states = [manager.create(Opened(f"{n}")) for n in range(3)]

    answers, kinds = at_once(
        *(lambda state=state: manager.aappend(state, Deposited(1)) for state in states)
    )

    assert [each.version for each in answers] == [2, 2, 2]
    assert manager.appended == 3
    assert kinds == ["alone"] * 3


def test_a_custom_store_is_used():
    manager = LogManager(Account, store=MemoryStore())

    _, kinds = at_once(*(lambda: manager.acreate(Opened("x")) for _ in range(3)))

    assert kinds == []
    assert EventLog.objects.count() == 0


def test_appends_with_participants_are_not_joined(monkeypatch):
    took_part: list[LogId] = []
    monkeypatch.setitem(
        participants.registered,
        "test",
        participants.Participant(["account"], lambda _, state, __: took_part.append(state.log_id)),
    )

    answers, _ = at_once(*(lambda: accounts.acreate(Opened("x")) for _ in range(3)))

    assert {each.log_id for each in answers} == {*took_part}


class Router:
    """A router that queries the database in the thread of the connection."""

    def db_for_write(self, model: type, **hints: Any) -> None:
        self.threads = {threading.get_ident()}


def test_routers_are_asked_in_the_thread(settings):
    router = Router()
    settings.DATABASE_ROUTERS = [router]

    _, kinds = at_once(*(lambda: accounts.acreate(Opened("x")) for _ in range(3)))
    manager = LogManager(Account, using="default")
    _, named = at_once(*(lambda: manager.acreate(Opened("x")) for _ in range(3)))

    assert kinds == ["alone"] * 3
    assert named == ["joined"]
    assert router.threads == {threading.get_ident()}


def test_large_appends_are_not_joined():
    many = [Deposited(n) for n in range(joined.MAX_EVENTS_OF_CALL + 1)]

    answers, kinds = at_once(
        lambda: accounts.acreate(*many),
        lambda: accounts.acreate(Opened("x" * joined.MAX_CHARACTERS_OF_CALL)),
        lambda: accounts.acreate(Opened("x"), metadata={"x": "x" * 200_000}),
        lambda: accounts.acreate(Opened("x")),
    )

    assert answers[0].version == 101
    assert isinstance(answers[1], InvalidEvent)
    assert sorted(kinds) == ["alone", "joined"]


def test_a_statement_has_a_limited_size_and_number_of_calls():
    requests = [AppendRequest(accounts.new_id(), [], None, None, "x" * 500_000) for _ in range(20)]

    assert len([*joined.choose(iter(requests))]) == 8
    few = [AppendRequest(accounts.new_id(), [], None, None, "") for _ in range(300)]
    assert len([*joined.choose(iter(few))]) == joined.MAX_CALLS


name: ContextVar[str] = ContextVar("name", default="nobody")


class Submitted(BaseRefresher):
    def __init__(self) -> None:
        self.jobs: list[tuple[str, int]] = []

    def submit(self, job: Any) -> None:
        self.jobs.append((name.get(), threading.get_ident()))


def test_refreshes_are_submitted_in_the_thread_and_in_the_callers_context():
    refresher = Submitted()
    manager = LogManager(Account, refresher=refresher, refresh_on_append=True)

    async def call(caller: str) -> None:
        name.set(caller)
        await manager.acreate(Opened(caller))

    _, kinds = at_once(*(lambda caller=caller: call(caller) for caller in "abc"))

    assert kinds == ["joined"]
    assert sorted(refresher.jobs) == [(each, threading.get_ident()) for each in "abc"]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda seconds: monkeypatch.setattr(joined, "HELD_PATIENCE", seconds)


def test_a_log_that_is_held_delays_its_own_calls_only(patience):
    patience(10_000)
    held, others = accounts.create(Opened("ada")), [accounts.create(Opened("x")) for _ in range(5)]

    async def main() -> list[LogState]:
        waiting = asyncio.create_task(accounts.aappend(held, Deposited(1)))
        states = others
        for _ in range(20):  # each goes on, while the log is held
            states = await asyncio.gather(
                *(accounts.aappend(each, Deposited(1)) for each in states)
            )
        assert not waiting.done()
        await asyncio.to_thread(holder.rollback)
        return [await waiting, *states]

    with elsewhere() as holder:
        holder.execute(
            "SELECT FROM eventlogs_eventlog WHERE id = %s FOR UPDATE", [held.log_id.uuid]
        )
        states = async_to_sync(main)()

    assert [each.version for each in states] == [2, *[21] * 5]


def test_a_call_whose_log_is_held_for_long_waits_as_a_plain_append_does(patience):
    patience(0)
    held, other = accounts.create(Opened("ada")), accounts.create(Opened("eve"))

    def let_go() -> None:
        until(a_session_waits)
        connection.close()
        holder.rollback()

    with elsewhere() as holder:
        holder.execute(
            "SELECT FROM eventlogs_eventlog WHERE id = %s FOR UPDATE", [held.log_id.uuid]
        )
        thread = threading.Thread(target=let_go)
        thread.start()
        answers, kinds = at_once(
            lambda: accounts.aappend(held, Deposited(1)),
            lambda: accounts.aappend(other, Deposited(1)),
        )
        thread.join()

    assert [each.version for each in answers] == [2, 2]
    assert kinds == ["joined", "alone"]


def test_calls_that_are_cancelled_at_random_are_stored_whole_or_not_and_harm_no_other():
    chance = random.Random(7)
    keys = [new_key() for _ in range(200)]

    async def main() -> list[Any]:
        tasks = [
            asyncio.create_task(accounts.acreate(Opened(key), Deposited(1), idempotency_key=key))
            for key in keys
        ]
        while not all(each.done() for each in tasks):
            chance.choice(tasks).cancel()
            await asyncio.sleep(0)
        return [*await asyncio.gather(*tasks, return_exceptions=True)]

    answers = async_to_sync(main)()
    # The thread may still work for cancelled calls: the next call waits for it.
    assert async_to_sync(accounts.aexists)(accounts.new_id()) is False

    assert {type(each) for each in answers} <= {LogState, asyncio.CancelledError}
    stored = {each.key: each for each in IdempotencyKey.objects.all()}
    assert EventLog.objects.count() == len(stored)
    assert Event.objects.count() == 2 * len(stored)
    for key, answer in zip(keys, answers, strict=True):
        if isinstance(answer, LogState):
            assert stored[key].log_id == answer.log_id.uuid
    # The key of each call shows its outcome.
    for key in keys:
        _, created = accounts.get_or_create(Opened(key), Deposited(1), idempotency_key=key)
        assert created is (key not in stored)


def test_codecs_may_not_ask_the_database_in_the_loop_but_in_the_thread(monkeypatch):
    codec = accounts._codecs[Opened]
    encode = type(codec).encode

    def asking(self: Any, event: Any, limit: int) -> Any:
        EventLog.objects.exists()
        return encode(self, event, limit)

    monkeypatch.setattr(type(codec), "encode", asking)

    answers, kinds = at_once(*(lambda: accounts.acreate(Opened("x")) for _ in range(3)))

    assert [each.version for each in answers] == [1, 1, 1]
    assert kinds == ["alone"] * 3


# aexecute


def deposit(account: Account, amount: int) -> Iterator[Deposited]:
    decided.append(account.balance)
    if amount:
        yield Deposited(amount)


decided: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_decided() -> None:
    decided.clear()


def test_executions_decide_alone_and_append_together():
    states = [accounts.create(Opened(f"{n}"), Deposited(n)) for n in range(10)]

    answers, kinds = at_once(
        *(lambda each=each: accounts.aexecute(each.log_id, deposit, 5) for each in states)
    )

    assert [each.version for each in answers] == [3] * 10
    assert sorted(decided) == [*range(10)]
    assert {*kinds} == {"joined"}
    assert len(kinds) < 10


def test_executions_on_one_log_all_succeed():
    log_id = accounts.create(Opened("ada")).log_id

    answers, _ = at_once(*(lambda: accounts.aexecute(log_id, deposit, 1) for _ in range(20)))

    assert sorted(each.version for each in answers) == [*range(2, 22)]
    assert accounts.reduce(log_id).aggregate.balance == 20


def test_an_execution_without_retries_decides_once():
    log_id = accounts.create(Opened("ada")).log_id

    answers, _ = at_once(
        *(lambda: accounts.aexecute(log_id, deposit, 1, retries=0) for _ in range(5))
    )

    assert [type(each) for each in answers].count(LogState) == 1
    assert [type(each) for each in answers].count(ConcurrentAppend) == 4
    assert decided == [0] * 5


def test_executions_without_events_and_failing_ones_keep_their_answers():
    state = accounts.create(Opened("ada"))

    def refuse(account: Account) -> None:
        raise ZeroDivisionError

    answers, _ = at_once(
        lambda: accounts.aexecute(state.log_id, deposit, 0),
        lambda: accounts.aexecute(state.log_id, refuse),
        lambda: accounts.aexecute(accounts.new_id(), deposit, 0),
        lambda: accounts.aexecute(state.log_id, deposit, amount=1, idempotency_key="k"),
        lambda: accounts.aexecute(str(state.log_id), deposit, amount=1, idempotency_key="k"),
    )

    assert answers[0] == state
    assert [type(each) for each in answers[1:3]] == [ZeroDivisionError, LogNotFound]
    assert answers[3] == answers[4]
    assert answers[3].version == accounts.version(state.log_id) == 2


def test_a_decider_has_the_context_of_its_call_and_may_ask_the_database():
    states = [accounts.create(Opened(f"{n}")) for n in range(3)]
    seen: list[tuple[str, int]] = []

    def decide(account: Account) -> Deposited:
        seen.append((name.get(), EventLog.objects.count()))
        name.set(f"decided by {name.get()}")
        return Deposited(1)

    async def call(state: LogState, caller: str) -> str:
        name.set(caller)
        await accounts.aexecute(state.log_id, decide)
        return name.get()

    answers, kinds = at_once(
        *(lambda s=s, c=c: call(s, c) for s, c in zip(states, "abc", strict=True))
    )

    assert sorted(seen) == [(each, 3) for each in "abc"]
    assert answers == [f"decided by {each}" for each in "abc"]
    assert {*kinds} == {"joined"}


def test_executions_in_a_callers_transaction_are_rolled_back_with_it():
    states = [accounts.create(Opened(f"{n}")) for n in range(3)]

    with transaction.atomic():
        answers, kinds = at_once(
            *(lambda each=each: accounts.aexecute(each.log_id, deposit, 5) for each in states)
        )
        transaction.set_rollback(True)

    assert [each.version for each in answers] == [2, 2, 2]
    assert kinds == ["alone"] * 3
    assert [accounts.version(each.log_id) for each in states] == [1, 1, 1]


def test_the_logs_append_that_a_subclass_overrides_is_called_by_all():
    manager = Quiet(Account)
    states = [manager.create(Opened(f"{n}")) for n in range(3)]

    at_once(
        lambda: manager.aget_or_append(states[0], Deposited(1), idempotency_key="a"),
        lambda: manager.aexecute(states[1].log_id, deposit, 1),
        lambda: manager.aappend(states[2], Deposited(1)),
    )

    assert manager.appended == 3


# EVENTLOGS["GROUP_COMMIT"] = "process"


@pytest.fixture
def process(settings: Any) -> Iterator[None]:
    settings.EVENTLOGS = {"GROUP_COMMIT": "process"}
    yield
    joined._apart.submit(connections.close_all).result()


async def as_a_request(call: Callable[[], Any]) -> Any:
    """Make a call as Django's ASGI handler does for a request: with its own connection."""
    async with ThreadSensitiveContext():
        try:
            return await call()
        finally:
            await sync_to_async(connections.close_all)()


@pytest.mark.usefixtures("process")
def test_requests_are_joined_in_a_thread_of_their_own(monkeypatch):
    states = [accounts.create(Opened(f"{n}")) for n in range(10)]
    groups: list[int] = []
    parameters = group_commit._parameters

    def counting(requests: Any) -> Any:
        groups.append(len(requests))
        return parameters(requests)

    monkeypatch.setattr(group_commit, "_parameters", counting)

    async def main() -> list[Any]:
        appends = (partial(accounts.aappend, each, Deposited(1)) for each in states)
        return [*await asyncio.gather(*map(as_a_request, appends))]

    answers = asyncio.run(main())

    assert [each.version for each in answers] == [2] * 10
    assert groups == [10]


@pytest.mark.usefixtures("process")
def test_a_request_with_a_transaction_open_is_not_joined():
    state, other = accounts.create(Opened("ada")), accounts.create(Opened("eve"))

    def begin() -> None:
        transaction.set_autocommit(False)

    async def with_transaction() -> LogState:
        await sync_to_async(begin)()
        appended = await accounts.aappend(state, Deposited(1))
        await sync_to_async(transaction.rollback)()
        await sync_to_async(transaction.set_autocommit)(True)
        return appended

    async def deposit_one() -> LogState:
        return await accounts.aappend(other.log_id, Deposited(1), expected_version=ANY)

    async def main() -> list[Any]:
        return [
            *await asyncio.gather(
                as_a_request(with_transaction),
                *(
                    as_a_request(
                        lambda: accounts.aappend(other.log_id, Deposited(1), expected_version=ANY)
                    )
                    for _ in range(20)
                ),
            )
        ]

    answers = asyncio.run(main())

    assert answers[0].version == 2
    assert (accounts.version(state.log_id), accounts.version(other.log_id)) == (1, 21)


def test_a_version_that_does_not_ask_the_request_is_found(process, monkeypatch):
    """The broken version of the test above."""
    monkeypatch.setattr(group_commit, "_is_alone", lambda connection: True)

    with pytest.raises(AssertionError):
        test_a_request_with_a_transaction_open_is_not_joined()


@pytest.mark.usefixtures("process")
@pytest.mark.django_db(transaction=False)
def test_calls_of_a_process_in_a_transaction_of_a_test_are_rolled_back_with_it():
    answers, kinds = at_once(*(lambda n=n: accounts.acreate(Opened(f"{n}")) for n in range(5)))

    assert {type(each) for each in answers} == {LogState}
    assert kinds == ["alone"] * 5


# Signals, and ends


class Deadline(Exception):
    """The error of a signal handler."""


def test_an_exception_of_a_signal_handler_ends_each_call_under_way():
    states = [accounts.create(Opened(f"{n}")) for n in range(2)]

    def ring() -> None:
        until(a_session_waits)
        connection.close()
        signal.raise_signal(signal.SIGALRM)

    def interrupt(*_: Any) -> None:
        raise Deadline

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with elsewhere() as holder:
            holder.execute("LOCK TABLE eventlogs_event")
            thread = threading.Thread(target=ring)
            thread.start()
            # Not watched: Django's cursors leave a connection broken.
            answers, _ = at_once(
                *(lambda each=each: accounts.aappend(each, Deposited(1)) for each in states),
                is_watched=False,
            )
            thread.join()
    finally:
        signal.signal(signal.SIGALRM, before)

    assert [type(each) for each in answers] == [Deadline] * 2
    assert [accounts.version(each.log_id) for each in states] == [1, 1]


def test_a_loop_may_end_while_its_statement_waits():
    states = [accounts.create(Opened(f"{n}")) for n in range(3)]

    async def main() -> None:
        tasks = [asyncio.create_task(accounts.aappend(each, Deposited(1))) for each in states]
        await asyncio.to_thread(look)
        assert not any(each.done() for each in tasks)

    def look() -> None:
        until(a_session_waits)
        connection.close()

    with elsewhere() as holder:
        holder.execute("LOCK TABLE eventlogs_event")
        asyncio.run(main())  # it cancels the tasks

    async def again() -> list[LogState]:
        return [
            *await asyncio.gather(
                *(
                    accounts.aappend(each.log_id, Deposited(1), expected_version=ANY)
                    for each in states
                )
            )
        ]

    answers = asyncio.run(again())  # behind the statement of the cancelled calls
    asyncio.run(sync_to_async(connections.close_all)())
    assert {each.version for each in answers} <= {2, 3}
    assert len({each.version for each in answers}) == 1  # all of the statement, or none


class Global:
    """A broken version: one context for all tasks."""

    value: Layer | None = None

    def get(self) -> Layer | None:
        return self.value

    def set(self, value: Layer | None) -> None:
        self.value = value


def deposit_one(account: Account) -> list[Deposited]:
    return [Deposited(1)]


def contexts_of_joined_appends() -> list[tuple[int, dict[str, Any]]]:
    """Append in tasks that have a context each; return their numbers and the stored metadata."""
    states = [accounts.create(Opened(f"{number}")) for number in range(12)]

    async def append(number: int) -> LogState:
        state, metadata = states[number], {"till": number}
        with event_context(number=number):
            await asyncio.sleep(0)
            if number % 3:
                return await accounts.aappend(state, Deposited(1), metadata=metadata)
            return await accounts.aexecute(state.log_id, deposit_one, metadata=metadata)

    answers, kinds = at_once(*(partial(append, number) for number in range(12)))

    assert set(kinds) == {"joined"}
    found = [Event.objects.for_log(each.log_id).get(index=1).metadata for each in answers]
    return list(enumerate(found))


def test_joined_appends_have_the_contexts_of_their_callers():
    found = contexts_of_joined_appends()

    assert found == [(number, {"number": number, "till": number}) for number in range(12)]


def test_a_global_context_of_joined_appends_is_detected(monkeypatch):
    broken = Global()
    for module in (of_context, of_logs):
        monkeypatch.setattr(module, "current", broken)

    found = contexts_of_joined_appends()

    assert found != [(number, {"number": number, "till": number}) for number in range(12)]


def test_a_call_with_rules_goes_apart_and_holds_up_no_other():
    members = Member.logs
    owner, state = members.create(Joined("a")), accounts.create(Opened("Ann"))
    others = [accounts.create(Opened(f"{n}")) for n in range(5)]

    answers, kinds = at_once(
        *(lambda other=other: accounts.aappend(other, Deposited(1)) for other in others),
        lambda: members.acreate(Joined("a")),
        lambda: members.acreate(Joined("b")),
        lambda: accounts.aappend(state, Deposited(1), also_expect=[owner]),
        lambda: accounts.aexecute(
            state.log_id, lambda _: Deposited(1), also_expect=[owner], expected_version=9
        ),
    )

    assert [each.version for each in answers[:5]] == [2] * 5
    assert isinstance(answers[5], NameTaken)
    assert async_to_sync(members.afind)("member.email", "b") == answers[6].log_id
    assert answers[7].version == 2
    assert isinstance(answers[8], ConcurrentAppend)
    assert "joined" in kinds


def test_the_joined_statement_leaves_calls_with_rules_out():
    log_id = accounts.new_id()
    rules = Rules([UniqueValue("account.owner", uuid4())])
    plain = AppendRequest(accounts.new_id(), encoded(1), 0, None, "{}")
    requests = [plain, AppendRequest(log_id, encoded(1), 0, None, "{}", None, rules)]

    answers = group_commit.append_group("default", requests)

    assert isinstance(answers[0], LogState)
    assert answers[1] is UNDECIDED
    assert group_commit.append_group("default", requests[1:]) == [UNDECIDED]
    assert not accounts.exists(log_id)
