"""
Releases that run side by side: which events this code applies, and which it leaves to others.

During a deployment processes of two releases share one checkpoint for each projection. Moving
the checkpoint past an event means that no process will apply it. So a process moves it past an
event silently only where no running release handles the event. There are three verdicts:

APPLY: this release handles the event's type, and can read its schema version.
PASS: this release knows the type and has no handler for it, or the type is retired, or the event
is of a log type that the projection does not read; and no other release handles it.
HOLD: everything else. The event is written down (a ParkedEvent with ``awaits``), its log is held
from it on, and no attempt is counted. A process that can apply it does so later.

A type or version that this process does not know is held without a look at other releases. That
another release handles a type that this one knows and does not handle can only be known from that
release: each process that runs projections declares what it handles (``ProjectionWorker``)
before it takes its first lease.

Why no event is passed over. Let a release N handle a type that the release O knows, but does not
handle. N's declaration and the end of all leases that O holds (their tokens are raised) are one
transaction. A batch of O commits either before it, when N did not run yet; or it fails, because
its token is out of date. O's next lease is taken after that transaction, and O reads the
declarations after it has taken the lease: it finds N's, and holds the event.

A declaration is valid until ``KEPT`` after its process was last seen, so a worker may restart
without losing events. A working process renews its declaration, also in the middle of a batch
(``seen``). An expired declaration is never renewed: O may have passed over events meanwhile, and
still holds its lease. It is declared again, which takes all leases away. Where releases differ,
those that handle more are preferred: see ``preferred``.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, QuerySet

from eventlogs.aggregates import aggregates
from eventlogs.events.registry import registry
from eventlogs.exceptions import (
    EventLogError,
    ProjectionUnavailable,
    UndecodableEvent,
    UnknownEventType,
)
from eventlogs.feed.sources import UnknownTypes
from eventlogs.ids import LogId
from eventlogs.models import Checkpoint, ProjectionState, ProjectionWorker
from eventlogs.projections import mysql
from eventlogs.projections.base import BaseProjection
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.retries import run_again
from eventlogs.values import StoredEvent

KEPT: Final = 300.0  # seconds for which a declaration counts after its process was seen last
RENEWED: Final = 60.0  # seconds after which a process in the middle of its work is seen again
TURN: Final = 15.0  # seconds for which one of several releases that differ has the work
RUN: Final = "run:"  # begins the names of single runs
MARK: Final = secrets.token_hex(8)  # of this process, on events that it leaves to other releases


class Verdict(Enum):
    """The decision of a release about an event."""

    APPLY = "apply"
    HOLD = "hold"
    PASS = "pass"


APPLY, HOLD, PASS = Verdict.APPLY, Verdict.HOLD, Verdict.PASS


class Handles(NamedTuple):
    """
    The events that one release of a projection handles.

    ``types`` are event types under all of their names, each with the newest schema version that
    the release can read. ``all_types`` says that it takes the other types of its logs as well.
    ``log_types`` None means all.
    """

    version: int
    log_types: frozenset[str] | None
    types: Mapping[str, int]
    all_types: bool

    @property
    def as_json(self) -> dict[str, Any]:
        """The declaration as it is stored."""
        return {
            "version": self.version,
            "log_types": None if self.log_types is None else sorted(self.log_types),
            "types": dict(sorted(self.types.items())),
            "all_types": self.all_types,
        }

    @property
    def digest(self) -> str:
        """A short text that only equal declarations have in common."""
        return blake2b(json.dumps(self.as_json).encode(), digest_size=16).hexdigest()

    def takes(self, log_type: str, name: str) -> bool:
        """Return whether the release applies events of a type, of whatever schema version."""
        return (self.all_types or name in self.types) and (
            self.log_types is None or log_type in self.log_types
        )

    def covers(self, other: Handles) -> bool:
        """Return whether this release can apply whatever the other one can."""
        return (
            self.version >= other.version
            and (self.all_types or not other.all_types)
            and (
                self.log_types is None
                or (other.log_types is not None and other.log_types <= self.log_types)
            )
            and all(self.types.get(name, 0) >= newest for name, newest in other.types.items())
        )


def stored(value: Mapping[str, Any]) -> Handles:
    """Return a declaration that was stored."""
    log_types = value["log_types"]
    return Handles(
        value["version"],
        None if log_types is None else frozenset(log_types),
        value["types"],
        value["all_types"],
    )


def handles_of(projection: type[BaseProjection]) -> Handles:
    """Return the events that this process' release of a projection handles."""
    names, log_types = projection.event_types_read(), projection.log_types_read()
    if names is None:
        read = [] if log_types is None else log_types
        classes = [each for log_type in read for each in aggregates.of(log_type)]
        names = [name for each in classes for kind in each.event_types for name in kind.names]
    return Handles(
        projection.version,
        None if log_types is None else frozenset(log_types),
        {name: kind.version for name in names if (kind := registry.by_name(name)) is not None},
        projection.event_types_read() is None,
    )


