"""
Chained histories: verify them, and chain the logs that are not chained yet.

``events/chain.py`` defines the digests. A verifier recomputes each of them, in Python, from what is
stored: it does not trust the functions in the database. Memory is constant, nothing is locked, and
appends continue meanwhile: a log that seems to be wrong is read again before it is a finding.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain as joined
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import connections
from django.db.models import QuerySet

from eventlogs import conf
from eventlogs.events import chain
from eventlogs.ids import LogId
from eventlogs.models import Event, EventLog
from eventlogs.operations.commands import command
from eventlogs.operations.verification import Finding, Scope
from eventlogs.stores import digested_events
from eventlogs.stores.digested_events import Digested
from eventlogs.stores.erasing import NO_LOG_TYPE
from eventlogs.stores.retries import run_in_transaction
from eventlogs.stores.uuid_order import order_of
from eventlogs.utils.words import counted

PAGE: Final = 2_000  # logs read at once
LOOKS: Final = 20  # at a log that is appended to while it is verified
UPDATED: Final = 200  # events whose digests are set by one statement

_log_of = attrgetter("event.log_id.uuid")


class Head(NamedTuple):
    """What the row of a log says of its chain."""

    log_id: LogId
    version: int
    head: bytes | None


@dataclass(slots=True)
class _Walk:
    """How far the events of one log have been followed."""

    log: Head
    from_jsonb: bool
    count: int = 0
    digest: bytes | None = None  # of the last event that was read
    at_version: bytes | None = None  # of the last event that the log's row knows

    def follow(self, events: Iterable[Digested]) -> Finding | None:
        """Recompute digests; return the first event that does not fit."""
        log, from_jsonb = self.log, self.from_jsonb
        log_id = log.log_id
        index, digest = self.count, self.digest
        problem = ""
        for event, stored in events:
            if event.index != index:
                problem, at = f"event {event.index} stands where event {index} should be", index
                break
            at = index
            if event.log_id is not log_id and event.log_id != log_id:
                problem = f"it is stored with the log type {event.log_type}"
                break
            log_id = event.log_id  # the events of a log share one object, as a rule
            if stored is None:
                problem = "it has no digest, and its log is chained"
                break
            try:
                digest = chain.digest(digest, event, from_jsonb=from_jsonb)
            except ValueError as error:
                problem = f"it cannot be digested: {error}"
                break
            if digest != stored:
                problem = "its digest does not fit: it, or what is before it, was changed"
                break
            index += 1
            if index == log.version:
                self.at_version = digest
        self.count, self.digest = index, digest
        return Finding("chain", str(log.log_id), problem, at) if problem else None


class ChainVerifier:
    """Digests of chained logs against their events; ``unchained`` counts the other logs."""

    name = "chain"

    def __init__(self) -> None:
        self.chained = 0
        self.unchained = 0

    def verify(self, scope: Scope) -> Iterator[Finding]:
        """
        Walk over logs and events side by side, both in the order of the logs' UUIDs.

        The row of a log is read before its events, so an append in between shows as events that
        the row does not know: then the row and the events behind are read again.
        """
        after = scope.after.uuid if scope.after is not None else None
        from_jsonb = connections[scope.using].vendor == "postgresql"
        logs = joined.from_iterable(heads(scope.using, after=after, log_types=scope.log_types))
        pages = digested_events.by_log(scope.using, after=after, log_types=scope.log_types)
        log, order = next(logs, None), order_of(scope.using)
        for uuid, events in groupby(_told(pages, scope), key=_log_of):
            while log is not None and order(log.log_id.uuid) < order(uuid):
                yield from self._check(scope, log, iter(()), from_jsonb)
                log = next(logs, None)
            if log is not None and log.log_id.uuid == uuid:
                yield from self._check(scope, log, events, from_jsonb)
                log = next(logs, None)
            elif not _rows(scope.using).filter(pk=uuid).exists():
                yield Finding("chain", str(uuid), "there are events, and no log of this UUID")
        while log is not None:
            yield from self._check(scope, log, iter(()), from_jsonb)
            log = next(logs, None)
        if self.unchained and conf.chain():
            yield Finding(
                "chain",
                "all logs",
                f"{counted(self.unchained, 'log is', 'logs are')} not chained, although "
                "EVENTLOGS['CHAIN'] is on. If all logs were chained before, find out who removed "
                f"the chain; otherwise run {command('chain', using=scope.using)}",
            )

    def _check(
        self, scope: Scope, log: Head, events: Iterator[Digested], from_jsonb: bool
    ) -> Iterator[Finding]:
        scope.reached = log.log_id
        if log.head is None:
            finding = self._unchained(scope, log, events)
        else:
            self.chained += 1
            walk = _Walk(log, from_jsonb)
            finding = walk.follow(events)
            if finding is None and (walk.count, walk.digest) != (log.version, log.head):
                finding = _check_again(scope, walk)
        if finding is not None:
            yield finding

    def _unchained(self, scope: Scope, log: Head, events: Iterator[Digested]) -> Finding | None:
        self.unchained += 1
        for event, digest in events:
            if digest is None:
                continue
            _, head = _row_of(scope.using, log)
            if head is None:  # still: it was not chained meanwhile
                return Finding(
                    "chain",
                    str(log.log_id),
                    "it has a digest, and its log is not chained: somebody has removed the log's "
                    f"head, or {command('chain', using=scope.using)} was interrupted",
                    event.index,
                )
        return None


def _check_again(scope: Scope, walk: _Walk) -> Finding | None:
    """Compare a log's row with its events, following those that were appended meanwhile."""
    for _ in range(LOOKS):
        version, head = _row_of(scope.using, walk.log)
        walk.log = Head(walk.log.log_id, version, head)
        if walk.count == version:
            walk.at_version = walk.digest
        while True:
            page = digested_events.of_log(
                scope.using, walk.log.log_id.uuid, start=walk.count, limit=PAGE
            )
            finding = walk.follow(page)
            if finding is not None:
                return finding
            if len(page) < PAGE:
                break
        subject = str(walk.log.log_id)
        if walk.count < version:
            return Finding(
                "chain",
                subject,
                f"the log is at version {version}, and its events end here",
                walk.count,
            )
        if walk.count == version:
            if walk.at_version == head:
                return None
            return Finding("chain", subject, "the log's head is not the digest of its last event")
    return Finding(
        "chain", subject, f"the log is at version {version}, and has more events", version
    )


