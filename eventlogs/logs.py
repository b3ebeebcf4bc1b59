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
from functools import cache, partial
from itertools import chain
from typing import Any, Final, Generic, TypeVar

from django.db import connections, router

from eventlogs import conf
from eventlogs.aggregates import ANY, Aggregate, Anything
from eventlogs.archives.read_through import pages_through, read_through
from eventlogs.cache_jobs import submit_after_commit
from eventlogs.caches.backends import BaseReductionCache
from eventlogs.caches.counters import DROPPED, counters
from eventlogs.conf import (
    MAX_BATCH,
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
    why_no_event,
)
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
    DatabasesDiffer,
    EventLogError,
    IdempotencyKeyReused,
    IdempotencyKeyUndecided,
    IdempotentReplay,
    InvalidEvent,
    InvalidLogId,
    LogArchived,
    LogErased,
    LogNotFound,
    UndecodableEvent,
    UnknownEventType,
)
from eventlogs.expectations import Expectation, other_states
from eventlogs.idempotency import checked_key, compare, find_executed, has_events
from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.observed_appends import append_joined_observed, append_observed
from eventlogs.observers import observers
from eventlogs.pages import EventPage
from eventlogs.policies import CachingPolicy
from eventlogs.privacy import memory
from eventlogs.privacy.appends import append_sealed, find_keys
from eventlogs.privacy.sealing import Sealing
from eventlogs.reductions.past import reduce_to_moment, reduce_to_version
from eventlogs.reductions.reader import ReductionReader, Refresh
from eventlogs.reductions.writes import CacheWrite
from eventlogs.refreshers import BaseRefresher, submit
from eventlogs.routing import alias_to_append, are_spread, databases_of, read_alias, write_alias
from eventlogs.stores import BaseStore, Rules, store_for
from eventlogs.stores.joined import Note, append_joined, group_commit_of
from eventlogs.stores.keyed_reads import KeyedReads
from eventlogs.stores.retries import given_up
from eventlogs.stores.turns import Contended, take_turns
from eventlogs.utils.bounds import check_int
from eventlogs.utils.twins import AsyncIteratorTwin, AsyncTwin, in_thread
from eventlogs.values import EventRecord, LogState, Reduction

__all__ = ["LogManager"]

A = TypeVar("A", bound=Aggregate)
T = TypeVar("T")

