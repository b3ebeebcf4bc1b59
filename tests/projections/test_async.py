"""Projections from async code: each method has an a-twin that does the same."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from eventlogs.projections import Projection, Reactor, ReductionProjection
from eventlogs.projections.base import RowProjection
from tests.accounts import Account, Deposited, Opened
from tests.projections.readmodels import Balances, Letters, balances, replayed
from tests.statements import sent


def asked_of_a_database(cls):
    """The public methods of a class that take ``using``, without their twins."""
    methods = {
        name: inspect.signature(each)
        for name, each in inspect.getmembers(cls, inspect.isroutine)
        if not name.startswith("_")
        and not hasattr(RowProjection, name)  # this method reads no table of ours
        and inspect.ismethod(getattr(cls, name))
    }
    methods = {name: found for name, found in methods.items() if "using" in found.parameters}
    return {name: found for name, found in methods.items() if name[1:] not in methods}


@pytest.mark.parametrize("cls", [Projection, ReductionProjection, Reactor])
def test_each_method_that_uses_the_database_has_a_twin_with_its_signature(cls):
    methods = asked_of_a_database(cls)

    assert {"catch_up", "lag", "wait_for", "parked", "waiting", "retry", "skip"} <= set(methods)
    for name, signature in methods.items():
        twin = inspect.signature(getattr(cls, f"a{name}"))
        assert list(twin.parameters.values()) == list(signature.parameters.values()), name


@pytest.mark.feed
@pytest.mark.usefixtures("tables", "declared")
class TestTwins:
    def test_the_twins_do_the_same_as_the_methods(self):
        states = [Account.logs.create(Opened("ada"), Deposited(number)) for number in range(3)]

        async def work():
            assert (await Balances.alag()).positions == 6
            assert not await Balances.await_for(states[-1].position, timeout=0)
            assert await Balances.acatch_up(strict=True) == 6
            assert await Balances.await_for(states[-1].position, timeout=5)
            assert await Balances.averify()
            assert await Balances.aparked() == await Balances.awaiting() == []
            assert await Balances.aretry() == 0
            assert not await Balances.askip(states[0].log_id)
            assert not await Balances.ais_rebuild_due()
            assert (await Letters.apass_over(dry_run=True)).events == 3
            await Balances.arequest_rebuild()
            return await Balances.arebuild()

        assert async_to_sync(work)() == 6
        assert balances() == replayed(*states)

    def test_await_for_does_not_block_the_database_thread_while_it_waits(self):
        state = Account.logs.create(Opened("ada"))

        async def work():
            waiting = asyncio.create_task(Balances.await_for(state.position, timeout=5))
            while not is_waiting.is_set():
                await asyncio.sleep(0)
            await sync_to_async(Balances.catch_up, thread_sensitive=True)()
            return await waiting

        with sent("eventlogs_checkpoint") as is_waiting:
            assert async_to_sync(work)()  # a blocked thread would have let the wait time out
