"""
The interface of stores, which keep logs.

A store takes encoded events and returns rows; it knows no classes of a project. It must pass the
contract suite in ``eventlogs.testing.contracts``; the stores here do.

Every append takes the same five steps, under one lock on the log: claim or lock the log,
look up the key, compare the version, insert, raise the version. ``refusal()`` decides for all
stores why an append is refused: it checks the key first, then the version.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from eventlogs.conf import MAX_VERSION
from eventlogs.events.codec import EncodedEvent, same_request
from eventlogs.events.unique import UniqueValue
from eventlogs.exceptions import (
    ConcurrentAppend,
    EventLogError,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogAlreadyExists,
    LogFull,
    LogNotFound,
    NameTaken,
)
from eventlogs.ids import LogId
from eventlogs.stores.restore import ExportedEvent, Restored
from eventlogs.values import LogState, StoredEvent

T = TypeVar("T")

STREAM_PAGE = 2_000  # events read at once while streaming
FIRST_PAUSE: Final = 0.01  # seconds, doubled after each conflict, with full jitter
DOUBLINGS: Final = 6  # at most


class Rules(NamedTuple):
    """
    Conditions of an append about other logs; the append is refused if one does not hold.

    ``values`` are the unique values that the append's log claims, or releases, one for each
    scope and in the order of the scopes. ``others`` are states of other logs, which must be the
    current ones; a position of 0 is not compared.
    """

    values: Sequence[UniqueValue] = ()
    others: Sequence[LogState] = ()


class AppendRequest(NamedTuple):
    """
    One append: all of its events are stored, or none is.

    ``expected_version`` is exact, or None for any version of a log that exists. 0 creates
    the log. ``metadata`` is JSON text; it and the key are stored with each of the events.

    ``expected_position``, where it is not None, is that of the log's last event: it says that
    the log has the history that the caller saw, not only as many events. It goes with an
    ``expected_version`` from 1 on, and is compared under the same lock.

    ``rules`` are for stores that have ``keeps_rules``; other stores are not asked.
    """

    log_id: LogId
    events: Sequence[EncodedEvent]
    expected_version: int | None
    idempotency_key: str | None
    metadata: str
    expected_position: int | None = None
    rules: Rules | None = None


class Outcome(Enum):
    """The outcome of an append that was not stored together with others."""

    UNDECIDED = "undecided"  # alone, it is stored or refused
    HELD = "held"  # another transaction holds the log


UNDECIDED: Final = Outcome.UNDECIDED
HELD: Final = Outcome.HELD


@dataclass(frozen=True, slots=True)
class Claim:
    """An idempotency key that is taken, and the append that took it."""

    log_id: LogId
    first_index: int
    count: int
    fingerprint: bytes
    position: int  # of the append's last event

    @property
    def state(self) -> LogState:
        """The state that the original append returned."""
        return LogState(self.log_id, self.first_index + self.count, self.position)

    def replay(self, idempotency_key: str) -> IdempotentReplay:
        """Return the error that carries the original append's answer."""
        return IdempotentReplay(
            idempotency_key, log_id=self.log_id, index=self.first_index, state=self.state
        )

    def reuse(self, idempotency_key: str, *, reason: str = "events") -> IdempotencyKeyReused:
        """Return the error that says that the key belongs to another append."""
        return IdempotencyKeyReused(
            idempotency_key,
            log_id=self.log_id,
            index=self.first_index,
            count=self.count,
            reason=reason,
        )


