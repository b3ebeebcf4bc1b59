"""
Celery tasks, and the refresher that sends them: the only module that needs Celery.

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

Tasks are routed by their names, which stay: ``CELERY_TASK_ROUTES = {"eventlogs.*": …}``.
"""

from __future__ import annotations

from typing import Any, Final

from celery import shared_task
from django.db import Error

from eventlogs.caches.backends import Unreachable
from eventlogs.projections.workers import run
from eventlogs.reductions.sweeps import sweep
from eventlogs.refreshers import MessageRefresher, refresh_by_names

COUNTDOWN: Final = 0.3  # seconds that a message waits, so that one stands for many appends
EXPIRES: Final = 3_600  # seconds after which a message that nobody took is worth nothing

# How long sending may take before it is given up: the sending thread has more to do.
# https://docs.celeryq.dev/en/stable/userguide/calling.html#message-sending-retry
SENDING: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}

RETRYING: Final[dict[str, Any]] = {
    "autoretry_for": (Unreachable, Error),
    "max_retries": 6,
    "retry_backoff": 1,  # seconds, doubled each time
    "retry_backoff_max": 60,
    "retry_jitter": True,
    "ignore_result": True,
    # A message is done when the work is, not when it begins: a worker that is killed in the
    # middle leaves it to the next one.
    "acks_late": True,
    "reject_on_worker_lost": True,
}


@shared_task(name="eventlogs.refresh_reduction", **RETRYING)
def refresh_reduction(aggregate: str, log_id: str, using: str, cache: str | None = None) -> None:
    """Bring one cached reduction up to date. Safe to run twice, late or never."""
    refresh_by_names(aggregate, log_id, using, cache)


@shared_task(name="eventlogs.sweep_reductions", **RETRYING)
def sweep_reductions(
    using: str | None = None, cache: str | None = None, full: bool = False
) -> dict[str, int]:
    """
    Find reductions that lost messages have left behind or missing, and refresh them.

    Safe to run twice, late or at once with another. See ``eventlogs.reductions.sweeps.sweep``.
    """
    return sweep(using=using, cache=cache, full=full)._asdict()


@shared_task(name="eventlogs.run_projections", ignore_result=True)
def run_projections(names: list[str] | None = None, using: str | None = None) -> dict[str, int]:
    """
    Let projections catch up, by default all that the worker has imported.

    ``using`` is the database whose logs are meant, by default the one they are written to.

    For Celery beat: what fails is taken up by the next run. Safe to run at once with another, and
    what a running one has is left to it, so that messages which have piled up end quickly.
    """
    return run(names, using=using)


class CeleryRefresher(MessageRefresher):
    """Refresh in Celery workers: one task for a log, however many appends ask for it."""

    def send(self, aggregate: str, log_id: str, using: str, cache: str | None) -> None:
        refresh_reduction.apply_async(
            (aggregate, log_id, using, cache),
            countdown=COUNTDOWN,
            expires=EXPIRES,
            retry=True,
            retry_policy=SENDING,
        )