def heads(
    using: str, *, after: UUID | None = None, log_types: Collection[str] = ()
) -> Iterator[list[Head]]:
    """Yield pages of logs in the order of their UUIDs, those behind ``after``."""
    wanted = _rows(using).order_by("pk")
    if log_types:
        wanted = wanted.filter(log_type__in=sorted(log_types))
    while True:
        later = wanted.filter(pk__gt=after) if after is not None else wanted
        rows = later.values_list("log_type", "pk", "version", "head")[:PAGE]
        page = [
            Head(LogId.stored(log_type, pk), version, None if head is None else bytes(head))
            for log_type, pk, version, head in rows
        ]
        if page:
            yield page
            after = page[-1].log_id.uuid
        if len(page) < PAGE:
            return


def _told(pages: Iterable[list[Digested]], scope: Scope) -> Iterator[Digested]:
    for page in pages:
        yield from page
        scope.tell(len(page))


def _row_of(using: str, log: Head) -> tuple[int, bytes | None]:
    row = _rows(using).filter(pk=log.log_id.uuid).values_list("version", "head").first()
    version, head = row or (0, None)
    return version, None if head is None else bytes(head)


def _rows(using: str) -> QuerySet[EventLog]:
    # A plain queryset: those of the models refuse to write. Marks of erased logs have no events.
    return QuerySet(EventLog, using=using).exclude(log_type=NO_LOG_TYPE)


@dataclass(slots=True)
class Chained:
    """What ``chain_logs`` has done so far."""

    logs: int = 0
    events: int = 0
    damaged: list[Finding] = field(default_factory=list)  # logs that it has left as they are


class _Damaged(Exception):
    """A log cannot be chained; it never leaves this module."""

    def __init__(self, log_id: LogId, index: int, reason: str) -> None:
        super().__init__(reason)
        self.finding = Finding("chain", str(log_id), reason, index)


def chain_logs(
    using: str, *, log_types: Collection[str] = (), done: Chained | None = None
) -> Generator[Chained, None, None]:
    """
    Chain the logs that are not chained; yield the counts after each step.

    Short logs are done many at a time, in one transaction; the events of a long one in pages, each
    in a transaction of its own, while appends to it go on. A log is chained by its last step: under
    the lock of its row, which every append takes, the events that are left get their digests, and
    the row its head. From then on appends continue the chain.

    A transaction that has locked several logs does not wait for another one's: a log that somebody
    else has locked is left for the end, and done alone then. A step that the database aborts all
    the same is run again; TransactionMustRetry after six attempts.

    It may be killed at any time, run again, and run twice at once: digests that are there are
    compared, and the head comes last. Memory is constant, but for the logs that were locked, and
    for ``damaged``.

    A log is damaged if an event is missing, or if a digest of an earlier run does not fit: history
    was changed since. It is not chained, has its finding in ``damaged``, and holds up no other.

    On PostgreSQL it needs a role that may UPDATE events, such as their owner: the trigger that
    refuses changes lets a digest pass that was NULL.
    """
    done = done if done is not None else Chained()
    from_jsonb = connections[using].vendor == "postgresql"
    skip_locked = connections[using].features.has_select_for_update_skip_locked
    short: list[UUID] = []
    later: list[UUID] = []
    events = 0
    for page in heads(using, log_types=log_types):
        for log in page:
            if log.head is not None:
                continue
            if log.version > PAGE:
                yield from _chain_long(using, log, from_jsonb, done)
                continue
            short.append(log.log_id.uuid)
            events += log.version
            if events > PAGE:
                later += _chain_short(using, short, from_jsonb, done, skip_locked=skip_locked)
                yield done
                short, events = [], 0
    if short:
        later += _chain_short(using, short, from_jsonb, done, skip_locked=skip_locked)
        yield done
    for log_id in later:
        _chain_short(using, [log_id], from_jsonb, done, skip_locked=False)
        yield done


