"""The a-twins of LogManager: the same signatures, the same answers."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, get_type_hints

import pytest
from asgiref.sync import async_to_sync

from eventlogs import ANY, ConcurrentAppend, IdempotentReplay, InvalidLogId, LogManager
from eventlogs.managers import EventLogManager
from eventlogs.models import EventLog
from tests.accounts import Account, Deposited, Opened, encoded, withdraw

# The public methods that touch no database, and so have no twin.
WITHOUT_TWIN = {"new_id", "parse_id"}


def public_methods(cls: type) -> dict[str, Callable[..., Any]]:
    return {
        name: method
        for name, method in inspect.getmembers(cls, inspect.isroutine)
        if not name.startswith("_")
    }


METHODS = public_methods(LogManager)
TWINS = {name: METHODS[f"a{name}"] for name in METHODS if f"a{name}" in METHODS}


def test_every_method_that_touches_the_database_has_a_twin():
    twins = {f"a{name}" for name in TWINS}

    assert set(METHODS) - set(TWINS) - twins == WITHOUT_TWIN
    assert set(TWINS) == {
        "create",
        "append",
        "get_or_create",
        "get_or_append",
        "execute",
        "reduce",
        "load",
        "stream",
        "exists",
        "find",
        "not_found",
        "version",
    }


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_takes_the_same_arguments(name):
    sync, twin = inspect.signature(METHODS[name]), inspect.signature(TWINS[name])

    assert [
        (parameter.name, parameter.kind, parameter.default, parameter.annotation)
        for parameter in twin.parameters.values()
    ] == [
        (parameter.name, parameter.kind, parameter.default, parameter.annotation)
        for parameter in sync.parameters.values()
    ]


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_the_same_return_type(name):
    sync = inspect.signature(METHODS[name]).return_annotation
    twin = inspect.signature(TWINS[name]).return_annotation

    assert twin == sync.replace("Iterator[", "AsyncIterator[")
    assert inspect.iscoroutinefunction(TWINS[name]) or inspect.isasyncgenfunction(TWINS[name])


@pytest.mark.parametrize("name", TWINS)
def test_optional_arguments_are_keyword_only(name):
    for parameter in inspect.signature(METHODS[name]).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_appending_by_rows_has_a_twin():
    sync = inspect.signature(EventLogManager.append)

    assert [*sync.parameters][:3] == ["self", "log_id", "events"]
    assert inspect.iscoroutinefunction(EventLogManager.aappend)
    assert (
        get_type_hints(EventLogManager.aappend)["return"]
        is (get_type_hints(EventLogManager.append)["return"])
    )


def test_all_methods_of_a_log_work_in_async_code(accounts):
    async def live() -> None:
        state = await accounts.acreate(
            Opened("ada"), Deposited(5), idempotency_key="created", metadata={"till": 7}
        )
        assert state.version == 2
        assert await accounts.aget_or_create(
            Opened("ada"), Deposited(5), idempotency_key="created"
        ) == (state, False)

        appended = await accounts.aappend(state, Deposited(7), idempotency_key="appended")
        assert appended.version == 3
        assert await accounts.aget_or_append(state, Deposited(7), idempotency_key="appended") == (
            appended,
            False,
        )
        _, was_appended = await accounts.aget_or_append(
            state.log_id, Deposited(1), idempotency_key="other", expected_version=ANY
        )
        assert was_appended

        executed = await accounts.aexecute(
            state.log_id, withdraw, amount=3, idempotency_key="executed", retries=1
        )
        assert executed.version == 5
        assert (await accounts.areduce(state.log_id)).aggregate == Account("ada", 10)
        assert (await accounts.areduce(state.log_id, version=2)).aggregate.balance == 5

        page = await accounts.aload(state.log_id, start=1, limit=2)
        assert [record.index for record in page] == [1, 2]
        assert page.next_start == 3
        raw = await accounts.aload(state.log_id, reverse=True, decode=False)
        assert raw[0].event == {"amount": 3}

        assert [record.index async for record in accounts.astream(state.log_id)] == [0, 1, 2, 3, 4]
        assert [
            record.event async for record in accounts.astream(state.log_id, start=4, decode=False)
        ] == [{"amount": 3}]
        assert await accounts.aexists(state.log_id)
        assert await accounts.aversion(state.log_id) == 5

    async_to_sync(live)()


def test_errors_reach_async_code(accounts):
    async def fail() -> None:
        state = await accounts.acreate(Opened("ada"), idempotency_key="k")
        with pytest.raises(IdempotentReplay):
            await accounts.acreate(Opened("ada"), idempotency_key="k")
        await accounts.aappend(state, Deposited(1))
        with pytest.raises(ConcurrentAppend):
            await accounts.aappend(state, Deposited(1))
        with pytest.raises(InvalidLogId):
            await accounts.aload("nonsense")
        with pytest.raises(InvalidLogId):
            [record async for record in accounts.astream("nonsense")]

    async_to_sync(fail)()


def test_a_long_log_is_streamed_in_async_code(accounts):
    state = accounts.create(*map(Deposited, range(4_100)))

    async def stream() -> list[int]:
        return [record.index async for record in accounts.astream(state.log_id)]

    assert async_to_sync(stream)() == list(range(4_100))


def test_rows_are_appended_from_async_code(db):
    async def append() -> int:
        log_id = Account.logs.new_id()
        state = await EventLog.objects.aappend(log_id, encoded(1, 2), expected_version=0)
        return state.version

    assert async_to_sync(append)() == 2


def test_streams_have_their_annotated_types(accounts, log_id):
    assert isinstance(accounts.stream(log_id), Iterator)
    assert isinstance(accounts.astream(log_id), AsyncIterator)