class BaseStore(ABC):
    """
    Where logs are kept.

    All methods may be called inside of a caller's transaction and then take part in it. A
    refusal raises nothing in the database, and leaves the transaction as it was.
    """

    # The database alias whose transactions the store takes part in, if there is one: projections
    # that are kept inline take part in its appends.
    using: str | None = None

    # Whether ``append`` obeys the rules of a request, and ``in_turn`` takes ``others``.
    keeps_rules: bool = False

    # Whether personal data are encrypted before they are passed to ``append``. A store for tests,
    # which keeps nothing, can do without keys.
    encrypts: bool = True

    @abstractmethod
    def append(self, request: AppendRequest) -> LogState:
        """
        Store the events of one append, or none, and return the log's new state.

        Raise what ``refusal()`` and ``rules_refusal()`` return, and TransactionMustRetry where the
        database aborted the caller's transaction.
        """

    @abstractmethod
    def claim(self, log_type: str, idempotency_key: str) -> Claim | None:
        """Return the append that took the key, or None for a key that is free."""

    def in_turn(
        self,
        log_id: LogId,
        call: Callable[[], T],
        *,
        conflicts: int,
        others: Sequence[LogState] = (),
    ) -> T:
        """
        Call ``call`` when it is the caller's turn to append to the log, and return its answer.

        It is called after ``conflicts`` conflicts with other writers of the log. A store that can
        lock the log holds the lock until ``call``, which reads, decides and appends, is committed,
        so that no other writer can append in between. ``others`` are states of further logs that
        the append expects: the store locks all of these logs, in the order of their UUIDs. They
        are passed only to stores that have ``keeps_rules``. This default cannot lock. It waits
        for a random time, so that callers that were in one conflict are not in the next one, too.
        """
        if conflicts:
            time.sleep(random.uniform(0, FIRST_PAUSE * 2 ** min(conflicts, DOUBLINGS)))
        return call()

    def owner(self, value: UniqueValue) -> LogId | None:
        """
        Return the log that a unique value belongs to, or None for a value that is free.

        Only stores that have ``keeps_rules`` are asked.
        """
        raise NotImplementedError(f"{type(self).__qualname__} does not keep unique values.")

    @abstractmethod
    def version(self, log_id: LogId) -> int:
        """Return the number of events of the log, 0 for one that does not exist."""

    @abstractmethod
    def events(
        self, log_id: LogId, *, start: int, limit: int, reverse: bool = False
    ) -> Sequence[StoredEvent]:
        """
        Return at most ``limit`` events from index ``start`` on, or backwards from there.

        A log of another type with the same UUID has none.
        """

    def missing(self, log_id: LogId) -> LogNotFound:
        """
        Return the error for a log without events.

        Override it where logs can be erased: LogErased says that this one was.
        """
        return LogNotFound(log_id)

    def since(self, log_id: LogId, *, start: int, limit: int) -> Sequence[StoredEvent]:
        """
        Return at most ``limit`` events from index ``start`` on, of a log that is known.

        Its callers check by the first event that it is the log that they mean, so the log's type
        need not be compared. Override it where that is faster.
        """
        return self.events(log_id, start=start, limit=limit)

    def since_with_claim(
        self, log_id: LogId, key: tuple[str, str], *, start: int, limit: int
    ) -> tuple[Sequence[StoredEvent], Claim | None]:
        """
        Return what ``since`` returns, and the claim of ``key``: a log type and an idempotency key.

        The look-up must not be older than the events. Override it where one query does both.
        """
        events = self.since(log_id, start=start, limit=limit)
        return events, self.claim(*key)

    def restore(self, events: Sequence[ExportedEvent]) -> Restored:
        """
        Store exported events that are missing, all or none, with the times that they have.

        They get new positions, in the order given. Events that are there already are compared
        and left as they are, so the same batch can be restored again. Locks are those of an
        append.

        Raise ImportDiffers where an event differs from the stored one or does not follow the last
        one, and TransactionMustRetry where the database aborted the caller's transaction.
        Nothing of the batch is stored then. A store need not have this method.
        """
        raise NotImplementedError(f"{type(self).__qualname__} cannot restore exported events.")

    def restore_new_logs(self, events: Sequence[ExportedEvent]) -> frozenset[LogId]:
        """
        Store the events of those logs that do not exist yet, and return the ids of these logs.

        It does what ``restore`` does, except that events of a log that exists are left out, and
        not compared. So are those of a log whose first event here has an idempotency key that is
        taken. Event 0 of each log must be among the events.

        Raise ImportDiffers where a log of another type has the UUID, or the events of a log do
        not follow each other, and TransactionMustRetry where the database aborted the caller's
        transaction. Nothing of the batch is stored then. A store need not have this method.
        """
        raise NotImplementedError(f"{type(self).__qualname__} cannot restore exported events.")

    def last(self, log_id: LogId, *, limit: int) -> Sequence[StoredEvent]:
        """Return the last ``limit`` events, newest first."""
        return self.events(log_id, start=MAX_VERSION, limit=limit, reverse=True)

    def stream(
        self, log_id: LogId, *, start: int = 0, page: int = STREAM_PAGE
    ) -> Iterator[StoredEvent]:
        """Yield the log's events from index ``start`` on, holding one page at a time."""
        return chain.from_iterable(self.pages(log_id, start=start, page=page))

    def pages(
        self, log_id: LogId, *, start: int = 0, page: int = STREAM_PAGE
    ) -> Iterator[Sequence[StoredEvent]]:
        """Yield the log's events from index ``start`` on, a page at a time, none of it empty."""
        return self._pages(self.events, log_id, start, page)

    def pages_since(
        self, log_id: LogId, *, start: int, page: int = STREAM_PAGE
    ) -> Iterator[Sequence[StoredEvent]]:
        """Yield what ``since`` returns, a page at a time, none of it empty."""
        return self._pages(self.since, log_id, start, page)

    def _pages(
        self, read: Callable[..., Sequence[StoredEvent]], log_id: LogId, start: int, page: int
    ) -> Iterator[Sequence[StoredEvent]]:
        while True:
            rows = read(log_id, start=start, limit=page)
            if rows:
                yield rows
            if len(rows) < page:
                return
            start += page


