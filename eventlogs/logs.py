"""
LogManager, the main entry point: it creates, appends to, reduces and reads the logs of one class.

``EventLog.objects`` works with rows, a ``LogManager`` with your classes.

``append`` encodes the events, passes them to the store (one call; one statement in PostgreSQL)
and returns the LogState. ``reduce`` reads the cached entry, folds the store's newer events into
it and returns the Reduction. What has to be written to the cache afterwards is one small job; it
is submitted to the refresher after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from django.db import connections, router, transaction
from django.utils import timezone

from eventlogs import conf
from eventlogs.aggregates import ANY, Aggregate, Anything, fold
from eventlogs.caches.backends import BaseReductionCache
from eventlogs.caches.counters import DROPPED, counters
from eventlogs.conf import (
    MAX_ALSO_EXPECTED,
    MAX_BATCH,
    MAX_KEY_LENGTH,
    MAX_PAGE_SIZE,
    MAX_POSITION,
    MAX_VERSION,
)
from eventlogs.context import current
from eventlogs.deciders import (
    Decider,
    check_decider,
    check_target,
    decided,
    kind_of,
    why_no_event,
)
from eventlogs.events import validation
from eventlogs.events.codec import (
    EncodedEvent,
    EventReader,
    codec_for,
    encode_metadata,
)
from eventlogs.events.unique import Unfit, unique_value, values_of
from eventlogs.events.unique_values import Values, as_values, by_scope
from eventlogs.exceptions import (
    ConcurrentAppend,
    EventLogError,
    IdempotencyKeyReused,
    IdempotencyKeyUndecided,
    IdempotentReplay,
    InvalidEvent,
    InvalidIdempotencyKey,
    InvalidLogId,
    LogNotFound,
    UndecodableEvent,
    UnknownEventType,
    VersionNotReached,
)
from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.pages import EventPage
from eventlogs.policies import CachingPolicy
from eventlogs.reductions.reader import ReductionReader, Refresh
from eventlogs.reductions.writes import CacheWrite
from eventlogs.refreshers import BaseRefresher, submit
from eventlogs.stores import BaseStore, Rules
from eventlogs.stores.base import STREAM_PAGE
from eventlogs.stores.joined import Note, append_joined, group_commit_of
from eventlogs.stores.keyed_reads import KeyedReads
from eventlogs.stores.retries import given_up
from eventlogs.stores.turns import Contended
from eventlogs.utils.bounds import check_int
from eventlogs.utils.twins import AsyncIteratorTwin, AsyncTwin, in_thread
from eventlogs.values import EventRecord, LogState, Reduction

__all__ = ["LogManager"]

A = TypeVar("A", bound=Aggregate)

# Limits on the cache jobs that wait for one commit: they hold their entries in memory.
MAX_JOBS: Final = 1_000
MAX_JOBS_BYTES: Final = 16_000_000

Expectation = LogState | Reduction[Any]


async def _join(
    method: Callable[..., Any], owner: LogManager[Any], args: tuple[Any, ...], kwargs: Any
) -> Any:
    """Run an async method that ends with one append, joined with others if possible."""

    async def request() -> Any:
        return method(owner._noting(), *args, **kwargs)

    async def alone() -> Any:
        return await in_thread(owner, method.__name__, args, kwargs)

    return await owner._append_joined(request, alone)


async def _join_execution(
    method: Callable[..., Any], owner: LogManager[Any], args: tuple[Any, ...], kwargs: Any
) -> Any:
    """
    Run ``aexecute``: reduce and decide in the thread, then join the append with others.

    If the joined append does not store the events, ``execute`` continues in the thread with this
    decision. So it calls the decider, and counts conflicts, as often as it does without joining.
    """
    decision: list[Any] = []

    def note(state: LogState, *events: Any, **options: Any) -> LogState:
        decision[:] = state, events, options
        return state

    async def request() -> Any:
        deciding = owner._copy(append=note, _contended=Contended())
        state = await in_thread(deciding, "execute", args, kwargs)
        if not decision:
            return state
        state, events, options = decision
        return LogManager.append(owner._noting(), state, *events, **options)

    async def alone() -> Any:
        manager = owner
        if decision:
            first = iter([tuple(decision[:2])])
            manager = owner._copy(
                _decision=lambda *again: next(first, None) or owner._decision(*again)
            )
        return await in_thread(manager, "execute", args, kwargs)

    if args and _is_contended(owner, args[0]):  # it takes turns, with the log locked
        return await alone()
    return await owner._append_joined(request, alone)


def _is_contended(owner: LogManager[Any], log_id: Any) -> bool:
    try:
        return LogId.parse(log_id) in owner._contended
    except InvalidLogId:
        return False  # ``execute`` raises it


class LogManager(Generic[A]):
    """
    The logs of one aggregate class, e.g. ``Payment.logs``.

    ``using`` is a database alias; without it, Django's routers choose the databases to write to
    and to read from (inside a transaction, reads use the database that is written to). ``store``
    is a BaseStore to use instead of the database's own.

    ``cache`` is an alias in CACHES or a BaseReductionCache, ``caching_policy`` a CachingPolicy,
    ``refresher`` a BaseRefresher, the dotted path to one, or a dict of "BACKEND" and "OPTIONS",
    ``refresh_on_append`` a bool; each overrides the key of that name in the EVENTLOGS setting.
    The reductions of a manager with its own store, cache object or policy are always refreshed
    in this process: a worker does not know them.

    Managers hold no state of a log, so threads may share them. Every method that uses the
    database has an async twin, with an ``a`` before its name.
    """

    def __init__(
        self,
        aggregate: type[A],
        *,
        using: str | None = None,
        store: BaseStore | None = None,
        cache: str | BaseReductionCache | None = None,
        caching_policy: CachingPolicy | None = None,
        refresher: str | Mapping[str, Any] | BaseRefresher | None = None,
        refresh_on_append: bool | None = None,
    ) -> None:
        self.aggregate = aggregate
        self.log_type = aggregate.log_type
        self.using = using
        self._store = store
        self._cache = cache
        self._policy = caching_policy
        self._refresher = refresher
        self._refresh_on_append = refresh_on_append
        self._reduction_readers: dict[str, ReductionReader[A]] = {}
        self._contended = Contended()
        self._codecs = {each.cls: codec_for(each) for each in aggregate.event_types}
        self._reader = EventReader(aggregate.event_types)
        # Only the classes that have unique fields: of most aggregates, none.
        self._unique = {cls: codec.unique for cls, codec in self._codecs.items() if codec.unique}
        self._scopes = by_scope(unique for each in self._unique.values() for _, unique in each)

    def __repr__(self) -> str:
        return f"<LogManager of {self.aggregate.__qualname__} logs>"

    # Ids

    def new_id(self, *, at: datetime | None = None) -> LogId:
        """
        Return a new log id. It is made in this process, without a query.

        ``at`` is the id's time, for an entity that began earlier; see ``LogId.new``, also for the
        errors.
        """
        return LogId.new(self.log_type, at=at)

    def parse_id(self, log_id: LogId | str) -> LogId:
        """
        Return ``log_id``, a LogId or its text, as a LogId of this manager's log type.

        Raise InvalidLogId for any other value.
        """
        if not isinstance(log_id, LogId):
            log_id = LogId.parse(log_id)
        if log_id.log_type != self.log_type:
            raise InvalidLogId(
                f"{log_id} is the id of a {log_id.log_type} log, not of a {self.log_type} "
                f"log. Pass it to the LogManager of its own log type.",
                expected_type=self.log_type,
            )
        return log_id

    # Appending

    def create(
        self,
        event: Any,
        *more: Any,
        log_id: LogId | str | None = None,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        also_expect: Sequence[Expectation] = (),
    ) -> LogState:
        """
        Create a log with its first events, 1 to 10,000, and return its state.

        Without ``log_id``, a new id is made. ``metadata`` is a dict of JSON values that is
        stored with each event, together with that of the ``event_context()`` or request around the
        call, whose names it overrides. A retry with the same ``idempotency_key`` (1 to 255
        characters) finds the log that the first call created, whatever id it passes.

        ``also_expect`` are states of other logs: see ``append``. A value of an event's ``Unique``
        field is claimed for the log: see ``eventlogs.Unique``.

        Raise InvalidLogId for an id of another log type, LogAlreadyExists if the log has events,
        NameTaken if a unique value belongs to another log,
        IdempotentReplay if this call was done before with this key, IdempotencyKeyReused if the
        key belongs to another call, InvalidIdempotencyKey for a key that cannot be stored and
        InvalidEvent for data that cannot be stored. Nothing is stored then, and the caller's
        transaction stays usable. TransactionMustRetry: the database aborted the caller's
        transaction; run it again from its start. ProjectionFailed: an inline projection could
        not apply an event; nothing is stored, and the transaction stays usable.

        If classes have changed since the first call (a new field with a default, a new name with
        an alias, a new version with an upcaster), the stored events are decoded with the current
        classes and compared. Raise IdempotencyKeyUndecided if they cannot be decoded.
        """
        log_id = self.new_id() if log_id is None else self.parse_id(log_id)
        return self._store_events(
            log_id, (event, *more), 0, None, idempotency_key, metadata, also_expect
        )

    def append(
        self,
        to: Expectation | LogId | str,
        *events: Any,
        expected_version: int | Anything | None = None,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        also_expect: Sequence[Expectation] = (),
    ) -> LogState:
        """
        Append events to a log, all or none, and return its new state.

        ``to`` is a LogState or Reduction, whose version and position are expected, or a log
        id; with an id, ``expected_version`` is required: a version, or ANY for no expectation.

        ``also_expect`` are LogStates or Reductions of other logs, of any log type, at most 100.
        They must be the current ones when the events are stored; an append to one of these logs
        waits until the transaction ends. A value of an event's ``Unique`` field is claimed for
        the log: see ``eventlogs.Unique``.

        Raise ConcurrentAppend if the log is at another version, or at the same version with other
        events (after a restore or failover that lost events), or if one of ``also_expect`` is:
        its ``log_id`` is that of the log. Raise LogNotFound if one of them does not exist,
        LogFull past 2**31 - 1 events, and the other errors of ``create``, with the same state
        after them. The key is looked up first: a retry is a replay even if its state is out of
        date. Raise TypeError for an id without ``expected_version``, and ValueError for a version
        out of range.
        """
        log_id, expected, position = self._expectation(to, expected_version)
        try:
            return self._store_events(
                log_id, events, expected, position, idempotency_key, metadata, also_expect
            )
        except IdempotentReplay as replay:
            # With version 0 the store handles the append as a create, which may find the key on
            # another log. Here the caller names the log, so that log's state is no answer.
            if replay.log_id == log_id:
                raise
            raise IdempotencyKeyReused(
                replay.idempotency_key, log_id=replay.log_id, index=replay.index, reason="log"
            ) from None

    def get_or_create(
        self,
        event: Any,
        *more: Any,
        idempotency_key: str,
        log_id: LogId | str | None = None,
        metadata: Mapping[str, Any] | None = None,
        also_expect: Sequence[Expectation] = (),
    ) -> tuple[LogState, bool]:
        """
        Create a log, or find the one that the key's first call created.

        Return its state after that call, and whether this call created it. Raise what ``create``
        raises, except IdempotentReplay.
        """
        try:
            return self.create(
                event,
                *more,
                log_id=log_id,
                idempotency_key=idempotency_key,
                metadata=metadata,
                also_expect=also_expect,
            ), True
        except IdempotentReplay as replay:
            return replay.state, False

    def get_or_append(
        self,
        to: Expectation | LogId | str,
        *events: Any,
        idempotency_key: str,
        expected_version: int | Anything | None = None,
        metadata: Mapping[str, Any] | None = None,
        also_expect: Sequence[Expectation] = (),
    ) -> tuple[LogState, bool]:
        """
        Append events, unless the key's first call has appended them.

        Return the log's state after that call, and whether this call appended. Raise what
        ``append`` raises, except IdempotentReplay.
        """
        try:
            return self.append(
                to,
                *events,
                expected_version=expected_version,
                idempotency_key=idempotency_key,
                metadata=metadata,
                also_expect=also_expect,
            ), True
        except IdempotentReplay as replay:
            return replay.state, False

    def execute(
        self,
        /,  # a decider may have an argument of any name
        log_id: LogId | str,
        decider: Decider,
        *args: Any,
        idempotency_key: str | None = None,
        retries: int = 3,
        metadata: Mapping[str, Any] | None = None,
        expected_version: int | None = None,
        also_expect: Sequence[Expectation] = (),
        **kwargs: Any,
    ) -> LogState:
        """
        Reduce a log, call ``decider``, append the events that it yields, and return the state.

        ``decider(aggregate, *args, **kwargs)`` yields or returns events. If there are none,
        nothing is appended, and the state is that of the reduction.

        If another writer appends first, everything starts again with the newer aggregate, at most
        ``retries`` times. A retry waits for its turn: it locks the log, and reduces, decides and
        appends in one transaction, so that no other writer can be faster. The transaction is the
        caller's if one is open, which then keeps the lock. ``retries=0`` raises the first
        conflict. With a store that cannot lock, a retry comes after a random pause.

        ``expected_version`` is the version that the caller has seen: at another one, nothing is
        decided. ``also_expect`` are states of other logs, as in ``append``. A conflict with
        either is not tried again, because both can only be out of date from then on.

        An ``idempotency_key`` is looked up before the decider is called, because the decider may
        decide differently the second time: a retry returns the state that the first call
        returned. The key stands for the call, so events are not compared. A call that appended
        nothing does not store its key.

        Raise TypeError for an async decider, ValueError for negative ``retries``,
        IdempotencyKeyReused for a key of another log, the decider's own errors, and what ``append``
        and ``reduce`` raise. Nothing is stored then. Raise ConcurrentAppend

        - at once for another ``expected_version``, and for a state of ``also_expect`` that is not
          the current one; the error's ``log_id`` is the log that has moved;
        - when the retries are used up. With a store that can lock the log, that happens only with
          ``retries=0``, or if the decider itself appends to the log.

        Raise TransactionMustRetry if the database has aborted the caller's transaction, or the
        transaction of a retry six times.
        """
        log_id = self.parse_id(log_id)
        check_int("retries", retries)
        check_decider(decider, self._codecs)
        idempotency_key = _checked_key(idempotency_key)
        if expected_version is not None:
            check_int("expected_version", expected_version, highest=MAX_VERSION)
        others = _other_states(also_expect, log_id)

        def decide(aggregate: A) -> tuple[Any, ...]:
            return decided(decider(aggregate, *args, **kwargs), decider, self._codecs)

        def attempt() -> LogState | ConcurrentAppend:
            return self._attempt(
                log_id, decide, idempotency_key, metadata, expected_version, also_expect
            )

        def in_turn() -> LogState | ConcurrentAppend:
            if others:
                return store.in_turn(log_id, attempt, conflicts=conflicts, others=others)
            return store.in_turn(log_id, attempt, conflicts=conflicts)

        store, conflicts = self._writing_store(), 0
        # A caller's transaction is not made to lock a log before that is necessary.
        if retries and log_id in self._contended and not self._is_inside():
            answer = in_turn()
        else:
            answer = attempt()
        while isinstance(answer, ConcurrentAppend):
            if conflicts == retries:
                raise answer
            conflicts += 1
            self._contended.add(log_id)
            answer = in_turn()
        return answer

    def _attempt(
        self,
        log_id: LogId,
        decide: Callable[[A], tuple[Any, ...]],
        idempotency_key: str | None,
        metadata: Mapping[str, Any] | None,
        expected_version: int | None,
        also_expect: Sequence[Expectation],
    ) -> LogState | ConcurrentAppend:
        """
        Reduce, decide and append once; return the conflict where another writer was faster.

        Raise a conflict that another attempt would meet again.
        """
        also: dict[str, Any] = {"also_expect": also_expect} if also_expect else {}
        while True:
            decision = self._decision(log_id, decide, idempotency_key, expected_version)
            if isinstance(decision, LogState):
                return decision
            state, events = decision
            try:
                return self.append(
                    state, *events, idempotency_key=idempotency_key, metadata=metadata, **also
                )
            except (IdempotentReplay, IdempotencyKeyReused, IdempotencyKeyUndecided):
                # A concurrent call with this key appended first: now the look-up finds it.
                self._check_shown(idempotency_key)
            except ConcurrentAppend as conflict:
                if expected_version is not None or conflict.log_id != log_id:
                    raise
                # Not raised: the decider may raise one, of another log, which is the caller's.
                return conflict

    def _decision(
        self,
        log_id: LogId,
        decide: Callable[[A], tuple[Any, ...]],
        idempotency_key: str | None,
        expected_version: int | None,
    ) -> LogState | tuple[LogState, tuple[Any, ...]]:
        """Return the state to append to and the events; or the answer, with nothing to append."""
        store = self._writing_store()
        if idempotency_key is not None:
            store = KeyedReads(store, self.log_type, idempotency_key)
        try:
            reduction = self._reduce(log_id, store)
        except (UnknownEventType, UndecodableEvent):
            # Newer code has appended. If it did so with this key, the answer is stored.
            if (done := self._executed(log_id, idempotency_key, store)) is not None:
                return done
            raise
        # With or after the reduction: if that includes the key's events, the look-up finds the key.
        if (done := self._executed(log_id, idempotency_key, store)) is not None:
            return done
        if expected_version not in (None, reduction.version):
            raise ConcurrentAppend(
                log_id,
                expected_version=expected_version or 0,
                actual_version=reduction.version,
            )
        events = decide(reduction.aggregate)
        return (reduction.state, events) if events else reduction.state

    def _executed(
        self, log_id: LogId, idempotency_key: str | None, store: BaseStore
    ) -> LogState | None:
        if idempotency_key is None:
            return None
        claim = store.claim(self.log_type, idempotency_key)
        if claim is None:
            return None
        if claim.log_id != log_id:
            raise claim.reuse(idempotency_key, reason="log")
        return claim.state

    def _check_shown(self, idempotency_key: str | None) -> None:
        """
        Raise TransactionMustRetry if the caller's snapshot does not contain a taken key.

        Under REPEATABLE READ on MySQL and MariaDB an append finds a taken key by a locking read,
        which ignores the snapshot. The key's append can be read in a newer snapshot only.
        """
        if idempotency_key is None or not self._is_inside():
            return
        if self._writing_store().claim(self.log_type, idempotency_key) is None:
            raise given_up(self._write_alias())

    def _store_events(
        self,
        log_id: LogId,
        events: tuple[Any, ...],
        expected_version: int | Anything,
        expected_position: int | None,
        idempotency_key: str | None,
        metadata: Mapping[str, Any] | None,
        also_expect: Sequence[Expectation],
    ) -> LogState:
        idempotency_key = _checked_key(idempotency_key)
        encoded = self._encode(events)
        rules = None
        if self._unique or also_expect:
            rules = self._rules(log_id, events, also_expect)
        try:
            state = EventLog.objects.append(
                log_id,
                encoded,
                expected_version=expected_version,
                expected_position=expected_position,
                idempotency_key=idempotency_key,
                metadata=_metadata(metadata),
                rules=rules,
                using=self.using,
                store=self._store,
            )
        except IdempotencyKeyReused as reused:
            decided = self._decide(reused, encoded)
            raise decided from decided.__cause__
        if self._refreshes_on_append():
            self._refresh_appended(log_id)
        return state

    def _rules(
        self, log_id: LogId, events: tuple[Any, ...], also_expect: Sequence[Expectation]
    ) -> Rules | None:
        values: Values = {}
        for event in events:
            found = self._unique.get(type(event))
            if found:
                # The last value of a scope counts: no other append can see the values before it.
                name = self._codecs[type(event)].event_type.name
                values.update(values_of(found, event, name))
        others = _other_states(also_expect, log_id)
        return Rules(as_values(values), others) if values or others else None

    def _refreshes_on_append(self) -> bool:
        own = self._refresh_on_append
        return conf.refresh_on_append() if own is None else own

    def _refresh_appended(self, log_id: LogId) -> None:
        self._submit(Refresh(self._reductions(), log_id))

    def _decide(self, reused: IdempotencyKeyReused, events: list[EncodedEvent]) -> EventLogError:
        """
        Return the error for ``events`` under a taken key, by the events that its append stored.

        The store has compared fingerprints, which also differ if a class has changed since. There
        is no race with that comparison: neither the key's append nor its events ever change.
        This only reads, so a caller's transaction stays usable.
        """
        if reused.reason != "events" or reused.count is None:
            return reused
        key, log_id, first, count = (
            reused.idempotency_key, reused.log_id, reused.index, reused.count
        )  # fmt: skip
        stored = self._writing_store().events(log_id, start=first, limit=count)
        if [each.idempotency_key for each in stored] != [key] * count:
            self._check_shown(key)
            return reused  # the events were erased
        try:
            is_retry = self._reader.reads_as(stored, events)
        except (UnknownEventType, UndecodableEvent) as error:
            undecided = IdempotencyKeyUndecided(
                key, log_id=log_id, index=first, event_type=error.event_type
            )
            undecided.__cause__ = error
            return undecided
        if not is_retry:
            return reused
        state = LogState(log_id, first + count, stored[-1].position)
        return IdempotentReplay(key, log_id=log_id, index=first, state=state)

    def _encode(self, events: tuple[Any, ...]) -> list[EncodedEvent]:
        if not 0 < len(events) <= MAX_BATCH:
            raise InvalidEvent(f"an append takes 1 to {MAX_BATCH:,} events, not {len(events):,}")
        encoded = []
        max_bytes = conf.max_event_bytes()
        for event in events:
            codec = self._codecs.get(type(event))
            if codec is None:
                raise InvalidEvent(why_no_event(event, self.aggregate.__qualname__))
            encoded.append(codec.encode(event, max_bytes))
        return encoded

    def _expectation(
        self, to: Expectation | LogId | str, expected_version: int | Anything | None
    ) -> tuple[LogId, int | Anything, int | None]:
        """Return the log, and the expected version and position of its last event."""
        if isinstance(to, LogState | Reduction):
            if expected_version is not None and expected_version != to.version:
                raise TypeError(
                    f"expected_version is {expected_version!r}, but a {type(to).__name__} is its "
                    f"own expectation: {to.version}. Leave expected_version out, or pass the log "
                    f"id with it."
                )
            # Compared here as well: two calls would cost an append more than the comparison does.
            if not (0 <= to.version <= MAX_VERSION and 0 <= to.position <= MAX_POSITION):
                check_int("version", to.version, highest=MAX_VERSION)
                check_int("position", to.position, highest=MAX_POSITION)
            return self.parse_id(to.log_id), to.version, to.position or None
        check_target(to)
        if expected_version is None:
            raise TypeError(
                "append() to a log id needs expected_version: the version that you read, or "
                "eventlogs.ANY to append at any version."
            )
        if expected_version is not ANY:
            if isinstance(expected_version, bool) or not isinstance(expected_version, int):
                raise TypeError(
                    f"expected_version is {expected_version!r}. It must be an int, or "
                    f"eventlogs.ANY."
                )
            check_int("expected_version", expected_version, highest=MAX_VERSION)
        return self.parse_id(to), expected_version, None

    # Reducing

    def reduce(
        self,
        log_id: LogId | str,
        *,
        version: int | None = None,
        at: datetime | None = None,
        fresh: bool = False,
    ) -> Reduction[A]:
        """
        Fold a log's events into its aggregate.

        A cached reduction is used if the log confirms it, and only newer events are folded;
        with ``fresh`` all events are folded, and the cache is neither read nor written.
        ``version`` asks for the state after that many events, from 1, ``at`` for the state at
        that moment (an aware datetime, compared with ``recorded_at``); neither is cached.

        Raise InvalidLogId for an id of another log type, LogNotFound if the log does not exist
        (or did not at that moment), VersionNotReached if it has fewer events than ``version``,
        UnknownEventType or UndecodableEvent for a stored event without a class here, TypeError
        for ``version`` together with ``at``, ValueError for a naive ``at`` or a version that is
        no int of 0 or more, and what the aggregate's ``apply`` raises. A failure of the cache is
        never an error. Reducing changes no log.
        """
        log_id = self.parse_id(log_id)
        store = self._reading_store()
        if version is not None and at is not None:
            raise TypeError("reduce() takes version= or at=, not both. Leave one of them out.")
        if version is not None:
            return self._reduce_to_version(log_id, store, version)
        if at is not None:
            return self._reduce_to_moment(log_id, store, at)
        return self._reduce(log_id, store, fresh=fresh)

    def _reduce(self, log_id: LogId, store: BaseStore, *, fresh: bool = False) -> Reduction[A]:
        reductions = self._reductions()
        if fresh or not reductions.is_caching:
            return reductions.replay(log_id, store)
        reduction, job, _ = reductions.read(log_id, store)
        if job is not None:
            self._submit(job)
        return reduction

    def _submit(self, job: CacheWrite | Refresh) -> None:
        """Submit a job to the refresher, after the commit where a transaction is open."""
        connection = None if self._store is not None else connections[self._write_alias()]
        if connection is None or not connection.in_atomic_block:
            submit(job, refresher=self._refresher)
            return
        hooks = connection.run_on_commit
        if len(hooks) < MAX_JOBS:
            hook = _AfterCommit(job, self._refresher, hooks)
            if hook.total <= MAX_JOBS_BYTES:
                # Robust: the application's own hooks run, even where this one fails.
                transaction.on_commit(hook, using=connection.alias, robust=True)
                return
        counters.count("error", DROPPED, aggregate=self.aggregate)

    def _is_inside(self) -> bool:
        """Return whether a transaction is open in the database that is written to."""
        return self._reductions().is_in_transaction

    def _reductions(self) -> ReductionReader[A]:
        using = self._write_alias()
        reader = self._reduction_readers.get(using)
        if reader is None:
            reader = self._reduction_readers[using] = ReductionReader(
                self.aggregate,
                using=using,
                events=self._reader,
                store=self._store,
                cache=self._cache,
                policy=self._policy,
            )
        return reader

    def _reduce_to_version(self, log_id: LogId, store: BaseStore, version: int) -> Reduction[A]:
        check_int("version", version)
        if version == 0:
            raise LogNotFound(log_id, reason="has no events at version 0")
        records = islice(self._records(log_id, store, 0, page=min(version, STREAM_PAGE)), version)
        reduction = fold(self.aggregate.without_events(log_id), records)
        if not reduction.version:
            raise LogNotFound(log_id)
        if reduction.version < version:
            raise VersionNotReached(log_id, version=version, actual_version=reduction.version)
        return reduction

    def _reduce_to_moment(self, log_id: LogId, store: BaseStore, at: datetime) -> Reduction[A]:
        if timezone.is_naive(at):
            raise ValueError(f"at is {at!r}. It must be a datetime with a time zone.")
        records = self._records(log_id, store, 0)
        reduction = fold(self.aggregate.without_events(log_id), _until(records, at))
        if not reduction.version:
            raise LogNotFound(log_id, reason=f"did not exist at {at.isoformat()}")
        return reduction

    # Reading

    def load(
        self,
        log_id: LogId | str,
        *,
        start: int | None = None,
        limit: int | None = None,
        reverse: bool = False,
        decode: bool = True,
    ) -> EventPage:
        """
        Return one page of a log's events.

        ``start`` is the index of the page's first event: by default 0, or with ``reverse``
        that of the last event, from which the page goes backwards. ``limit`` is 1 to 10,000
        events, and defaults to ``EVENTLOGS["PAGE_SIZE"]``. Pass ``page.next_start`` as ``start``
        to read the next page; it is None on the last page. With ``decode=False``, events are raw
        JSON values.

        Raise InvalidLogId for an id of another log type, ValueError for a negative start or
        a limit out of range, and UnknownEventType or UndecodableEvent for a stored event
        without a class here. The page of a log that does not exist is empty.
        """
        log_id = self.parse_id(log_id)
        limit = conf.page_size() if limit is None else limit
        check_int("limit", limit, lowest=1, highest=MAX_PAGE_SIZE)
        if start is not None:
            check_int("start", start)
        start = min(start if start is not None else (MAX_VERSION if reverse else 0), MAX_VERSION)
        # One more than asked for, to find out whether there is a next page.
        found = self._reading_store().events(log_id, start=start, limit=limit + 1, reverse=reverse)
        stored = found[:limit]
        next_start = found[limit].index if len(found) > limit else None
        records = list(self._reader.records(stored, decode=decode))
        return EventPage(log_id, records, stored, next_start)

    def stream(
        self, log_id: LogId | str, *, start: int = 0, decode: bool = True
    ) -> Iterator[EventRecord]:
        """
        Yield a log's events from index ``start`` on, in order.

        Memory use does not depend on the length of the log. Events are read in pages of 2,000;
        those appended in the meantime are included if they were stored when the last page was
        read. Raise what ``load`` raises, for an id or a start at once. A log without events yields
        nothing.
        """
        log_id = self.parse_id(log_id)
        check_int("start", start)
        store = self._reading_store()
        return self._reader.records(store.stream(log_id, start=start), decode=decode)

    def _records(
        self, log_id: LogId, store: BaseStore, start: int, page: int = STREAM_PAGE
    ) -> Iterator[EventRecord]:
        return self._reader.records(store.stream(log_id, start=start, page=page))

    def find(self, scope: str, value: Any) -> LogId | None:
        """
        Return the log that a unique value belongs to, or None for a value that is free.

        ``scope`` is that of a ``Unique`` annotation of one of the aggregate's events. ``value`` is
        normalized as that declares; None belongs to no log. The log may be of another log type
        whose events share the scope. The answer may be out of date at once: only an append that
        claims the value is certain.

        Raise ValueError for a scope that no event of the aggregate declares, TypeError for a value
        that cannot be unique, and what ``normalize`` raises.
        """
        unique = self._scopes.get(scope)
        if unique is None:
            known = ", ".join(map(repr, self._scopes)) or "none"
            raise ValueError(
                f"No event of {self.aggregate.__qualname__} declares Unique({scope!r}). Scopes of "
                f"its events: {known}."
            )
        try:
            wanted = unique_value(unique, value)
        except Unfit as unfit:
            if unfit.__cause__ is not None:
                raise unfit.__cause__  # noqa: B904 (the project's own error, as it is)
            raise TypeError(f"{scope}: {unfit}.") from None
        return None if wanted.digest is None else self._reading_store().owner(wanted)

    def exists(self, log_id: LogId | str) -> bool:
        """Return whether the log has events. Raise InvalidLogId as ``version`` does."""
        return self.version(log_id) > 0

    def version(self, log_id: LogId | str) -> int:
        """
        Return the number of events in the log, or 0 for a log that does not exist.

        Raise InvalidLogId for an id of another log type.
        """
        return self._reading_store().version(self.parse_id(log_id))

    def _copy(self, **attributes: Any) -> LogManager[A]:
        copy: LogManager[A] = object.__new__(type(self))
        vars(copy).update(vars(self), **attributes)
        return copy

    def _noting(self) -> LogManager[A]:
        return self._copy(_store=Note(), _refresh_on_append=False)

    async def _append_joined(
        self,
        request: Callable[[], Coroutine[Any, Any, Any]],
        alone: Callable[[], Coroutine[Any, Any, Any]],
    ) -> Any:
        async def stored(log_id: LogId) -> None:
            if self._refreshes_on_append():
                await in_thread(self, "_refresh_appended", (log_id,), {})

        group_commit = None
        if all(getattr(getattr(self, each.__name__), "__func__", None) is each for each in _OWN):
            group_commit = group_commit_of(self.log_type, using=self.using, store=self._store)
        return await append_joined(group_commit, request, alone, stored)

    def _write_alias(self) -> str:
        return self.using or router.db_for_write(EventLog)

    def _writing_store(self) -> BaseStore:
        return self._store or EventLog.objects.store(using=self.using)

    def _reading_store(self) -> BaseStore:
        if self._store is not None or self.using is not None:
            return self._writing_store()
        write_alias = router.db_for_write(EventLog)
        if connections[write_alias].in_atomic_block:
            return EventLog.objects.store(using=write_alias)
        return EventLog.objects.store(using=router.db_for_read(EventLog))

    # The same for async code

    acreate = AsyncTwin(create, way=_join)
    aappend = AsyncTwin(append, way=_join)
    aget_or_create = AsyncTwin(get_or_create, way=_join)
    aget_or_append = AsyncTwin(get_or_append, way=_join)
    aexecute = AsyncTwin(execute, way=_join_execution)
    areduce = AsyncTwin(reduce)
    aload = AsyncTwin(load)
    astream = AsyncIteratorTwin(stream)
    afind = AsyncTwin(find)
    aexists = AsyncTwin(exists)
    aversion = AsyncTwin(version)


# All other methods that append call these. Where a subclass overrides them, appends are not joined.
_OWN: Final[tuple[Any, ...]] = (LogManager.create, LogManager.append)


class _AfterCommit:
    """
    A job that is submitted after a commit, and the bytes of all jobs that wait for the commit.

    A savepoint that is rolled back takes its hooks out of the list. They are the last ones, so
    the total of the last hook that is left is right.
    """

    def __init__(
        self,
        job: CacheWrite | Refresh,
        refresher: str | Mapping[str, Any] | BaseRefresher | None,
        hooks: list[tuple[Any, ...]],
    ) -> None:
        self.__qualname__ = type(self).__qualname__  # by which Django names a hook that failed
        self._job = job
        self._refresher = refresher
        ahead = (hook for _, hook, *_ in reversed(hooks) if isinstance(hook, _AfterCommit))
        before = next(ahead, None)
        size = len(job.entry) if isinstance(job, CacheWrite) else 0
        self.total: int = size + (before.total if before is not None else 0)

    def __call__(self) -> None:
        submit(self._job, refresher=self._refresher)


def _metadata(explicit: Mapping[str, Any] | None) -> str:
    """Return the metadata of an append as JSON: the caller's and the context's."""
    text = encode_metadata(explicit)
    layer = current.get()
    return text if layer is None else layer.metadata(explicit or {}, text)


def _other_states(also_expect: Sequence[Expectation], log_id: LogId) -> tuple[LogState, ...]:
    """Return the states of other logs that an append to ``log_id`` also expects."""
    if not also_expect:
        return ()
    if isinstance(also_expect, str) or not isinstance(also_expect, Sequence):  # type: ignore[unreachable]
        raise TypeError(
            f"also_expect takes a list of states of other logs, not {kind_of(also_expect)}. Write "
            f"also_expect=[state]."
        )
    if len(also_expect) > MAX_ALSO_EXPECTED:
        raise ValueError(
            f"also_expect has {len(also_expect)} states. It takes {MAX_ALSO_EXPECTED} at most."
        )
    others = []
    for each in also_expect:
        if not isinstance(each, LogState | Reduction):
            raise TypeError(
                f"also_expect takes LogStates and Reductions of other logs, not {kind_of(each)}. "
                f"Reduce that log, and pass the reduction that you decided on."
            )
        if each.log_id == log_id:
            raise ValueError(
                f"also_expect names {log_id}, to which the events are appended. Its state is the "
                f"first argument of append()."
            )
        check_int("version", each.version, lowest=1, highest=MAX_VERSION)
        check_int("position", each.position, highest=MAX_POSITION)
        others.append(LogState(each.log_id, each.version, each.position))
    return tuple(others)


def _checked_key(key: str | None) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str):
        raise InvalidIdempotencyKey(f"must be a str, not {type(key).__name__}")
    # A plain str of the same characters: a LogId does not equal its text, a SafeString is marked as
    # HTML, and str() of an enum's member may be its name.
    key = str.__str__(key)
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidIdempotencyKey(f"must have 1 to {MAX_KEY_LENGTH} characters")
    try:
        validation.inspect(key)
    except validation.Finding as finding:
        raise InvalidIdempotencyKey(f"cannot be stored: {finding.limit}") from None
    return key


def _until(records: Iterator[EventRecord], at: datetime) -> Iterator[EventRecord]:
    for record in records:
        if record.recorded_at > at:
            return
        yield record
