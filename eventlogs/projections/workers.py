"""
Running projections: once, or until told to stop, beside other workers.

Workers share the work without talking to each other. Each notes in a table that it is alive and
which projections it runs; all of them see the same table, and divide all partitions among the
live workers by the same rule. A worker leases the free partitions of its share, and releases those
that left its share. If two workers read different rows for a moment, the lease decides.

Publishers have threads of their own (see ``publisher_threads``): the loop here never waits for
another system.

A look at a feed that rests costs the few statements of ``Feed.settled``, and one for what is to be
tried again, however many projections there are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from threading import Event as Flag
from typing import Final, NamedTuple

from django.db import Error, connections

from eventlogs.exceptions import (
    EventLogError,
    FeedUnavailable,
    ProjectionTimedOut,
    ProjectionUnavailable,
)
from eventlogs.feed.reader import Feed
from eventlogs.models import ParkedEvent, ProjectionState
from eventlogs.projections import actions, leases, releases
from eventlogs.projections.base import BaseProjection, RowProjection, projections
from eventlogs.projections.batches import Advancer
from eventlogs.projections.catch_up import catch_up_projection, divide
from eventlogs.projections.error_text import described, traceback_of
from eventlogs.projections.feeds import feed_of
from eventlogs.projections.held_logs import uncount_lost_attempts
from eventlogs.projections.leases import LeaseLost
from eventlogs.projections.publisher_threads import PublisherThread, stop_all
from eventlogs.projections.rebuild import end_request, rebuild_steps, requested_rebuilds
from eventlogs.projections.releases import Handles
from eventlogs.projections.starting import begin, lease_partition
from eventlogs.stores.clock import UTCNow

logger = logging.getLogger("eventlogs.projections")

ASIDE_EVERY, ASIDE_FOR = 15.0, 3.0  # seconds
BEAT: Final = 1.0  # seconds between two looks at the workers that are alive
ALIVE: Final = 10.0  # seconds for which a worker counts as alive after its last sign
SHORTEST_PAUSE: Final = 0.02  # seconds between two looks at feeds that have just moved
LONGEST_PAUSE: Final = 1.0  # seconds, at feeds that rest
PATIENCE: Final = 1.25  # times as long, each time that nothing has come
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds after an error of the database, doubled

OVER: Final = object()

# Errors that pass: a database that is gone, a checkpoint that another transaction locks.
# With psycopg 3.1, a signal that is handled while it waits for the server raises InterruptedError.
WAITED_OUT: Final = (Error, FeedUnavailable, ProjectionTimedOut, InterruptedError)

Place = tuple[str, int]  # a projection's name, and the number of a partition


class Share(NamedTuple):
    """The projections that a worker runs."""

    worker: str
    projections: frozenset[str]


def chosen(names: Iterable[str] | None = None) -> dict[str, type[BaseProjection]]:
    """
    Return projections by name, by default all that are declared.

    Raise KeyError for a name that no imported module declares.
    """
    return {name: projections[name] for name in (projections if names is None else names)}


def run(
    names: Iterable[str] | None = None, *, strict: bool = False, using: str | None = None
) -> dict[str, int]:
    """
    Let projections catch up, by default all; return the number of events applied, by name.

    Partitions that another worker has leased are left to it. Where some fail, the others catch up
    all the same, and an ExceptionGroup of the errors is raised in the end. Each runs on all of its
    databases, or on the one that ``using`` names. With ``strict``, an event that is not applied is
    such an error: a ProjectionFailed, see ``Operations.catch_up``.

    Raise KeyError for a name that no imported module declares.
    """
    applied: dict[str, int] = {}
    errors: list[Exception] = []
    for name, each in chosen(names).items():
        try:
            aliases = each.database_aliases(using=using)
        except Exception as error:
            errors.append(error)
            continue
        for alias in aliases:
            try:
                if issubclass(each, RowProjection):  # first: the rest may wait for it
                    for _ in rebuild_as_requested(each, using=alias):
                        pass
                count = catch_up_projection(each, wait=False, strict=strict, using=alias)
                applied[name] = applied.get(name, 0) + count
            except Exception as error:
                errors.append(error)
    if errors:
        raise ExceptionGroup("Some projections could not catch up.", errors)
    return applied


def rebuild_as_requested(
    projection: type[RowProjection], *, using: str | None = None
) -> Generator[None, None, None]:
    """
    Do a requested rebuild, step by step, and store how it ends.

    Only the loss of the connection is raised. Any other error ends the rebuild, is stored and
    logged, and does not stop other projections.
    """
    using = projection.database_alias(using=using)
    if projection.name not in requested_rebuilds(using):
        return  # another worker has done it meanwhile
    why = ""
    try:
        by = actions.requested_by(projection.name, using)
        for _ in rebuild_steps(projection, by=by, using=using):
            yield
    except Exception as error:
        if isinstance(error, ProjectionUnavailable) and error.reason == "busy":
            return  # another process rebuilds; if that fails, the next round tries again
        if isinstance(error, Error) and not connections[using].is_usable():
            raise
        why = _short(error)
        logger.error("The rebuild of %s has failed: %s", projection.name, why)
    end_request(projection, why, using=using)


class Worker:
    """Runs projections until ``stop`` is set."""

    def __init__(
        self,
        names: Iterable[str] | None = None,
        *,
        stop: Flag | None = None,
        tell: Callable[[dict[str, int]], None] | None = None,
        using: str | None = None,
    ) -> None:
        """
        Run these projections, by default all that are declared.

        ``using`` is the database whose logs are meant, by default the one they are written to. For
        several databases, there is ``all_databases.WorkerOfDatabases``.

        ``stop`` ends it between two batches, and leases are given back. ``tell`` is called
        after each round that applied something, with the number of events by name.
        """
        self._projections = chosen(names)
        self._using = using
        self._stop = stop or Flag()
        self._tell = tell
        self._owner = leases.new_owner()
        self._advancers: dict[Place, Advancer] = {}
        self._threads: dict[Place, PublisherThread] = {}
        self._stopping: list[PublisherThread] = []
        self._instances: dict[Place, BaseProjection] = {}
        self._rebuilds: dict[str, Generator[None, None, None]] = {}
        self._next_beat = 0.0
        self._wait, self._pause = FIRST_WAIT, SHORTEST_PAUSE
        self._is_behind = False
        self._complained: dict[str, str] = {}
        self._declared: dict[str, dict[str, Handles]] = {}

    def run(self) -> None:
        """Run until ``stop`` is set. After an error of the database, wait and try again."""
        try:
            while not self._stop.is_set():
                self._stop.wait(self.turn())
        finally:
            self.close()

    def turn(self) -> float:
        """
        Do one round, and return how many seconds to wait before the next one.

        After an error of the database that passes, that is longer each time. Nothing is raised
        for it.
        """
        try:
            moved = self.round()
        except WAITED_OUT as error:
            if isinstance(error, InterruptedError) and self._stop.is_set():
                self._reconnect()
                return 0.0
            wait, self._wait = self._wait, min(self._wait * 2, LONGEST_WAIT)
            logger.error("Projections wait for %.1f s, and then continue: %s", wait, _short(error))
            self._forget()
            return wait
        self._wait = FIRST_WAIT
        if moved:
            self._pause = SHORTEST_PAUSE
        pause = 0.0 if self._is_behind else self._pause
        if not moved:
            self._pause = min(self._pause * PATIENCE, LONGEST_PAUSE)
        return pause

    def round(self) -> bool:
        """Apply one batch of each partition; return whether there was anything to do."""
        if time.monotonic() >= self._next_beat:
            self._beat()
        settled: dict[str, int] = {}
        due: dict[str, set[str]] = {}
        applied: dict[str, int] = {}
        self._is_behind = False
        for place in list(self._advancers):
            if self._stop.is_set():
                break
            advancer = self._advancers[place]
            using = advancer.lease.using
            if using not in settled:
                settled[using], due[using] = Feed(using=using).settled(), are_due(using)
            before = advancer.applied
            try:
                if advancer.position < settled[using]:
                    self._is_behind |= advancer.step()
                else:
                    advancer.rest()
                if place[0] in due[using]:
                    advancer.retry_due()
            except LeaseLost:
                logger.warning("Projection %s: another worker has taken over.", place[0])
                del self._advancers[place]
                self._next_beat = 0.0
            except (Error, FeedUnavailable):
                raise
            except Exception as error:
                # Not caused by an event, whose log would be held. The other projections continue.
                self._complain(place[0], error)
                self._advancers.pop(place).abandon()
            count = advancer.applied - before
            if count:
                applied[place[0]] = applied.get(place[0], 0) + count
        self._look_at_threads(applied)
        for name, steps in list(self._rebuilds.items()):
            # One step each, so that rows are kept up to date meanwhile.
            if next(steps, OVER) is OVER:
                del self._rebuilds[name]
        self._is_behind |= bool(self._rebuilds)
        if applied and self._tell is not None:
            self._tell(applied)
        return bool(applied or self._rebuilds)

    def _look_at_threads(self, applied: dict[str, int]) -> None:
        """Count what publishers have published; raise the database's error that has ended one."""
        self._stopping = [each for each in self._stopping if not each.has_ended]
        for place, thread in list(self._threads.items()):
            has_ended = thread.has_ended
            if count := thread.published():
                applied[place[0]] = applied.get(place[0], 0) + count
            if not has_ended:
                continue
            del self._threads[place]
            self._next_beat = 0.0
            error = thread.error
            if isinstance(error, LeaseLost):
                logger.warning("Projection %s: another worker has taken over.", place[0])
            elif isinstance(error, WAITED_OUT):
                raise error
            elif error is not None:
                self._complain(place[0], error)

    def close(self) -> None:
        """Give all leases back."""
        stop_all([*self._threads.values(), *self._stopping])
        with suppress(Error):
            for steps in self._rebuilds.values():
                steps.close()
            for place in list(self._advancers):
                self._give_back(place)
            for using in self._databases():
                releases.ended(using, self._owner)
        self._forget()

    @staticmethod
    def _complain(name: str, error: BaseException) -> None:
        logger.error(
            "Projection %s cannot continue, and will be tried again: %s\n%s",
            name,
            described(error),
            traceback_of(error),
        )

    # Sharing the work

    def _beat(self) -> None:
        self._next_beat = time.monotonic() + BEAT
        for using, own in self._databases().items():
            uncount_lost_attempts(using)
            states = {name: state for name in own if (state := self._begin(own[name], using))}
            # Only projections that can run here: other workers leave them to this one.
            self._declare(using, {name: releases.handles_of(own[name]) for name in states})
            workers = releases.workers(using)
            chosen = releases.preferred(
                each
                for each in workers
                if each.name == self._owner or not leases.is_dead(each.name)
            )
            shares = [Share(name, names) for name, names in chosen.items()]
            self._take_share(using, own, states, shares)
            for name in requested_rebuilds(using) & own.keys() - self._rebuilds.keys():
                # The worker that has the first partition does it; any, where it cannot run yet.
                projection, mine = own[name], (name, 0) in self._advancers or name not in states
                if mine and issubclass(projection, RowProjection):
                    self._rebuilds[name] = rebuild_as_requested(projection, using=using)

    def _declare(self, using: str, handles: dict[str, Handles]) -> None:
        needed = releases.needed_for(self._projections[name] for name in handles)
        seconds = max(ALIVE, needed)
        if self._declared.get(using) != handles or not releases.seen(
            using, self._owner, seconds=seconds
        ):
            releases.declare(using, self._owner, handles, seconds=seconds)
            self._declared[using] = handles

    def _is_busy(self, using: str) -> None:
        """Renew the declaration in a round that takes long; the worker's share is not kept."""
        handles = self._declared.get(using, {})
        needed = releases.needed_for(self._projections[name] for name in handles)
        if not releases.seen(using, self._owner, seconds=needed):
            self._next_beat = 0.0

    def _take_share(
        self,
        using: str,
        own: dict[str, type[BaseProjection]],
        states: dict[str, ProjectionState],
        shares: list[Share],
    ) -> None:
        # Of all projections that any worker runs: each share depends on all of them.
        running = {name for share in shares for name in share.projections}
        partitions = ProjectionState.objects.using(using).filter(name__in=running)
        places = {
            (name, number)
            for name, count in partitions.values_list("name", "partitions")
            for number in range(count)
        }
        ours = {place for place, worker in divided(places, shares).items() if worker == self._owner}
        for place in [each for each in self._places() if each[0] in own and each not in ours]:
            self._give_back(place)
        for name, state in states.items():
            projection = own[name]
            if state.partitions != projection.partitions:
                all_of_it = {place for place in places if place[0] == name}
                divides = (name, 0) in ours
                if not all_of_it <= ours:
                    if not is_time_to_step_aside():
                        continue
                    # All workers that know the new number give back at the same time.
                    self._give_back_all(name)
                    ours -= all_of_it
                if divides:
                    self._divide(projection, state, using)
        for place in sorted(ours - self._places()):
            name, number = place
            try:
                taken = lease_partition(own[name], number, using=using, owner=self._owner)
            except ProjectionUnavailable:
                continue  # since a moment ago: the next beat says so
            if taken is None:
                continue
            advancer = Advancer(
                self._instance(place),
                taken,
                feed_of(own[name], using),
                renew=partial(self._is_busy, using),
            )
            if own[name].publishes:
                self._threads[place] = PublisherThread(name, advancer)
            else:
                self._advancers[place] = advancer

    def _begin(self, projection: type[BaseProjection], using: str) -> ProjectionState | None:
        try:
            state = begin(projection, using)
        except ProjectionUnavailable as error:
            # Logged once, and tried again: a rebuild may make it possible.
            if self._complained.get(projection.name) != str(error):
                self._complained[projection.name] = str(error)
                logger.error("%s", error)
            return None
        self._complained.pop(projection.name, None)
        return state

    def _divide(self, projection: type[BaseProjection], state: ProjectionState, using: str) -> None:
        self._give_back_all(projection.name)
        divide(projection, state, using=using, owner=self._owner)
        self._next_beat = 0.0

    def _instance(self, place: Place) -> BaseProjection:
        if place not in self._instances:
            self._instances[place] = self._projections[place[0]]()
        return self._instances[place]

    def _places(self) -> set[Place]:
        """Return the partitions that this worker has leased."""
        return {*self._advancers, *self._threads}

    def _give_back_all(self, name: str) -> None:
        for place in [each for each in self._places() if each[0] == name]:
            self._give_back(place)

    def _give_back(self, place: Place) -> None:
        if place in self._advancers:
            self._advancers.pop(place).close()
        else:
            self._dismiss(place)

    def _dismiss(self, place: Place) -> None:
        """Let a thread end when its batch has ended; its lease is given back then."""
        thread = self._threads.pop(place)
        thread.stop()
        self._stopping.append(thread)

    def _forget(self) -> None:
        """Forget all leases after an error of the database: they may be lost."""
        self._advancers.clear()
        for place in list(self._threads):
            self._dismiss(place)
        for steps in self._rebuilds.values():
            with suppress(Error):
                steps.close()
        self._rebuilds.clear()
        self._next_beat = 0.0
        for connection in connections.all(initialized_only=True):
            if not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()

    def _reconnect(self) -> None:
        """
        Close the connections: a signal to stop has interrupted a statement of theirs.

        The leases are given back on new connections.
        """
        for connection in connections.all(initialized_only=True):
            if not connection.in_atomic_block:
                connection.close()

    def _databases(self) -> dict[str, dict[str, type[BaseProjection]]]:
        found: dict[str, dict[str, type[BaseProjection]]] = {}
        for name, each in self._projections.items():
            found.setdefault(each.database_alias(using=self._using), {})[name] = each
        return found