class Reading:
    """How a projection of this process reads the feed, beside other releases."""

    def __init__(self, projection: type[BaseProjection], others: Iterable[Handles] = ()) -> None:
        """``others`` are the releases that run beside this one; see ``others_of``."""
        self._name = projection.name
        self._own = handles_of(projection)
        self._others = [each for each in others if not self._own.covers(each)]
        self._verdicts: dict[tuple[str, str, int], Verdict] = {}
        self._logs = (
            frozenset(each.log_type for each in aggregates)
            if self._own.log_types is None
            else self._own.log_types
        )

    @property
    def is_alone(self) -> bool:
        """Whether no other release can apply an event that this one cannot."""
        return not self._others

    @cached_property
    def mark(self) -> str:
        """
        The mark of this process on events that it leaves to other releases.

        A process with another mark looks at the event again: another process, or this one when
        other releases run beside it than before.
        """
        others = sorted(each.digest for each in self._others)
        return blake2b(f"{MARK}{others}".encode(), digest_size=16).hexdigest()

    @cached_property
    def types(self) -> list[str] | None:
        """The types to read from the feed, None for all; see ``unknown`` for further ones."""
        if any(each.all_types for each in (self._own, *self._others)):
            return None
        return sorted({name for each in (self._own, *self._others) for name in each.types})

    @cached_property
    def log_types(self) -> list[str] | None:
        """The types of the logs to read, or None for all."""
        read = [each.log_types for each in (self._own, *self._others)]
        known = [each for each in read if each is not None]
        return sorted(frozenset().union(*known)) if len(known) == len(read) else None

    @cached_property
    def unknown(self) -> UnknownTypes | None:
        """Which unknown types to read beside ``types``."""
        if self.types is None:
            return None
        return UnknownTypes(registry.known_names(), sorted(self._logs))

    def verdict(self, log_type: str, name: str, schema_version: int) -> Verdict:
        """Return the verdict on an event."""
        key = log_type, name, schema_version
        found = self._verdicts.get(key)
        if found is None:
            found = self._verdicts[key] = self._verdict(log_type, name, schema_version)
        return found

    def takes(self, row: StoredEvent) -> bool:
        """Return whether to apply an event; raise the error that says why it is held."""
        verdict = self.verdict(row.log_type, row.type, row.schema_version)
        if verdict is HOLD:
            raise self.why_held(row.log_id, row.index, row.type, row.schema_version)
        return verdict is APPLY

    def why_held(self, log_id: LogId, index: int, name: str, schema_version: int) -> EventLogError:
        """Return the error that says why an event is held."""
        kind = registry.by_name(name)
        if kind is None:
            return UnknownEventType(name, log_id=log_id, index=index)
        if schema_version > kind.version:
            return UndecodableEvent(
                f"it was written by newer code; the class here is of version {kind.version}",
                event_type=name,
                schema_version=schema_version,
                is_newer=True,
                log_id=log_id,
                index=index,
            )
        return ProjectionUnavailable("elsewhere", projection=self._name)

    def _verdict(self, log_type: str, name: str, schema_version: int) -> Verdict:
        own, kind = self._own, registry.by_name(name)
        elsewhere = HOLD if any(each.takes(log_type, name) for each in self._others) else PASS
        if own.log_types is not None and log_type not in own.log_types:
            return elsewhere
        if kind is None and not registry.is_retired(name):
            return HOLD if log_type in self._logs else elsewhere
        if kind is not None and own.takes(log_type, name) and schema_version > kind.version:
            return HOLD
        if name in own.types:
            return APPLY
        if own.all_types:
            # A fold counts the event. A release that names its type may do more with it.
            named = (each for each in self._others if name in each.types)
            return HOLD if any(each.takes(log_type, name) for each in named) else APPLY
        return elsewhere