NO_INDEX: Final = b"\0"  # in place of a key for the digests of personal values that nobody has made


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
    and to read from (inside a transaction, reads use the database that is written to). They get the
    id of the log as the hint ``log_id``. ``store``
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
        self._has_personal = any(codec.personal for codec in self._codecs.values())
        self._unique = {cls: codec.unique for cls, codec in self._codecs.items() if codec.unique}
        self._scopes = by_scope(field for each in self._unique.values() for field in each)

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

        Where a router spreads logs of this type over several databases, the id of a call with a key
        is made of the key, so that all calls with it ask one database.

        Raise DatabasesDiffer for what would need several of them at once: a key together with
        another id, a unique value, a state of a log elsewhere, or a transaction that is open
        elsewhere.
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
        log_id = self._id_to_create(log_id, idempotency_key)
        store_events = self._observed if observers else self._store_events
        return store_events(log_id, (event, *more), 0, None, idempotency_key, metadata, also_expect)

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
        store_events = self._observed if observers else self._store_events
        try:
            return store_events(
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
        if idempotency_key is not None:
            idempotency_key = checked_key(idempotency_key)
        if expected_version is not None:
            check_int("expected_version", expected_version, highest=MAX_VERSION)
        others = other_states(also_expect, log_id)

        def decide(aggregate: A) -> tuple[Any, ...]:
            return decided(decider(aggregate, *args, **kwargs), decider, self._codecs)

        def attempt() -> LogState | ConcurrentAppend:
            return self._attempt(
                log_id, decide, idempotency_key, metadata, expected_version, also_expect
            )

        return take_turns(
            attempt,
            log_id,
            store=self._writing_store(log_id),
            others=others,
            retries=retries,
            contended=self._contended,
            is_inside=partial(self._is_inside, log_id),
        )

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
                self._check_shown(log_id, idempotency_key)
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
        store = self._writing_store(log_id)
        if idempotency_key is not None:
            store = KeyedReads(store, self.log_type, idempotency_key)
        try:
            reduction = self._reduce_to_append(log_id, store)
        except (UnknownEventType, UndecodableEvent):
            # Newer code has appended. If it did so with this key, the answer is stored.
            if (done := find_executed(store, log_id, idempotency_key)) is not None:
                return done
            raise
        # With or after the reduction: if that includes the key's events, the look-up finds the key.
        if (done := find_executed(store, log_id, idempotency_key)) is not None:
            return done
        if expected_version not in (None, reduction.version):
            raise ConcurrentAppend(
                log_id,
                expected_version=expected_version or 0,
                actual_version=reduction.version,
            )
        events = decide(reduction.aggregate)
        return (reduction.state, events) if events else reduction.state

    def _reduce_to_append(self, log_id: LogId, store: BaseStore) -> Reduction[A]:
        """Reduce a log; once more if it was archived at the first look, and has come back since."""
        try:
            return self._reduce(log_id, store)
        except LogNotFound as error:
            if isinstance(error, LogErased | LogArchived) or not store.version(log_id):
                raise
        return self._reduce(log_id, store)

    def _check_shown(self, log_id: LogId, idempotency_key: str | None) -> None:
        """
        Raise TransactionMustRetry if the caller's snapshot does not contain a taken key.

        Under REPEATABLE READ on MySQL and MariaDB an append finds a taken key by a locking read,
        which ignores the snapshot. The key's append can be read in a newer snapshot only.
        """
        if idempotency_key is None or not self._is_inside(log_id):
            return
        if self._writing_store(log_id).claim(self.log_type, idempotency_key) is None:
            raise given_up(self._write_alias(log_id))

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
        if idempotency_key is not None:
            idempotency_key = checked_key(idempotency_key)
        encoded = self._encode(events)
        rules = None
        if self._unique or also_expect:
            rules = self._rules(log_id, events, also_expect)
        using = self._alias_to_append(log_id, rules)
        text = _metadata(metadata)

        def append(events: Sequence[EncodedEvent], version: int | Anything, text: str) -> LogState:
            return EventLog.objects.append(
                log_id,
                events,
                expected_version=version,
                expected_position=expected_position,
                idempotency_key=idempotency_key,
                metadata=text,
                rules=rules,
                using=using,
                store=self._store,
            )

        try:
            # Nothing more is done for an append that cannot have personal data.
            store = None if self._is_plain() else self._writing_store(log_id)
            sealing = None
            if store is not None:
                sealing = self._sealing(store, log_id, events, encoded, text)
            if store is None or sealing is None:
                state = append(encoded, expected_version, text)
            else:
                find_keys(sealing, log_id, idempotency_key, store)
                state = append_sealed(
                    sealing,
                    append,
                    log_id,
                    expected_version,
                    is_keyed=idempotency_key is not None,
                    store=store,
                    contended=self._contended,
                    is_inside=partial(self._is_inside, log_id),
                )
        except IdempotencyKeyReused as reused:
            decided = self._decide(log_id, reused, encoded)
            raise decided from decided.__cause__
        if self._refreshes_on_append():
            self._refresh_appended(log_id)
        return state

    def _sealing(
        self,
        store: BaseStore,
        log_id: LogId,
        events: tuple[Any, ...],
        encoded: list[EncodedEvent],
        metadata: str,
    ) -> Sealing | None:
        """Return the personal data of an append, or None where there are none to encrypt."""
        if not store.encrypts:
            return None
        personal = [self._codecs[type(each)].personal for each in events]
        sealing = Sealing(log_id, encoded, personal, metadata)
        return sealing if sealing.is_needed else None

    def _is_plain(self) -> bool:
        """Return whether no append of this manager can have personal data."""
        return not (self._has_personal or conf.personal_metadata())

    def _observed(self, log_id: LogId, *args: Any) -> LogState:
        store: Any = self._store
        is_default = store is None or isinstance(store, Note)
        using = self._write_alias(log_id) if is_default else store.using
        state: LogState = append_observed(self._store_events, self.aggregate, using, log_id, *args)
        return state

    def _rules(
        self, log_id: LogId, events: tuple[Any, ...], also_expect: Sequence[Expectation]
    ) -> Rules | None:
        values: Values = {}
        index_key = cache(
            partial(self._index_key, log_id)
        )  # asked for once in an append, if at all
        for event in events:
            found = self._unique.get(type(event))
            if found:
                # The last value of a scope counts: no other append can see the values before it.
                name = self._codecs[type(event)].event_type.name
                values.update(values_of(found, event, name, index_key))
        others = other_states(also_expect, log_id)
        return Rules(as_values(values), others) if values or others else None

    def _index_key(self, log_id: LogId) -> bytes | None:
        store = self._writing_store(log_id)
        return memory.index_key(store.using) if store.encrypts else None

    def _refreshes_on_append(self) -> bool:
        own = self._refresh_on_append
        return conf.refresh_on_append() if own is None else own

    def _refresh_appended(self, log_id: LogId) -> None:
        self._submit(Refresh(self._reductions(log_id), log_id), log_id)

    def _decide(
        self, log_id: LogId, reused: IdempotencyKeyReused, events: list[EncodedEvent]
    ) -> EventLogError:
        """
        Return the error for ``events`` under a taken key, by the events that its append stored.

        The store has compared fingerprints only. This reads, and writes nothing, so a caller's
        transaction stays usable.
        """
        if reused.reason != "events" or reused.count is None:
            return reused
        # Where the key was found: the router may send that log elsewhere by now.
        store = self._writing_store(log_id)
        stored = store.events(reused.log_id, start=reused.index, limit=reused.count)
        if not has_events(reused, stored):
            self._check_shown(log_id, reused.idempotency_key)
            return reused
        return compare(reused, stored, events, self._reader)

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
        if version is not None and at is not None:
            raise TypeError("reduce() takes version= or at=, not both. Leave one of them out.")
        reading = self._reading_store(log_id)

        def reduced(store: BaseStore) -> Reduction[A]:
            if version is not None:
                return reduce_to_version(
                    self.aggregate, log_id, version, store=store, events=self._reader
                )
            if at is not None:
                return reduce_to_moment(
                    self.aggregate, log_id, at, store=store, events=self._reader
                )
            # Nothing of an archive is cached.
            return self._reduce(log_id, store, fresh=fresh or store is not reading)

        return self._read_through(reading, log_id, reduced)

    def _read_through(self, store: BaseStore, log_id: LogId, read: Callable[[BaseStore], T]) -> T:
        """Return what is in a store; if it is the database's own, also what is in an archive."""
        return read(store) if self._store is not None else read_through(store, log_id, read)

    def _reduce(self, log_id: LogId, store: BaseStore, *, fresh: bool = False) -> Reduction[A]:
        reductions = self._reductions(log_id)
        if fresh or not reductions.is_caching:
            return reductions.replay(log_id, store)
        reading = reductions.read(log_id, store)
        if reading.job is not None:
            self._submit(reading.job, log_id)
        return reading.reduction

    def _submit(self, job: CacheWrite | Refresh, log_id: LogId) -> None:
        """Submit a job to the refresher, after the commit where a transaction is open."""
        if self._store is not None:
            submit(job, refresher=self._refresher)
        elif not submit_after_commit(job, self._refresher, connections[self._write_alias(log_id)]):
            counters.count("error", DROPPED, aggregate=self.aggregate)

    def _is_inside(self, log_id: LogId) -> bool:
        """Return whether a transaction is open in the database that the log is written to."""
        return self._reductions(log_id).is_in_transaction

    def _reductions(self, log_id: LogId | None = None) -> ReductionReader[A]:
        using = self._write_alias(log_id)
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
        found = self._read_through(
            self._reading_store(log_id),
            log_id,
            lambda store: store.events(log_id, start=start, limit=limit + 1, reverse=reverse),
        )
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
        store = self._reading_store(log_id)
        through = store.pages if self._store is not None else partial(pages_through, store)
        pages = through(log_id, start=start)
        return chain.from_iterable(self._reader.records(page, decode=decode) for page in pages)

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
        found = self._scopes.get(scope)
        if found is None:
            known = ", ".join(map(repr, self._scopes)) or "none"
            raise ValueError(
                f"No event of {self.aggregate.__qualname__} declares Unique({scope!r}). Scopes of "
                f"its events: {known}."
            )
        try:
            key = None
            if found.is_personal and value is not None and self._writing_store().encrypts:
                # Reading makes no key. Without it, no log can have claimed the value.
                key = memory.existing_index_key() or NO_INDEX
            wanted = unique_value(found.unique, value, key)
        except Unfit as unfit:
            if unfit.__cause__ is not None:
                raise unfit.__cause__  # noqa: B904 (the project's own error, as it is)
            raise TypeError(f"{scope}: {unfit}.") from None
        if wanted.digest is None or key == NO_INDEX:
            return None
        owners = (each.owner(wanted) for each in self._stores_to_search())
        return next((each for each in owners if each is not None), None)

    def exists(self, log_id: LogId | str) -> bool:
        """Return whether the log has events. Raise InvalidLogId as ``version`` does."""
        return self.version(log_id) > 0

    def not_found(self, log_id: LogId | str) -> LogNotFound:
        """
        Return the error to raise for a log without events: LogErased if the log was erased.

        Raise InvalidLogId as ``version`` does.
        """
        log_id = self.parse_id(log_id)
        return self._reading_store(log_id).missing(log_id)

    def version(self, log_id: LogId | str) -> int:
        """
        Return the number of events in the log, or 0 for a log that does not exist.

        A log that is archived has the number that it was archived with. Raise InvalidLogId for an
        id of another log type.
        """
        log_id = self.parse_id(log_id)
        return self._read_through(
            self._reading_store(log_id), log_id, lambda store: store.version(log_id)
        )

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
        async def stored(state: LogState) -> None:
            if self._refreshes_on_append():
                await in_thread(self, "_refresh_appended", (state.log_id,), {})

        group_commit = None
        # An append with personal data may ask for keys and versions, which needs the thread.
        if self._is_plain() and all(
            getattr(getattr(self, each.__name__), "__func__", None) is each for each in _OWN
        ):
            group_commit = group_commit_of(self.log_type, using=self.using, store=self._store)
        join = append_joined_observed if observers else append_joined
        return await join(group_commit, request, alone, stored)

    def _id_to_create(self, log_id: LogId | str | None, idempotency_key: str | None) -> LogId:
        """
        Return the id of a log that is to be created: the one given, or a new one.

        Where logs of this type are in several databases, a call with a key gets the id that is
        made of the key. So every call with the key asks the same database, which decides between
        two that run at once as it does for logs of one database.
        """
        given = None if log_id is None else self.parse_id(log_id)
        if idempotency_key is None or not self._is_spread():
            return self.new_id() if given is None else given
        key = f"idempotency-key:{checked_key(idempotency_key)}"
        made = LogId.from_key(self.log_type, key)
        if given not in (None, made):
            raise DatabasesDiffer("key", log_id=given)
        return made

    def _is_spread(self) -> bool:
        """Return whether a router spreads the manager's logs over several databases."""
        return self.using is None and self._store is None and are_spread(self.log_type)

    def _alias_to_append(self, log_id: LogId, rules: Rules | None) -> str | None:
        """Return the alias to append to; None: the manager of the rows chooses it, or a store."""
        if self.using is not None or self._store is not None or not router.routers:
            return self.using
        if rules is None:
            return alias_to_append(log_id)
        if rules.values and self._is_spread():
            raise DatabasesDiffer("unique", log_id=log_id)
        return alias_to_append(log_id, rules.others)

    def _write_alias(self, log_id: LogId | None = None) -> str:
        return self.using or write_alias(log_id)

    def _writing_store(self, log_id: LogId | None = None) -> BaseStore:
        return self._store or store_for(self._write_alias(log_id))

    def _reading_store(self, log_id: LogId | None = None) -> BaseStore:
        if self._store is not None or self.using is not None:
            return self._writing_store(log_id)
        return store_for(read_alias(log_id))

    def _stores_to_search(self) -> list[BaseStore]:
        """Return the stores of all databases that logs of this type can be in."""
        if not self._is_spread():
            return [self._reading_store()]
        return [store_for(each) for each in databases_of(self.log_type)]

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
    anot_found = AsyncTwin(not_found)
    aversion = AsyncTwin(version)


# All other methods that append call these. Where a subclass overrides them, appends are not joined.
_OWN: Final[tuple[Any, ...]] = (LogManager.create, LogManager.append)


def _metadata(explicit: Mapping[str, Any] | None) -> str:
    """Return the metadata of an append as JSON: the caller's and the context's."""
    text = encode_metadata(explicit)
    layer = current.get()
    return text if layer is None else layer.metadata(explicit or {}, text)