def is_time_to_step_aside() -> bool:
    """
    Return whether workers give back a projection whose number of partitions changes.

    Only then can one worker lease all of its partitions. A worker with older code does not give
    its own back, so between these times all work as before. If the clocks of the workers differ,
    the change fails and is tried again; nothing else is affected.
    """
    return time.time() % ASIDE_EVERY < ASIDE_FOR


def are_due(using: str) -> set[str]:
    """Return the names of the projections in which an event is to be tried again."""
    due = ParkedEvent.objects.using(using).filter(is_rebuild=False, retry_at__lte=UTCNow())
    return set(due.values_list("projection", flat=True))


def divided(places: Iterable[Place], shares: Iterable[Share]) -> dict[Place, str]:
    """
    Return the worker of each partition.

    All workers come to the same result. Those that run the same projections get the same
    number of partitions, or one more or less.
    """
    found: dict[Place, str] = {}
    dealt: dict[str, int] = {}
    everybody = sorted(shares)
    for place in sorted(places):
        able = [each.worker for each in everybody if place[0] in each.projections]
        if able:
            # The one with the fewest; among those, not always the first in the alphabet.
            worker = min(able, key=lambda name: (dealt.get(name, 0), _mixed(name, place)))
            found[place] = worker
            dealt[worker] = dealt.get(worker, 0) + 1
    return found


def _mixed(worker: str, place: Place) -> bytes:
    return blake2b(f"{worker}/{place[0]}/{place[1]}".encode(), digest_size=8).digest()


def _short(error: Exception) -> str:
    # The text of another error may quote a value.
    return str(error) if isinstance(error, EventLogError) else type(error).__name__