def is_unread(error: BaseException) -> bool:
    """Return whether an event cannot be decoded because newer code wrote it."""
    return isinstance(error, UnknownEventType) or (
        isinstance(error, UndecodableEvent) and error.is_newer
    )


def own_reading(projection: type[BaseProjection]) -> Reading:
    """Return how an append reads events: without a look at other releases."""
    stamps = registry.stamp, aggregates.stamp
    kept = _own_readings.get(projection)
    if kept is None or kept[0] != stamps:
        kept = _own_readings[projection] = stamps, Reading(projection)
    return kept[1]


_own_readings: WeakKeyDictionary[type, tuple[object, Reading]] = WeakKeyDictionary()


# Declarations


def declare(
    using: str, worker: str, handles: Mapping[str, Handles], *, seconds: float = 0.0
) -> None:
    """
    Declare what a process handles, by the names of its projections, before it takes a lease.

    ``seconds`` is for how long it counts as a worker that takes its share. Where no valid
    declaration says the same, its own included, the leases of its projections are taken away:
    the workers that held one read the declarations again.
    """

    def attempt(_: BaseDatabaseWrapper) -> None:
        workers = ProjectionWorker.objects.using(using)
        with transaction.atomic(using=using):
            # Lock the states, so that of two declarations the second sees the row of the first.
            states = ProjectionState.objects.using(using).filter(name__in=handles).order_by("name")
            list(states.select_for_update().values_list("name"))
            states.order_by().update(version=F("version"))  # so that REPEATABLE READ conflicts, too
            workers.filter(seen_until__lt=UTCNow() - timedelta(seconds=KEPT)).delete()
            found = list(workers)
            workers.bulk_create(
                [
                    ProjectionWorker(
                        name=worker,
                        projections={name: each.as_json for name, each in handles.items()},
                        seen_until=UTCNow() + timedelta(seconds=seconds),
                        declared_at=UTCNow(),
                    )
                ],
                update_conflicts=True,
                unique_fields=None if mysql.is_mysql(using) else ["name"],
                update_fields=["projections", "seen_until", "ended_at"],
            )
            for name, each in handles.items():
                known = {
                    other.digest for row in found if (other := declared_by(row, name)) is not None
                }
                if each.digest not in known:
                    _take_leases_away(name, using)

    run_again(using, attempt)


def seen(using: str, worker: str, *, seconds: float = 0.0) -> bool:
    """Note that a process is there; return False where its declaration does not count any more."""
    declared = _valid(using).filter(name=worker)
    return bool(declared.update(seen_until=UTCNow() + timedelta(seconds=seconds)))


def ended(using: str, worker: str) -> None:
    """
    Note that a process has ended in good order.

    Its declaration is kept: the worker that comes after it may take a moment.
    """
    _valid(using).filter(name=worker).update(seen_until=UTCNow(), ended_at=UTCNow())


def needed_for(projections: Iterable[type[BaseProjection]]) -> float:
    """
    Return for how many seconds to be seen at least, so that no event outlasts the declaration.

    That is 0, unless one event may take nearly as long as a declaration counts.
    """
    longest = max((each.timeout for each in projections), default=0.0)
    return max(0.0, longest + 2 * RENEWED - KEPT)


