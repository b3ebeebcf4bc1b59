"""
Appends of async code that wait at the same time, joined into one statement and one commit.

``aappend``, ``acreate`` and the like use this module. It joins the calls of one event loop whose
appends would use the same database connection; the thread of sync_to_async decides which one that
is. A call that is alone appends as it does without this module. So does a call

- of a manager with a store of its own, or whose database a router chooses: routers are the
  project's code, and are asked in the thread;
- whose log type has inline projections: they run their own queries in the append's transaction;
- in the layout with buckets, where an open transaction would hold all of them back;
- with more than 100 events, or with more than 500,000 characters of data and metadata;
- that has rules about other logs: a unique value, or states that it also expects;
- that finds a transaction open in the thread: it belongs to a caller;
- that was not stored together with the others, for whatever reason: alone it gets its own answer.

With EVENTLOGS["GROUP_COMMIT"] = "process", all calls of one event loop are joined, whatever
connection they would use, if that one has no transaction open. They are stored over one more
connection. Only the project knows whether connections are interchangeable: a SET ROLE, for example,
cannot be seen here.

Events are encoded in the loop's thread, in the caller's context. The user of that context is looked
up before, in the thread, once in a request. To get the AppendRequest, the sync method itself is
called with a store that returns it (``Note``): no logic is written twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from uuid import UUID

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DEFAULT_DB_ALIAS, router

from eventlogs import conf
from eventlogs.context import look_up
from eventlogs.stores import GroupCommit, group_commit_for, participants
from eventlogs.stores.base import HELD, AppendRequest, BaseStore
from eventlogs.utils.batching import Batcher, batcher_of, has_thread
from eventlogs.values import LogState

MAX_CALLS: Final = 200  # of one statement
MAX_EVENTS: Final = 2_000  # of one statement
MAX_CHARACTERS: Final = 4_000_000  # of one statement's data
MAX_EVENTS_OF_CALL: Final = 100
MAX_CHARACTERS_OF_CALL: Final = 500_000

# Another transaction may hold the log of a call. The call then tries again for this many seconds,
# before it waits for the log in the thread, where the calls behind it wait as well.
HELD_PATIENCE = 5.0
FIRST_PAUSE: Final = 0.001  # seconds between two attempts, doubled each time, with full jitter
LONGEST_PAUSE: Final = 0.05  # seconds


def _call(function: Callable[[], bool]) -> bool:
    return function()


_in_thread: Final = sync_to_async(_call, thread_sensitive=True)

# For appends of several requests that have a connection each: one thread, with its own connection.
_apart = ThreadPoolExecutor(1, "eventlogs-group-commit")


def _make_apart_again() -> None:
    global _apart
    _apart = ThreadPoolExecutor(1, "eventlogs-group-commit")


os.register_at_fork(after_in_child=_make_apart_again)  # threads do not pass a fork


class Note:
    """A store that stores nothing: its ``append`` returns the request."""

    using: Final = None
    keeps_rules: Final = True

    def append(self, request: AppendRequest) -> AppendRequest:
        """Return the request."""
        return request


def group_commit_of(
    log_type: str, *, using: str | None, store: BaseStore | None
) -> GroupCommit | None:
    """Return how the appends of a manager are joined, or None if they must not be."""
    if store is not None or not conf.group_commit() or conf.has_buckets():
        return None
    if participants.registered and participants.participants_of(log_type):
        return None
    if using is None:
        if router.routers:
            return None
        using = DEFAULT_DB_ALIAS
    return group_commit_for(using)


async def append_joined(
    group_commit: GroupCommit | None,
    request_of: Callable[[], Coroutine[Any, Any, Any]],
    alone: Callable[[], Coroutine[Any, Any, Any]],
    stored: Callable[[LogState], Coroutine[Any, Any, None]],
) -> Any:
    """
    Do what a method of a LogManager does that ends with one append.

    ``request_of`` calls it with a Note as its store, and may find the final state instead;
    ``alone`` calls it as usual, in the thread; ``stored`` does what is to be done after an append
    that was joined.
    """
    if group_commit is None:
        return await alone()
    is_apart = conf.group_commit() == "process"
    if is_apart:
        batcher = batcher_of(group_commit.append_apart, choose, executor=_apart)
    else:
        batcher = batcher_of(group_commit.append, choose)
    if batcher is None:
        return await alone()
    try:
        is_first = batcher.callers == 1
        if await batcher.is_alone():
            return await alone()
        # A thread that was not used yet has no transaction.
        if is_apart and has_thread() and not await _in_thread(group_commit.has_no_transaction):
            return await alone()
        await look_up()
        try:
            answer = await request_of()
        except SynchronousOnlyOperation:  # a codec that asks the database
            return await alone()
        if isinstance(answer, LogState):
            return answer
        request, *rest = (answer,) if isinstance(answer, AppendRequest) else answer
        state = await _joined(batcher, request, is_first)
        if state is None:
            return await alone()
    finally:
        batcher.leave()
    await stored(state)
    return (state, *rest) if rest else state


async def _joined(
    batcher: Batcher[AppendRequest, Any], request: AppendRequest, is_first: bool
) -> LogState | None:
    """Store a request together with others; return None if it has to be stored alone."""
    events = request.events
    if request.rules is not None:
        return None
    if len(events) > MAX_EVENTS_OF_CALL or _characters(request) > MAX_CHARACTERS_OF_CALL:
        return None
    until = time.monotonic() + HELD_PATIENCE
    pause = FIRST_PAUSE
    while True:
        state = await batcher.join(request, is_first=is_first)
        if state is not HELD or time.monotonic() > until:
            return state if isinstance(state, LogState) else None
        is_first = False
        await asyncio.sleep(random.uniform(0, pause))  # jitter
        pause = min(2 * pause, LONGEST_PAUSE)


def choose(requests: Iterator[AppendRequest]) -> Iterator[bool]:
    """
    Yield for each waiting request, in order, whether it goes with the next statement.

    No two requests with one key do. The later one waits, and so do those behind it that have its
    log. Later requests of a log that expect a version are taken too: they cannot succeed in this
    statement (UNDECIDED), and are tried alone after it.
    """
    logs: set[UUID] = set()
    waiting: set[UUID] = set()  # logs of requests that wait
    keys: set[tuple[str, str]] = set()
    calls = events = characters = 0
    for request in requests:
        log, key = request.log_id.uuid, request.idempotency_key
        claim = None if key is None else (request.log_id.log_type, key)
        is_taken = (
            log not in waiting
            and (claim is None or claim not in keys)
            and (log not in logs or request.expected_version is not None)
        )
        if claim is not None:
            keys.add(claim)
        if is_taken:
            calls += 1
            events += len(request.events)
            characters += _characters(request)
            if calls > 1 and (events > MAX_EVENTS or characters > MAX_CHARACTERS):
                return
            logs.add(log)
        else:
            waiting.add(log)
        yield is_taken
        if calls == MAX_CALLS:
            return


def _characters(request: AppendRequest) -> int:
    # Metadata is stored with each of the events, and sent once.
    return len(request.metadata) + sum([len(event.data) for event in request.events])
