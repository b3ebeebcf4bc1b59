"""Appends of async code that are joined into one statement are observed once for each call."""

from __future__ import annotations

import asyncio
import threading

import pytest
from asgiref.sync import async_to_sync
from django.db import connections

from eventlogs import ANY, ConcurrentAppend, InvalidEvent, LogManager
from eventlogs.observers import Append
from eventlogs.refreshers import BaseRefresher
from eventlogs.utils.batching import Batcher
from tests.accounts import Account, Deposited, Noted, Opened, withdraw
from tests.stores.test_joined import at_once
from tests.watching import Notes, watched

pytestmark = [
    pytest.mark.fence,  # with buckets, no appends are joined
    pytest.mark.postgresql,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]

accounts = Account.logs


def test_joined_appends_are_observed_once_for_each_call():
    states = [accounts.create(Opened(f"{n}")) for n in range(10)]

    with watched() as notes:
        answers, kinds = at_once(
            *(lambda state=state: accounts.aappend(state, Deposited(1)) for state in states),
            lambda: accounts.aexecute(states[0].log_id, withdraw, 0),
            lambda: accounts.acreate(Opened("new"), Deposited(2)),
        )

    assert kinds == ["joined"]
    assert notes.outcomes == ["appended"] * 11
    assert {each.state for each in notes.commits} == {*answers[:10], answers[11]}
    assert len(notes.commits) == 11
    assert {each.using for each in notes.commits} == {"default"}
    assert [each.index for each in notes.commits if each.is_create] == [0]
    assert all(each.seconds > 0 for each in notes.of(Append))


def test_a_call_that_is_stored_alone_after_all_is_observed_once():
    state = accounts.create(Opened("ada"))
    accounts.append(state, Deposited(1))

    with watched() as notes:
        answers, _ = at_once(
            lambda: accounts.aappend(state, Deposited(9)),
            lambda: accounts.acreate(Opened("eve")),
            lambda: accounts.acreate(Opened("bob")),
            lambda: accounts.aappend(state.log_id, Noted(float("nan")), expected_version=ANY),
        )

    assert [type(each) for each in answers[::3]] == [ConcurrentAppend, InvalidEvent]
    assert sorted(notes.outcomes) == ["appended", "appended", "conflict", "refused"]
    assert [each.log_id for each in notes.dropped] == [state.log_id]
    assert len(notes.begun) == len(notes.ended) + len(notes.dropped)


def test_a_joined_append_whose_end_is_not_known_has_failed(monkeypatch):
    lost = ConnectionResetError()
    monkeypatch.setattr(Batcher, "join", lambda *args, **kwargs: _raise(lost))

    with watched() as notes:
        answers, _ = at_once(
            *(lambda: accounts.acreate(Opened("ada")) for _ in range(3)), is_watched=False
        )

    failed = [each for each in notes.of(Append) if each.error is lost]
    assert len(failed) == answers.count(lost) > 0
    assert {each.outcome for each in failed} == {"failed"}
    assert len(notes.begun) == len(notes.ended)


async def _raise(error):
    raise error


def test_a_cancelled_call_has_failed():
    async def main():
        calls = [asyncio.ensure_future(accounts.acreate(Opened(f"{n}"))) for n in range(4)]
        while not notes.begun:
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    with watched() as notes:
        async_to_sync(main)()

    assert len(notes.begun) == len(notes.ended) + len(notes.dropped)


class Blocking(Notes):
    is_blocking = True

    def committed(self, append):
        super().committed(append)
        self.threads = {*vars(self).get("threads", ()), threading.get_ident()}
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT 1")


def test_only_an_observer_that_blocks_is_told_in_the_thread():
    class Quick(Blocking):
        is_blocking = False

        def committed(self, append):
            Notes.committed(self, append)
            self.threads = {*vars(self).get("threads", ()), threading.get_ident()}

    async def main():
        states = await asyncio.gather(*(accounts.acreate(Opened(f"{n}")) for n in range(9)))
        return threading.get_ident(), states

    with watched(Blocking()) as blocking, watched(Quick()) as quick:
        loop, _ = async_to_sync(main)()

    assert len(blocking.commits) == len(quick.commits) == 9
    assert loop not in blocking.threads
    assert loop in quick.threads


def test_refreshes_follow_joined_appends_that_are_observed():
    done = []

    class Refresher(BaseRefresher):
        def submit(self, job):
            done.append(job)

    manager = LogManager(Account, refresher=Refresher(), refresh_on_append=True)
    with watched() as notes:
        at_once(*(lambda: manager.acreate(Opened("ada")) for _ in range(5)))

    assert len(done) == len(notes.commits) == 5