def declare_run(projection: type[BaseProjection], using: str) -> None:
    """Declare what a single run of a projection handles, as ``declare`` does for a worker."""
    own = handles_of(projection)
    worker = (
        f"{RUN}{blake2b(f'{projection.name}:{own.digest}'.encode(), digest_size=16).hexdigest()}"
    )
    fresh = ProjectionWorker.objects.using(using).filter(
        name=worker, seen_until__gte=UTCNow() - timedelta(seconds=RENEWED)
    )
    if not fresh.exists():
        declare(using, worker, {projection.name: own}, seconds=needed_for([projection]))


def reading_of_rows(projection: type[BaseProjection], using: str) -> Reading:
    """
    Return how to read events for rows that replace others, or are compared with them.

    Only releases of the same version of the projection count: another version makes rows of its
    own.
    """
    others = others_of(projection, using)
    return Reading(projection, [each for each in others if each.version == projection.version])


def workers(using: str) -> QuerySet[ProjectionWorker]:
    """Return the processes that take their share now; single runs take none."""
    return (
        ProjectionWorker.objects.using(using)
        .filter(seen_until__gte=UTCNow())
        .exclude(name__startswith=RUN)
    )


def others_of(projection: type[BaseProjection], using: str) -> list[Handles]:
    """Return what other releases that run, or ran a moment ago, handle. Call it under a lease."""
    declared = (declared_by(row, projection.name) for row in _valid(using))
    found = {each.digest: each for each in declared if each is not None}
    found.pop(handles_of(projection).digest, None)
    return [found[digest] for digest in sorted(found)]


def _valid(using: str) -> QuerySet[ProjectionWorker]:
    """Return the declarations that count."""
    kept = UTCNow() - timedelta(seconds=KEPT)
    return ProjectionWorker.objects.using(using).filter(seen_until__gte=kept)


def reading_of(projection: type[BaseProjection], using: str) -> Reading:
    """Return how to read the feed beside the releases that run. Call it under a lease."""
    return Reading(projection, others_of(projection, using))


def preferred(workers: Iterable[ProjectionWorker]) -> dict[str, frozenset[str]]:
    """
    Return, by the names of workers, the projections that each of them may take a share of.

    Of two releases, the one that can apply whatever the other can has the work; so events need
    not wait for the end of a deployment. Where neither can, they take turns of ``TURN`` seconds,
    by the clocks of their machines. Clocks that differ cost time, and nothing else.
    """
    releases: dict[str, dict[str, Handles]] = {}
    runs: list[tuple[str, str, str]] = []
    for row in workers:
        for name in row.projections:
            each = declared_by(row, name)
            if each is not None:
                releases.setdefault(name, {})[each.digest] = each
                runs.append((row.name, name, each.digest))
    chosen = {name: _chosen(found) for name, found in releases.items()}
    shares: dict[str, set[str]] = {}
    for worker, name, digest in runs:
        if digest == chosen[name]:
            shares.setdefault(worker, set()).add(name)
    return {worker: frozenset(names) for worker, names in shares.items()}


def _chosen(releases: Mapping[str, Handles]) -> str:
    best = [
        digest
        for digest, each in releases.items()
        if not any(other.covers(each) and not each.covers(other) for other in releases.values())
    ]
    return sorted(best)[int(time.time() // TURN) % len(best)]


def declared_by(row: ProjectionWorker, name: str) -> Handles | None:
    """Return a process' declaration of a projection, or None where it does not run it."""
    value = row.projections.get(name)
    return None if value is None else stored(value)


def _take_leases_away(name: str, using: str) -> None:
    # Keep the position: a batch under way fails by its token, and its events are read again. Keep
    # the owner: an event may have killed it, and the next holder must be careful. Begin with the
    # checkpoints of the rows in use, as the end of a rebuild does: the same order of locks.
    for is_rebuild in (False, True):
        Checkpoint.objects.using(using).filter(projection=name, is_rebuild=is_rebuild).update(
            token=F("token") + 1, leased_until=None
        )
