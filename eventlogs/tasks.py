"""
Celery tasks, and the refresher that sends them. Celery is imported here and in contrib/celery.py.

Name the refresher in the settings, and let Celery find the tasks as it finds those of any
app (``app.autodiscover_tasks()``)::

    EVENTLOGS = {"REFRESHER": "eventlogs.tasks.CeleryRefresher"}

    CELERY_BEAT_SCHEDULE = {
        "eventlogs-sweep": {
            "task": "eventlogs.sweep_reductions",
            "schedule": 60.0,
            "options": {"expires": 60.0},  # seconds: so that none pile up without a worker
        },
    }

Options of the refresher stand beside its path::

    EVENTLOGS = {
        "REFRESHER": {
            "BACKEND": "eventlogs.tasks.CeleryRefresher",
            "OPTIONS": {"queue": "reductions", "countdown": 1.0},
        }
    }

Tasks are routed by their names, which do not change: ``CELERY_TASK_ROUTES = {"eventlogs.*": …}``.
"""

from __future__ import annotations

import random
from typing import Any, Final

from celery import shared_task
from django.db import Error

from eventlogs.exceptions import Unreachable
from eventlogs.projections.workers import run
from eventlogs.reductions.sweeps import sweep
from eventlogs.reductions.worker import CAPACITY
from eventlogs.refreshers import (
    DELAY,
    MessageRefresher,
    RefreshMessage,
    checked,
    refresh_by_names,
)
from eventlogs.seals.running import seal

RETRIES: Final = 6
LONGEST_BACKOFF: Final = 60  # seconds

# Sending is tried twice, and then given up: the thread that sends has other messages to send.
# https://docs.celeryq.dev/en/stable/userguide/calling.html#message-sending-retry
SENDING: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}

# A message is acknowledged when the work is done, not when it begins: a worker that is killed in
# the middle leaves it to the next one.
TASK: Final[dict[str, Any]] = {
    "ignore_result": True,
    "acks_late": True,
    "reject_on_worker_lost": True,
}


@shared_task(name="eventlogs.refresh_reduction", bind=True, **TASK)
def refresh_reduction(
    task: Any,
    aggregate: str,
    log_id: str,
    using: str,
    cache: str | None = None,
    retries: int = RETRIES,
) -> None:
    """
    Bring one cached reduction up to date. Safe to run twice, late or never.

    Where the cache or the database cannot be reached, it is tried again ``retries`` times.
    """
    try:
        refresh_by_names(aggregate, log_id, using, cache)
    except (Unreachable, Error) as error:
        # Exponential backoff with full jitter, so that workers do not come back all at once.
        backoff = random.uniform(0, min(LONGEST_BACKOFF, 2**task.request.retries))
        raise task.retry(exc=error, countdown=backoff, max_retries=retries) from error


@shared_task(
    name="eventlogs.sweep_reductions",
    autoretry_for=(Unreachable, Error),
    max_retries=RETRIES,
    retry_backoff=1,  # seconds, doubled each time
    retry_backoff_max=LONGEST_BACKOFF,
    retry_jitter=True,
    **TASK,
)
def sweep_reductions(
    using: str | None = None, cache: str | None = None, full: bool = False
) -> dict[str, int]:
    """
    Refresh the cached reductions that are missing or behind, because a message got lost.

    Safe to run twice, late or at once with another. See ``eventlogs.reductions.sweeps.sweep``.
    """
    return sweep(using=using, cache=cache, full=full)._asdict()


@shared_task(name="eventlogs.run_projections", ignore_result=True)
def run_projections(names: list[str] | None = None, using: str | None = None) -> dict[str, int]:
    """
    Let projections catch up, by default all that the worker has imported.

    ``using`` is the database whose logs are meant, by default all that the projections run on.

    For Celery beat: the next run retries what failed. Safe to run beside another: a run skips the
    projections and partitions that another one holds, so a backlog of messages ends quickly.
    """
    return run(names, using=using)


@shared_task(name="eventlogs.make_seal", **TASK)
def make_seal(
    using: str | None = None, output: str | None = None, append: bool = True
) -> dict[str, Any]:
    """
    Make a seal over all events, for Celery beat: ``{"task": "eventlogs.make_seal", …}``.

    It is appended to the log of seals, from which a reactor can send it away, and to the file
    ``output`` if there is one. Safe to run twice: that makes two seals. See
    ``eventlogs.seals.running.seal``.
    """
    return seal(using=using, output=output, append=append).as_json()


class CeleryRefresher(MessageRefresher):
    """
    Refresh in Celery workers: one task for a log, however many appends ask for it.

    ``queue`` is the queue to send to; None leaves that to Celery's routes. ``countdown`` is for
    how many seconds (0 to 3,600) a message waits, so that one covers many appends, and
    ``expires`` (1 to 604,800) after how many seconds a worker discards it. ``retries`` (0 to
    1,000) is how often a worker tries again while the cache or the database cannot be reached.
    ``capacity`` and ``delay`` are those of ThreadRefresher, for the thread that sends.
    """

    def __init__(
        self,
        *,
        queue: str | None = None,
        countdown: float = 0.3,
        expires: float = 3_600,
        retries: int = RETRIES,
        capacity: int = CAPACITY,
        delay: float = DELAY,
    ) -> None:
        super().__init__(capacity=capacity, delay=delay)
        self._options = {
            **({} if queue is None else {"queue": queue}),
            "countdown": checked("countdown", countdown, 0, 3_600, kind=float),
            "expires": checked("expires", expires, 1, 604_800, kind=float),
        }
        self._retries = checked("retries", retries, 0, 1_000)

    def send(self, message: RefreshMessage) -> None:
        """Send the task."""
        refresh_reduction.apply_async(
            (*message, self._retries), **self._options, retry=True, retry_policy=SENDING
        )