def _chain_short(
    using: str, logs: list[UUID], from_jsonb: bool, done: Chained, *, skip_locked: bool
) -> list[UUID]:
    """Chain logs in one transaction; return those that others have locked."""

    def step() -> tuple[Chained, list[UUID]]:
        now = Chained()
        locked = _lock(using, logs, skip_locked=skip_locked)
        for uuid, events in digested_events.of_logs(using, list(locked)).items():
            try:
                head, missing = _digests(None, 0, events, from_jsonb)
                _check_end(using, uuid, locked[uuid], len(events), head)
            except _Damaged as error:
                now.damaged.append(error.finding)
                continue
            _set_digests(using, missing)
            _rows(using).filter(pk=uuid).update(head=head)
            now.events += len(events)
            now.logs += 1
        return now, [each for each in logs if each not in locked] if skip_locked else []

    now, skipped = run_in_transaction(using, step)
    _add(done, now)
    return skipped


def _chain_long(using: str, log: Head, from_jsonb: bool, done: Chained) -> Iterator[Chained]:
    uuid, index = log.log_id.uuid, 0
    digest: bytes | None = None

    def page() -> tuple[bytes | None, int]:
        events = digested_events.of_log(using, uuid, start=index, limit=PAGE)
        head, missing = _digests(digest, index, events, from_jsonb)
        _set_digests(using, missing)
        return head, len(events)

    def end() -> Chained:
        now, head, at = Chained(), digest, index
        for version in _lock(using, [uuid]).values():
            while events := digested_events.of_log(using, uuid, start=at, limit=PAGE):
                head, missing = _digests(head, at, events, from_jsonb)
                _set_digests(using, missing)
                at += len(events)
            _check_end(using, uuid, version, at, head)
            _rows(using).filter(pk=uuid).update(head=head)
            now = Chained(1, at - index)
        return now

    try:
        count = PAGE
        while count == PAGE:
            digest, count = run_in_transaction(using, page)
            index += count
            done.events += count
            yield done
        _add(done, run_in_transaction(using, end))
    except _Damaged as error:
        done.damaged.append(error.finding)
    yield done


def _add(done: Chained, now: Chained) -> None:
    done.logs += now.logs
    done.events += now.events
    done.damaged += now.damaged


def _lock(using: str, logs: list[UUID], *, skip_locked: bool = False) -> dict[UUID, int]:
    """Lock the rows of logs that are not chained, in the order of their ids, as appends do."""
    no_key = connections[using].features.has_select_for_no_key_update
    rows = _rows(using).filter(pk__in=logs, head__isnull=True).order_by("pk")
    rows = rows.select_for_update(no_key=no_key, skip_locked=skip_locked)
    return dict(rows.values_list("pk", "version"))


def _digests(
    digest: bytes | None, start: int, events: list[Digested], from_jsonb: bool
) -> tuple[bytes | None, list[Any]]:
    """Return the digest of the last event, and the events that have none yet, with theirs."""
    missing: list[Any] = []
    for index, (event, stored) in enumerate(events, start=start):
        if event.index != index:
            raise _Damaged(event.log_id, index, "it is missing")
        try:
            digest = chain.digest(digest, event, from_jsonb=from_jsonb)
        except ValueError as error:
            raise _Damaged(event.log_id, index, f"it cannot be digested: {error}") from error
        if stored is None:
            missing.append(Event(position=event.position, digest=digest))
        elif stored != digest:
            reason = "it does not fit the digest that it has: it was changed since an earlier run"
            raise _Damaged(event.log_id, index, reason)
    return digest, missing


def _set_digests(using: str, events: list[Any]) -> None:
    # Another run of the command may have set them since they were read: to the same ones.
    rows: QuerySet[Event] = QuerySet(Event, using=using).filter(digest__isnull=True)
    rows.bulk_update(events, ["digest"], batch_size=UPDATED)


def _check_end(using: str, log: UUID, version: int, count: int, head: bytes | None) -> None:
    if count != version or head is None:
        log_type = _rows(using).values_list("log_type", flat=True).get(pk=log)
        reason = f"the log is at version {version}, and has {counted(count, 'event')}"
        raise _Damaged(LogId.stored(log_type, log), count, reason)