def refusal(
    request: AppendRequest, claim: Claim | None, version: int, position: int | None
) -> EventLogError | None:
    """
    Return why an append is refused, or None where nothing is wrong with it.

    ``claim`` is that of the request's key, ``version`` the log's actual one (0: it does
    not exist), and ``position`` that of the log's last event (None: there is none, or the
    request expects no position). The key is looked at before the version, so that a retry whose
    first answer got lost is a replay, also where its expectation is out of date by now.

    A key names one request. The same events on *another log* are another request (answering
    with the first log's state would lose an event silently), except for ``create``, whose
    retry may come with another new id.

    Fingerprints also differ where an event's class has changed since. Stores know no classes,
    so they answer IdempotencyKeyReused with the ``reason`` "events", and a LogManager decides
    by the stored events.
    """
    if claim is not None and request.idempotency_key is not None:
        creates = request.expected_version == 0
        same_place = claim.first_index == 0 if creates else claim.log_id == request.log_id
        if not same_place:
            return claim.reuse(request.idempotency_key, reason="log")
        if same_request(claim.fingerprint, request.events):
            return claim.replay(request.idempotency_key)
        return claim.reuse(request.idempotency_key)
    if request.expected_version == 0:
        if version:
            return LogAlreadyExists(request.log_id, actual_version=version)
    elif version == 0:
        return LogNotFound(request.log_id)
    elif request.expected_version not in (None, version):
        return ConcurrentAppend(
            request.log_id,
            expected_version=request.expected_version or 0,
            actual_version=version,
        )
    elif request.expected_position not in (None, position):
        return ConcurrentAppend(
            request.log_id,
            expected_version=version,
            actual_version=version,
            expected_position=request.expected_position,
            actual_position=position,
        )
    if version + len(request.events) > MAX_VERSION:
        return LogFull(request.log_id, actual_version=version, count=len(request.events))
    return None


def rules_refusal(
    rules: Rules,
    log_id: LogId,
    states: Mapping[LogId, tuple[int, int | None]],
    owners: Mapping[UniqueValue, LogId],
) -> EventLogError | None:
    """
    Return why the rules of an append refuse it, or None where they do not.

    It is asked after ``refusal()``: the key and the append's own log are looked at first.
    ``states`` are the version of each other log that exists, and the position of its last event;
    ``owners`` the logs that the values belong to.
    """
    for other in rules.others:
        version, position = states.get(other.log_id, (0, None))
        if not version:
            return LogNotFound(other.log_id)
        if version != other.version:
            return ConcurrentAppend(
                other.log_id, expected_version=other.version, actual_version=version
            )
        if other.position and other.position != position:
            return ConcurrentAppend(
                other.log_id,
                expected_version=version,
                actual_version=version,
                expected_position=other.position,
                actual_position=position,
            )
    for value in rules.values:
        owner = owners.get(value)
        if owner is not None and owner != log_id:
            return NameTaken(value.scope, owner)
    return None


def claim_of(
    log_type: str,
    log: UUID | None,
    first_index: int,
    count: int,
    fingerprint: bytes,
    position: int | None,
) -> Claim | None:
    """Return the claim that a row of IdempotencyKey holds, or None for a key without a log."""
    if log is None:
        return None
    return Claim(LogId.stored(log_type, log), first_index, count, bytes(fingerprint), position or 0)
