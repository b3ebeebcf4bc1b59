"""
Refreshers: they do the jobs that keep cached reductions up to date, later and elsewhere.

A refresher is given a job after a ``reduce`` that folded something new, and, with
``REFRESH_ON_APPEND``, after an append; inside of a transaction, after its commit. There are
two kinds, and calling a job does it:

- ``CacheWrite``: write an entry that a reader has just made;
- ``Refresh``: read a log, and write its entry.

A refresher may do a job now, soon, twice or never: what is cached is never wrong, only older.
It must not keep the caller waiting.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from inspect import signature
from typing import Any, Final

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections
from django.utils.module_loading import import_string

from eventlogs import conf
from eventlogs.aggregates import Aggregate, aggregates
from eventlogs.caches.counters import DROPPED, FAILED, UNSENT, counters
from eventlogs.exceptions import Unreachable
from eventlogs.ids import LogId
from eventlogs.reductions.reader import ReductionReader, Refresh, RefreshMessage, failed
from eventlogs.reductions.worker import CAPACITY, worker
from eventlogs.reductions.writes import CacheWrite
from eventlogs.utils.names import dotted

__all__ = [
    "BaseRefresher",
    "CacheWrite",
    "ImmediateRefresher",
    "MessageRefresher",
    "Refresh",
    "RefreshMessage",
    "TasksRefresher",
    "ThreadRefresher",
    "refresh_by_names",
]

logger = logging.getLogger("eventlogs.refreshers")

DELAY: Final = 0.5  # seconds that a refresh waits for further appends to the log
SENT: Final = 60.0  # seconds after which a message that was not answered is sent again


class BaseRefresher(ABC):
    """
    Do jobs that keep cached reductions up to date; the interface for your own.

    Its keyword arguments are the ``"OPTIONS"`` of ``EVENTLOGS["REFRESHER"]``. It must pass the
    contract suite in ``eventlogs.testing.contracts``.
    """

    @abstractmethod
    def submit(self, job: CacheWrite | Refresh) -> None:
        """
        Do ``job``, now or soon: ``job()`` does it, and raises nothing.

        Of jobs with the same ``job.token``, doing the latest one is enough.
        It is called where a reduction was read or an event appended, after the commit, and
        must be quick. An error that it raises is counted and logged, and not raised to the caller.
        """


class ImmediateRefresher(BaseRefresher):
    """Do each job at once, where a reduction is read or an event appended: for tests, scripts."""

    def submit(self, job: CacheWrite | Refresh) -> None:
        """Do ``job``."""
        job()


class ThreadRefresher(BaseRefresher):
    """
    Do jobs in a thread of this process, which has a bounded queue: the default.

    ``capacity`` is how many jobs the queue takes (1 to 1,000,000); further ones are dropped and
    counted. ``delay`` is for how many seconds (0 to 3,600) a refresh after an append waits, so
    that one refresh covers many appends.
    """

    def __init__(self, *, capacity: int = CAPACITY, delay: float = DELAY) -> None:
        self.capacity = checked("capacity", capacity, 1, 1_000_000)
        self.delay = checked("delay", delay, 0, 3_600, kind=float)

    def submit(self, job: CacheWrite | Refresh) -> None:
        """Queue ``job``."""
        if isinstance(job, CacheWrite):
            self._queue(job, job.__call__, 0.0)
        elif not worker.is_queued(job.token):
            # A queued job has not begun: it will read what is committed by now.
            self._gather(job, job.__call__)

    def _gather(self, job: Refresh, work: Callable[[], Any]) -> None:
        """Queue ``work`` once for all that is appended to the log meanwhile."""
        if _is_in_memory(job.reader.using):
            # Django's default for tests on SQLite. A reader locks tables there, and writers do
            # not wait: they would fail while a thread reads.
            # https://sqlite.org/sharedcache.html#table_level_locking
            work()
        else:
            self._queue(job, work, self.delay)

    def _queue(self, job: CacheWrite | Refresh, work: Callable[[], Any], delay: float) -> None:
        if not worker.submit(job.token, work, delay=delay, capacity=self.capacity):
            counters.count("error", DROPPED, aggregate=job.aggregate)


class MessageRefresher(ThreadRefresher):
    """
    Let another process refresh: the base of refreshers that send messages.

    Messages are sent by a thread, so that a slow or lost broker does not delay an append. There
    is one message for a log, however many appends ask for it: a flag in the cache says that
    one is under way, and the receiver of the message clears the flag before it reads the log. The
    flag of a message that got lost expires after 60 seconds.

    Entries that a reader has made are written by the thread, without a message.
    """

    @abstractmethod
    def send(self, message: RefreshMessage) -> None:
        """Send a message; its receiver calls ``refresh_by_names(*message)``."""

    def submit(self, job: CacheWrite | Refresh) -> None:
        """Queue ``job``, or queue a message where another process can do it."""
        if isinstance(job, CacheWrite) or (message := job.message) is None:
            super().submit(job)
        elif not worker.is_queued(job.token):
            self._gather(job, lambda: self._send(job, message))

    def _send(self, job: Refresh, message: RefreshMessage) -> None:
        if not job.reader.is_caching:
            return
        cache, flag = job.reader.cache, sent_key(job.reader.key(job.log_id))
        with suppress(Unreachable):  # one message too many is better than none
            if not cache.add(flag, b"sent", timeout=SENT):
                return
        try:
            self.send(message)
        except Exception as error:
            counters.count("error", UNSENT, aggregate=job.aggregate)
            logger.warning(
                "A refresh could not be sent (%s); the next sweep refreshes the log.",
                type(error).__name__,
            )
            with suppress(Unreachable):  # the flag expires by itself
                cache.delete(flag)


class TasksRefresher(MessageRefresher):
    """
    Refresh in a worker of django.tasks (Django 6.0 or newer).

    ``backend`` is an alias in TASKS, and ``queue`` one of its queues. ``capacity`` and
    ``delay`` are those of ThreadRefresher, for the thread that enqueues.
    """

    def __init__(
        self,
        *,
        queue: str = "default",
        backend: str = "default",
        capacity: int = CAPACITY,
        delay: float = DELAY,
    ) -> None:
        super().__init__(capacity=capacity, delay=delay)
        try:
            task: Any = import_string("eventlogs.contrib.django_tasks.refresh_reduction")
        except ImportError as error:
            raise ImproperlyConfigured(
                "TasksRefresher needs django.tasks, which came with Django 6.0. Use "
                "eventlogs.refreshers.ThreadRefresher or eventlogs.tasks.CeleryRefresher."
            ) from error
        self._task, self._using = task, {"queue_name": queue, "backend": backend}

    def send(self, message: RefreshMessage) -> None:
        """Enqueue the task."""
        self._task.using(**self._using).enqueue(**message._asdict())


def refresher_for(
    refresher: str | Mapping[str, Any] | BaseRefresher | None = None,
) -> BaseRefresher:
    """
    Return the refresher that a setting means; the same one for equal settings.

    ``refresher`` is a dotted path, a dict with "BACKEND" (a dotted path) and, if you like,
    "OPTIONS" (the backend's keyword arguments), or a BaseRefresher. None is
    ``EVENTLOGS["REFRESHER"]``.

    Raise ImportError for a path that cannot be imported, TypeError for anything that is no
    refresher, and ImproperlyConfigured for options that the backend does not take.
    """
    if refresher is None:
        refresher = conf.refresher()
    if isinstance(refresher, BaseRefresher):
        return refresher
    if isinstance(refresher, str):
        return _by_path(refresher)
    if not isinstance(refresher, Mapping):
        raise TypeError(
            f"{type(refresher).__name__} is not a refresher. Pass a dotted path, a dict with "
            f'"BACKEND" and "OPTIONS", or a BaseRefresher.'
        )
    if unknown := sorted(map(str, set(refresher) - {"BACKEND", "OPTIONS"})):
        raise ImproperlyConfigured(
            f"A refresher has no key {', '.join(map(repr, unknown))}. "
            f"Its keys are 'BACKEND' and 'OPTIONS'."
        )
    path, options = refresher.get("BACKEND"), refresher.get("OPTIONS", {})
    if not isinstance(path, str) or not isinstance(options, Mapping):
        raise TypeError("A refresher's 'BACKEND' is a dotted path, and its 'OPTIONS' a dict.")
    name = f"{path} {sorted(options.items(), key=repr)!r}"
    found = _by_options.get(name)
    return _by_options.setdefault(name, _made(path, options)) if found is None else found


def submit(
    *jobs: CacheWrite | Refresh,
    refresher: str | Mapping[str, Any] | BaseRefresher | None = None,
) -> None:
    """
    Submit jobs to the refresher that a setting means; see ``refresher_for``.

    No error is raised: the caller's append or read is done by now, and an error could make the
    caller repeat it. Errors are counted and logged. The log shows the text of an error only if the
    refresher is configured wrongly: that text quotes settings, and no data.
    """
    for job in jobs:
        try:
            made = refresher_for(refresher)
        except (ImproperlyConfigured, ImportError, TypeError) as error:
            counters.count("error", FAILED, aggregate=job.aggregate)
            logger.error("The refresher cannot be used, so nothing is cached: %s", error)
            continue
        except (Exception, SystemExit) as error:
            failed(job.aggregate, error)
            continue
        try:
            made.submit(job)
        except (Exception, SystemExit) as error:  # a project's refresher may raise either
            failed(job.aggregate, error)


_by_options: dict[str, BaseRefresher] = {}


@lru_cache(maxsize=16)
def _by_path(path: str) -> BaseRefresher:
    return _made(path, {})


def _made(path: str, options: Mapping[str, Any]) -> BaseRefresher:
    cls = import_string(path)
    if not isinstance(cls, type) or not issubclass(cls, BaseRefresher):
        raise TypeError(
            f"{path} is not a refresher. Derive it from eventlogs.refreshers.BaseRefresher."
        )
    names = signature(cls).parameters
    unknown = [repr(name) for name in options if name not in names]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in names.values()):
        known = ", ".join(map(repr, names)) or "none"
        raise ImproperlyConfigured(
            f"{path} has no option {', '.join(unknown)}. Its options: {known}."
        )
    return cls(**options)


def checked(name: str, value: Any, least: float, most: float, *, kind: Any = int) -> Any:
    """
    Return the value of a refresher's option.

    Raise ImproperlyConfigured unless it is of ``kind`` (int, or float for any number), and
    from ``least`` to ``most``.
    """
    kinds = (int, float) if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        raise ImproperlyConfigured(
            f"The refresher's option {name!r} is {value!r}. It must be "
            f"{'an int' if kind is int else 'a number'} from {least:,} to {most:,}."
        )
    return value


def refresh_by_names(aggregate: str, log_id: str, using: str, cache: str | None = None) -> bool:
    """
    Bring one cached reduction up to date, as a message asks; return whether it wrote the cache.

    Safe to run twice, late or never: it writes nothing but the cache. Raise Unreachable where
    the cache cannot be read, and database errors: then the message should be delivered again.
    Raise InvalidLogId for text that is no log id. Any other error, which a retry would not
    correct, is counted and logged, and False is returned.
    """
    cls = _aggregate(aggregate)
    if cls is None:
        logger.error("No aggregate class is called %s here; its refresh is dropped.", aggregate)
        return False
    reader = ReductionReader(cls, using=using, cache=cache)
    parsed = LogId.parse(log_id)
    # Clear the flag, then read the log: an append after that asks for another refresh.
    with suppress(Unreachable):
        reader.cache.delete(sent_key(reader.key(parsed)))
    try:
        return reader.refresh(parsed)
    except (Unreachable, Error):
        raise
    except (Exception, SystemExit) as error:  # events without a class, and what apply raises
        failed(cls, error)
        return False


def sent_key(key: str) -> str:
    """Return the key of the flag which says that a message is under way."""
    return f"{key}.sent"


def _is_in_memory(using: str) -> bool:
    is_in_memory = getattr(connections[using], "is_in_memory_db", None)
    return is_in_memory is not None and bool(is_in_memory())


def _aggregate(name: str) -> type[Aggregate] | None:
    """Return the aggregate class of a name; its module is imported first if it is in an app."""
    module = name.rpartition(".")[0]
    if not any(dotted(each) == name for each in aggregates) and any(
        f"{module}.".startswith(f"{app.name}.") for app in apps.get_app_configs()
    ):
        with suppress(ImportError):
            import_module(module)
    return {dotted(each): each for each in aggregates}.get(name)
