"""
Refreshers: who brings cached reductions up to date, and when.

A refresher is *told* that a reduction is worth keeping: after a ``reduce`` that folded
something new, and, with ``REFRESH_ON_APPEND``, after an append's commit. It may do the work,
pass it on, or lose it: what is cached is never wrong, only older. It must not keep the one
who tells it waiting.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable
from functools import lru_cache
from importlib import import_module
from typing import Any, Final, NamedTuple

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections
from django.utils.module_loading import import_string

from eventlogs import conf
from eventlogs.aggregates import Aggregate, aggregates
from eventlogs.caches.backends import GuardedCache, Unreachable
from eventlogs.caches.counters import DROPPED, FAILED, UNSENT, UNWRITABLE, counters
from eventlogs.events.codec import EventReader
from eventlogs.ids import LogId
from eventlogs.reductions.reader import Kept, Reducer
from eventlogs.reductions.worker import worker
from eventlogs.stores import BaseStore, store_for

logger = logging.getLogger("eventlogs.refreshers")

GATHER: Final = 0.5  # seconds that a refresh after an append waits for further appends
TOLD: Final = 60.0  # seconds after which a message that was not answered is sent again


class RefreshRequest(NamedTuple):
    """
    A cached reduction that should be brought up to date.

    ``entry`` is what is to be written, where the one who asks has just folded it, and
    ``is_kept`` says that it is on its way already.
    """

    reducer: Reducer[Any]
    store: BaseStore
    log_id: LogId
    using: str
    cache_alias: str | None  # None: that of the EVENTLOGS setting
    can_travel: bool  # another process can do the same by the names alone
    entry: bytes | None = None
    replaces: bytes | None = None
    is_kept: bool = False

    @property
    def aggregate(self) -> type[Aggregate]:
        """The aggregate class of the reduction."""
        return self.reducer.aggregate

    @property
    def key(self) -> str:
        """The key of the reduction's entry."""
        return self.reducer.key(self.log_id)

    @property
    def token(self) -> tuple[Any, ...]:
        """What is unique to the reduction in this process."""
        return self.reducer, self.log_id

    def __call__(self) -> None:
        """
        Bring the cached reduction up to date, in this thread.

        Write the entry, or else read the log. Nothing is raised: what goes wrong is counted
        and logged.
        """
        try:
            if self.entry is not None:
                self.reducer.keep(self.key, self.entry, replaces=self.replaces)
            else:
                self.reducer.refresh(self.log_id, self.store)
        except Unreachable:
            counters.count("error", UNWRITABLE, aggregate=self.aggregate)
        except (Exception, SystemExit) as error:  # a project's apply() may raise either
            failed(self.aggregate, error)


class BaseRefresher(ABC):
    """Bring cached reductions up to date; the interface for your own."""

    takes_entries = True
    """Whether requests should carry what a reader has just folded."""

    @abstractmethod
    def refresh(self, request: RefreshRequest) -> None:
        """
        Take note of ``request``, or do it: ``request()`` does.

        It is called where a reduction is read or an event appended, after the commit, and
        must be quick. What it raises is counted and logged, and goes no further.
        """

    def is_about_to(self, token: tuple[Any, ...]) -> bool:
        """Return whether telling of an append (by ``RefreshRequest.token``) would add nothing."""
        return False

    def write(self, key: str, job: Kept) -> bool:
        """Write the entry of a full replay, soon; return False to leave it."""
        return _submit(job.reducer.aggregate, key, job)


class QueueingRefresher(BaseRefresher):
    """The base of refreshers that gather what appends tell them."""

    def is_about_to(self, token: tuple[Any, ...]) -> bool:
        # It has not begun yet: it will see whatever is committed by now.
        return worker.is_queued(token)

    def gather(self, request: RefreshRequest, job: Any) -> None:
        """Queue ``job``, once for all that is appended to the log within half a second."""
        if _is_in_memory(request.using):
            # That is Django's default for tests on SQLite. Its tables are locked by whoever
            # reads, and nobody waits: a thread that reads would fail the writers.
            # https://sqlite.org/sharedcache.html#table_level_locking
            job()
            return
        _submit(request.aggregate, request.token, job, GATHER)


class ThreadRefresher(QueueingRefresher):
    """Refresh in a thread of this process, which has a short queue: the default."""

    def refresh(self, request: RefreshRequest) -> None:
        if request.is_kept:
            return
        if request.entry is None:
            self.gather(request, request)
        else:
            # Not under the key alone: that of a full replay may be queued there, with a claim.
            _submit(request.aggregate, (request.key, "newer"), request)


class ImmediateRefresher(BaseRefresher):
    """Refresh at once, where a reduction is read or an event appended: for tests and scripts."""

    def refresh(self, request: RefreshRequest) -> None:
        if not request.is_kept:
            request()

    def write(self, key: str, job: Kept) -> bool:
        job()
        return True


