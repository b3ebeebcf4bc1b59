"""
Reducing with a cache: take what is kept, fold only what is newer, and prove it on the way.

The walk: get the entry, read the log from the last event that the entry has folded, compare
that event with the entry's proof, fold the rest. Two round trips, one to the cache and one to
the database. Without a usable entry the log is replayed from its start, by one reader at a
time: others who miss meanwhile take over its result, and prove it for themselves.

Why a cached reduction cannot be wrong stands in docs/caching.md.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from itertools import chain
from threading import Event, Lock
from typing import Any, Final, Generic, NamedTuple, TypeVar

from asgiref.sync import SyncToAsync
from django.db import connections

from eventlogs import conf
from eventlogs.aggregates import Aggregate, fold, nothing
from eventlogs.caches.backends import (
    BaseReductionCache,
    GuardedCache,
    NoReductionCache,
    Unreachable,
    cache_for,
)
from eventlogs.caches.counters import (
    ABSENT,
    BEHIND,
    FAILED,
    FOREIGN_HISTORY,
    UNREACHABLE,
    UNSTORABLE,
    UNWRITABLE,
    counters,
)
from eventlogs.caches.entries import Entry, EntryCodec, Unstorable, Untrusted
from eventlogs.events.codec import EventReader
from eventlogs.exceptions import LogNotFound
from eventlogs.ids import LogId
from eventlogs.policies import CachingPolicy, NeverCache, policy_from
from eventlogs.reductions.worker import worker
from eventlogs.stores.base import BaseStore
from eventlogs.values import Reduction, StoredEvent

logger = logging.getLogger("eventlogs.reductions")

A = TypeVar("A", bound=Aggregate)
Page = Sequence[StoredEvent]

LONG: Final = 500  # events from which on processes agree who replays a log
CLAIM: Final = 10.0  # seconds for which a replay keeps other processes waiting, unless renewed
RENEWAL: Final = 2.0  # seconds
IN_VAIN: Final = 10.0  # seconds for which nobody waits for a replay that will not be kept
LONGEST_WAIT: Final = 60.0  # seconds for another's replay; then this reader replays as well
SHORT_WAIT: Final = 0.5  # the same where others wait for the reader: for its transaction, say
FIRST_LOOK, LAST_LOOK = 0.01, 0.1  # seconds between looks for another process' result
NOTHING_KEPT: Final = b"none"  # instead of a claim: the replay is over, and there is no entry


class Kept(NamedTuple):
    """A job for the background: an entry on its way into the cache."""

    reducer: Reducer[Any]
    key: str
    entry: bytes
    replaces: bytes | None
    claimed: bool

    def __call__(self) -> None:
        self.reducer.keep(self.key, self.entry, replaces=self.replaces)
        if self.claimed:
            self.reducer.give_up_claim(self.key, kept=True)


class Reduced(NamedTuple, Generic[A]):
    """A reduction, and what is worth telling the cache about it."""

    reduction: Reduction[A]
    last: StoredEvent | None  # the last event folded in, where any was
    is_new: bool  # something was folded that the cache did not have
    is_kept: bool = False  # it is on its way into the cache already
    replaces: bytes | None = None  # what lies in the cache, and is wrong
    is_in_doubt: bool = False  # or may be wrong: whoever sees all that is committed can tell
    is_covered: bool = True  # the fingerprint is of all code that decoded its events


class Flight:
    """A replay that is under way in this process."""

    def __init__(self) -> None:
        self.landed = Event()
        self.entry: bytes | None = None
        self.was_in_vain = False  # there is a reduction, and it is not to be kept


class Flights:
    """The replays that are under way in this process, by key."""

    def __init__(self) -> None:
        self._reset()
        # In a fork nobody is there who would land them, or give the lock back.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = Lock()
        self._flights: dict[str, Flight] = {}
        self._in_vain: dict[str, float] = {}

    def join(self, key: str) -> tuple[Flight, bool]:
        """Return the flight of ``key``, and whether it is the caller who flies."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Flight()
            return flight, True

    def land(self, key: str, flight: Flight) -> None:
        """Let those who wait go on."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if flight.was_in_vain:
                if len(self._in_vain) >= 1_000:
                    self._in_vain.clear()
                self._in_vain[key] = time.monotonic() + IN_VAIN
            elif flight.entry is not None:
                self._in_vain.pop(key, None)
        flight.landed.set()

    def are_in_vain(self, key: str) -> bool:
        """Return whether the last flight brought nothing home that others could use."""
        return time.monotonic() < self._in_vain.get(key, 0.0)


flights: Final = Flights()

_is_flying: ContextVar[bool] = ContextVar("eventlogs_is_flying", default=False)
"""Whether the code that runs is called by a replay that others may wait for."""

_is_asked: ContextVar[bool] = ContextVar("eventlogs_is_asked", default=False)
"""Whether the code that runs is called by a caching policy, which was asked about a reduction."""


class Reducer(Generic[A]):
    """Reduce the logs of one aggregate class, kept in one database, through one cache."""

    def __init__(
        self,
        aggregate: type[A],
        reader: EventReader,
        using: str,
        *,
        cache: str | BaseReductionCache | None = None,
        policy: CachingPolicy | None = None,
    ) -> None:
        self.aggregate = aggregate
        self._reader = reader
        self._codec = EntryCodec(aggregate, using)
        self._cache = cache
        self._policy = policy
        self._complained = False

    @property
    def cache(self) -> GuardedCache:
        """The cache: the manager's own, or that of the EVENTLOGS setting."""
        return cache_for(self._cache)

    @property
    def policy(self) -> CachingPolicy:
        """The caching policy: the manager's own, or that of the EVENTLOGS setting."""
        return policy_from(conf.caching_policy()) if self._policy is None else self._policy

    @property
    def is_caching(self) -> bool:
        """Return whether reductions may be in the cache at all."""
        if isinstance(self.cache.cache, NoReductionCache) or isinstance(self.policy, NeverCache):
            return False
        if not self._codec.is_possible:
            if why := self._codec.why_unknown:
                self._complain(why)
            return False
        return True

    def key(self, log_id: LogId) -> str:
        """Return the key of a log's entry."""
        return self._codec.key(log_id)

    def covers(self, rows: Page) -> bool:
        """Return whether what these events were folded into may be kept."""
        return self._codec.covers(rows)

    # Reading

    def replay(self, log_id: LogId, store: BaseStore) -> Reduced[A]:
        """Fold all of a log's events; the cache is not looked at. Raise LogNotFound."""
        return self._fold(nothing(self.aggregate, log_id), store.pages(log_id))

    def reduce(
        self,
        log_id: LogId,
        store: BaseStore,
        *,
        write: Callable[[str, Kept], bool],
        may_wait: bool,
        is_conclusive: bool,
    ) -> Reduced[A]:
        """
        Fold a log's events onto what is cached of them.

        ``write`` takes entries on their way into the cache. ``may_wait`` lets the caller wait
        for another's replay of the same log: up to a minute, or half a second inside of a
        transaction or before a deadline. ``is_conclusive`` says that ``store`` shows all
        that is committed: only then is an entry that it does not prove a wrong one. Raise
        LogNotFound, and what decoding and ``apply`` raise; nothing because of the cache.
        """
        key = self._codec.key(log_id)
        try:
            raw = self._pending(key) or self.cache.get(key)
        except Unreachable:
            self._count("miss", UNREACHABLE)
            return self.replay(log_id, store)
        found, reason, wrong = self._prove(raw, log_id, store)
        if found is not None:
            self._count(*(("miss", BEHIND) if found.is_new else ("hit",)))
            return found
        self._count("miss", reason)
        wait = _patience() if may_wait else 0.0
        if reason == FOREIGN_HISTORY and not is_conclusive:
            reduced = self._replay_once(key, log_id, store, write, None, wait)
            return reduced._replace(is_in_doubt=True)
        return self._replay_once(key, log_id, store, write, wrong, wait)

    def entry_of(self, reduced: Reduced[A]) -> bytes | None:
        """
        Return the entry to keep of a reduction, or None where none is to be kept.

        What a policy reduces itself is not kept: to ask it about that would not come to an end.
        """
        if reduced.last is None or _is_asked.get():
            return None
        asked = _is_asked.set(True)
        try:
            if not reduced.is_covered:
                raise Unstorable(
                    "a log holds an event whose class or upcaster is in a module that the "
                    "aggregate's modules do not import"
                )
            if not self.policy.should_cache(reduced.reduction):
                return None
            return self._codec.encode(reduced.reduction, reduced.last)
        except Unstorable as error:
            self._count("error", UNSTORABLE)
            self._complain(str(error))
        except (Exception, SystemExit) as error:  # a user's policy may raise whatever it likes
            self._count("error", FAILED)
            logger.error(
                "The caching policy of %s failed: %s",
                self.aggregate.__qualname__,
                type(error).__name__,
            )
        finally:
            _is_asked.reset(asked)
        return None

    def cached(self, log_id: LogId, store: BaseStore, *, upto: int) -> Reduction[A] | None:
        """
        Return what is cached of a log, as of the version that it was cached at.

        None where there is nothing, where it is newer than ``upto``, or where the log does not
        prove it. Nothing is folded, and nothing that happens to the cache is an error.
        """
        key = self._codec.key(log_id)
        raw = self._pending(key) or self._look(key) if self.is_caching else None
        if raw is None:
            return None
        try:
            entry = self._codec.decode(raw, log_id)
        except Untrusted:
            return None
        head = entry.head
        if head.version > upto:
            return None
        first = store.since(log_id, start=head.version - 1, limit=1)
        if not entry.is_proven_by(first[0] if first else None):
            return None
        return Reduction(log_id, head.version, entry.aggregate, head.reduced_at, head.position)

    # Writing

    def keep(self, key: str, entry: bytes, *, replaces: bytes | None = None) -> bool:
        """Write an entry, unless a newer one is there; return whether it was written."""
        try:
            written = self.cache.set(key, entry, replaces=replaces, timeout=conf.cache_timeout())
        except Unreachable:
            self._count("error", UNWRITABLE)
            return False
        if written:
            self._count("refresh")
        return written

    def refresh(self, log_id: LogId, store: BaseStore) -> bool:
        """
        Bring what is cached of a log up to date, and return whether that took writing.

        ``store`` must show all that is committed. Raise Unreachable where the cache cannot
        be read, and what decoding and ``apply`` raise.
        """
        key = self._codec.key(log_id)
        raw = self.cache.get(key)
        found, _, wrong = self._prove(raw, log_id, store)
        if found is None:
            try:
                found = self._replay_once(key, log_id, store, _at_once, wrong, SHORT_WAIT)
            except LogNotFound:
                if raw is not None:
                    self.cache.delete(key)  # of a log that was erased
                return raw is not None
            if found.is_kept:
                return True
        if not found.is_new:
            return False
        entry = self.entry_of(found)
        return entry is not None and self.keep(key, entry, replaces=found.replaces)

    def versions(self, log_ids: Iterable[LogId]) -> dict[LogId, int]:
        """
        Return which version is cached of each of these logs, as far as one is.

        It is what the entries say of themselves, signed by us, but not proven by the logs.
        Raise Unreachable.
        """
        keys = {self._codec.key(log_id): log_id for log_id in log_ids}
        versions = {}
        for key, raw in self.cache.get_many(keys).items():
            try:
                versions[keys[key]] = self._codec.decode(raw, keys[key]).head.version
            except Untrusted:
                continue
        return versions

    # Inside

    def _prove(
        self, raw: bytes | None, log_id: LogId, store: BaseStore
    ) -> tuple[Reduced[A] | None, str, bytes | None]:
        """Return the reduction from an entry; or None, the reason, and the entry if wrong."""
        if raw is None:
            return None, ABSENT, None
        try:
            entry = self._codec.decode(raw, log_id)
        except Untrusted as error:
            return None, error.reason, raw
        found = self._fold_onto(entry, log_id, store)
        return found, FOREIGN_HISTORY, raw

    def _fold_onto(self, entry: Entry[A], log_id: LogId, store: BaseStore) -> Reduced[A] | None:
        """Fold what is newer onto an entry, or return None where the log does not prove it."""
        head = entry.head
        # From the last event that the entry knows: the one that proves it.
        pages = store.pages_since(log_id, start=head.version - 1)
        first = next(pages, ())
        if not entry.is_proven_by(first[0] if first else None):
            return None
        start = Reduction(log_id, head.version, entry.aggregate, head.reduced_at, head.position)
        if len(first) == 1:
            return Reduced(start, None, is_new=False)
        found = self._fold(start, chain((first[1:],), pages))
        # The fold may have imported a module for the first time, and that may be newer code.
        return found if self._codec.fingerprint == head.fingerprint else None

    def _fold(self, start: Reduction[A], pages: Iterable[Page]) -> Reduced[A]:
        reduction, last, is_covered = start, None, True
        for page in pages:
            reduction = fold(reduction, self._reader.records(page))
            last = page[-1]
            is_covered = is_covered and self.covers(page)
        if not reduction.version:
            raise LogNotFound(start.log_id)
        is_new = reduction.version > start.version
        return Reduced(reduction, last, is_new, is_covered=is_covered)

    def _replay_once(
        self,
        key: str,
        log_id: LogId,
        store: BaseStore,
        write: Callable[[str, Kept], bool],
        wrong: bytes | None,
        wait: float,
    ) -> Reduced[A]:
        # Code that a replay calls (a policy, an apply) must not wait for a replay: it may be that
        # very one, or one whose own code waits for this one.
        if not wait or _is_flying.get() or flights.are_in_vain(key):
            return self.replay(log_id, store)._replace(replaces=wrong)
        flight, is_mine = flights.join(key)
        if not is_mine:
            flight.landed.wait(wait)
            found, _, _ = self._prove(flight.entry, log_id, store)
            return found or self.replay(log_id, store)
        flying = _is_flying.set(True)
        try:
            return self._fly(flight, key, log_id, store, write, wrong, wait)
        finally:
            _is_flying.reset(flying)
            flights.land(key, flight)

    def _fly(
        self,
        flight: Flight,
        key: str,
        log_id: LogId,
        store: BaseStore,
        write: Callable[[str, Kept], bool],
        wrong: bytes | None,
        wait: float,
    ) -> Reduced[A]:
        # The flight before this one may have landed after this reader's look at the cache.
        landed = self._pending(key) or self._look(key)
        if landed is not None and landed != wrong:
            found, _, _ = self._prove(landed, log_id, store)
            if found is not None:
                flight.entry = landed
                return found
        pages: Iterator[Page] = store.pages(log_id)
        first = next(pages, ())
        claimed = False
        if len(first) >= LONG and self.cache.shared:
            claimed, raw = self._claim(key, wrong, wait)
            if raw is not None:
                found, _, _ = self._prove(raw, log_id, store)
                if found is not None:
                    flight.entry = raw
                    return found
        kept = False
        try:
            pages = chain((first,) if first else (), pages)
            if claimed:
                pages = self._renewing(key, pages)
            reduced = self._fold(nothing(self.aggregate, log_id), pages)
            flight.entry = self.entry_of(reduced)
            if flight.entry is None:
                flight.was_in_vain = True
                return reduced._replace(is_new=False)  # nothing that is worth keeping
            kept = self._write(write, Kept(self, key, flight.entry, wrong, claimed))
            return reduced._replace(replaces=wrong, is_kept=kept)
        finally:
            if claimed and not kept:
                self.give_up_claim(key, kept=False)

    def _write(self, write: Callable[[str, Kept], bool], job: Kept) -> bool:
        try:
            return write(job.key, job)
        except (Exception, SystemExit) as error:  # no thread to be had, or a user's refresher
            self._count("error", FAILED)
            logger.error(
                "A reduction of %s could not be kept: %s",
                self.aggregate.__qualname__,
                type(error).__name__,
            )
            return False

    def _pending(self, key: str) -> bytes | None:
        job = worker.pending(key)
        return job.entry if isinstance(job, Kept) and job.reducer.cache is self.cache else None

    def _look(self, key: str) -> bytes | None:
        try:
            return self.cache.get(key)
        except Unreachable:
            return None

    def _claim(self, key: str, wrong: bytes | None, wait: float) -> tuple[bool, bytes | None]:
        """Return whether this process is to replay for all, or else what another one kept."""
        token = secrets.token_bytes(8)
        until = time.monotonic() + wait
        pause = FIRST_LOOK
        try:
            while time.monotonic() < until:
                is_mine = self.cache.add(_claim_key(key), token, timeout=CLAIM)
                raw = self.cache.get(key)
                if raw is not None and raw != wrong:
                    if is_mine:
                        self.cache.delete(_claim_key(key))
                    return False, raw
                if is_mine:
                    return True, None
                if self.cache.get(_claim_key(key)) == NOTHING_KEPT:
                    return False, None
                time.sleep(pause)
                pause = min(pause * 1.5, LAST_LOOK)
        except Unreachable:
            pass
        return False, None

    def _renewing(self, key: str, pages: Iterable[Page]) -> Iterator[Page]:
        renewed = time.monotonic()
        for page in pages:
            yield page
            if time.monotonic() - renewed > RENEWAL:
                renewed = time.monotonic()
                try:
                    self.cache.replace(_claim_key(key), b"renewed", timeout=CLAIM)
                except Unreachable:
                    continue

    def give_up_claim(self, key: str, *, kept: bool) -> None:
        """Let other processes go on: to the entry, or to replays of their own."""
        try:
            if kept:
                self.cache.delete(_claim_key(key))
            else:
                self.cache.replace(_claim_key(key), NOTHING_KEPT, timeout=CLAIM)
        except Unreachable:
            pass  # it runs out by itself

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning(
                "Reductions of %s cannot be cached: %s.", self.aggregate.__qualname__, why
            )

    def _count(self, outcome: str, reason: str = "") -> None:
        counters.count(outcome, reason, aggregate=self.aggregate)


def _patience() -> float:
    """
    Return for how many seconds the caller may wait for another's replay.

    A transaction that waits keeps its locks, so that others wait for it. A handler of a
    projection, or any other code with a timer, would use its time up, and be counted as failed.
    And the thread that asgiref runs the synchronous code of all coroutines in (outside of
    requests, which have one each) would keep all of them waiting.
    """
    in_transaction = any(
        each.in_atomic_block or (each.connection is not None and not each.autocommit)
        for each in connections.all(initialized_only=True)
    )
    has_deadline = hasattr(signal, "getitimer") and any(signal.getitimer(signal.ITIMER_REAL))
    is_shared = (
        hasattr(SyncToAsync.threadlocal, "main_event_loop")
        and SyncToAsync.thread_sensitive_context.get(None) is None
    )
    return SHORT_WAIT if in_transaction or has_deadline or is_shared else LONGEST_WAIT


def _claim_key(key: str) -> str:
    return f"{key}.claim"


def _at_once(key: str, job: Kept) -> bool:
    job()
    return True