class MessageRefresher(QueueingRefresher):
    """
    Let a worker refresh: the base of refreshers that send messages.

    Messages are sent by a thread, so that a slow or lost broker keeps nobody waiting. There
    is one message for a log, however many appends tell of it: a flag in the cache says that
    one is under way, and the worker takes the flag down before it reads. A flag whose message
    got lost comes down after a minute.
    """

    takes_entries = False

    @abstractmethod
    def send(self, aggregate: str, log_id: str, using: str, cache: str | None) -> None:
        """Send one message; a worker then calls ``refresh_by_names`` with what it says."""

    def refresh(self, request: RefreshRequest) -> None:
        if request.is_kept:
            return  # nothing is left to do for a worker
        self.gather(request, (lambda: self._send(request)) if request.can_travel else request)

    def _send(self, request: RefreshRequest) -> None:
        cache, flag = request.reducer.cache, told_key(request.key)
        try:
            if not cache.add(flag, b"told", timeout=TOLD):
                return
        except Unreachable:
            pass  # one message too many is better than none
        try:
            self.send(
                label(request.aggregate), str(request.log_id), request.using, request.cache_alias
            )
        except Exception as error:
            counters.count("error", UNSENT, aggregate=request.aggregate)
            logger.warning(
                "A refresh could not be sent (%s); the next sweep makes up for it.",
                type(error).__name__,
            )
            take_down(cache, flag)


class TasksRefresher(MessageRefresher):
    """Refresh in a worker of django.tasks (Django 6.0 or newer)."""

    def __init__(self) -> None:
        try:
            self._task: Any = import_string("eventlogs.contrib.django_tasks.refresh_reduction")
        except ImportError as error:
            raise ImproperlyConfigured(
                "TasksRefresher needs django.tasks, which came with Django 6.0. Use "
                "eventlogs.refreshers.ThreadRefresher or eventlogs.tasks.CeleryRefresher."
            ) from error

    def send(self, aggregate: str, log_id: str, using: str, cache: str | None) -> None:
        self._task.enqueue(aggregate=aggregate, log_id=log_id, using=using, cache=cache)


def refresher_for(refresher: str | BaseRefresher | None = None) -> BaseRefresher:
    """
    Return the refresher of a dotted path, or the one given.

    None is ``EVENTLOGS["REFRESHER"]``. Raise ImportError for a path that leads nowhere, and
    TypeError for anything that is no refresher.
    """
    if isinstance(refresher, BaseRefresher):
        return refresher
    return _instance(conf.refresher() if refresher is None else refresher)


@lru_cache(maxsize=16)
def _instance(path: str) -> BaseRefresher:
    refresher = import_string(path)()
    if not isinstance(refresher, BaseRefresher):
        raise TypeError(
            f"{path} is not a refresher. Derive it from eventlogs.refreshers.BaseRefresher."
        )
    return refresher


def refresh_by_names(aggregate: str, log_id: str, using: str, cache: str | None = None) -> bool:
    """
    Bring one cached reduction up to date, as a message asks; return whether that took writing.

    Safe to run twice, late or never: it writes nothing but the cache. Raise Unreachable where
    the cache cannot be read, and database errors: then the message should be delivered again.
    What no repetition would mend is logged, and False returned.
    """
    cls = _aggregate(aggregate)
    if cls is None:
        logger.error("No aggregate class is called %s here; its refresh is dropped.", aggregate)
        return False
    reducer: Reducer[Any] = Reducer(cls, EventReader(cls.event_types), using, cache=cache)
    parsed = LogId.parse(log_id)
    # First the flag, then the log: an append after this look asks for another refresh.
    take_down(reducer.cache, told_key(reducer.key(parsed)))
    try:
        return reducer.refresh(parsed, store_for(using))
    except (Unreachable, Error):
        raise
    except (Exception, SystemExit) as error:  # events without a class, and what apply raises
        failed(cls, error)
        return False


def label(aggregate: type[Aggregate]) -> str:
    """Return the name of an aggregate class in messages."""
    return f"{aggregate.__module__}.{aggregate.__qualname__}"


def told_key(key: str) -> str:
    """Return the key of the flag which says that a message is under way."""
    return f"{key}.told"


def take_down(cache: GuardedCache, flag: str) -> None:
    """Remove a flag; where the cache cannot be reached, it runs out by itself."""
    try:
        cache.delete(flag)
    except Unreachable:
        return


def failed(aggregate: type, error: BaseException) -> None:
    """Count and log a refresh that failed; not the error's text, which may quote data."""
    counters.count("error", FAILED, aggregate=aggregate)
    logger.error("A refresh of %s failed: %s", aggregate.__qualname__, type(error).__name__)


def _submit(aggregate: type[Any], key: Hashable, job: Any, delay: float = 0.0) -> bool:
    if worker.submit(key, job, delay=delay):
        return True
    counters.count("error", DROPPED, aggregate=aggregate)
    return False


def _is_in_memory(using: str) -> bool:
    is_in_memory = getattr(connections[using], "is_in_memory_db", None)
    return is_in_memory is not None and bool(is_in_memory())


def _aggregate(name: str) -> type[Aggregate] | None:
    """Return the aggregate class of a name; its module is imported, if an app's, to find it."""
    found = {label(each): each for each in aggregates}.get(name)
    if found is None:
        module = name.rpartition(".")[0]
        if any(f"{module}.".startswith(f"{app.name}.") for app in apps.get_app_configs()):
            try:
                import_module(module)
            except ImportError:
                return None
            found = {label(each): each for each in aggregates}.get(name)
    return found
