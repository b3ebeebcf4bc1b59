"""
Appends to ledgers whose reductions Celery workers refresh; a program, so that Celery is its own.

    python -m tests.reliability.celery_jobs JOB ARGUMENTS...

It prints one line of JSON.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from typing import Any

import django

django.setup()

from celery import chain  # noqa: E402

from eventlogs import ANY, LogManager, event_context  # noqa: E402
from eventlogs.caches.backends import statistics  # noqa: E402
from eventlogs.reductions.worker import worker  # noqa: E402
from eventlogs.utils.names import dotted  # noqa: E402
from tests.reliability.celery_app import app  # noqa: E402
from tests.reliability.context_tasks import note, note_again  # noqa: E402
from tests.reliability.ledgers import Entered, Ledger  # noqa: E402


def append(count: str, *log_ids: str) -> dict[str, Any]:
    """Append ``count`` events, one by one, to one log after the other."""
    manager = LogManager(Ledger)
    times = []
    for number in range(int(count)):
        log_id = log_ids[number % len(log_ids)]
        began = time.monotonic()
        manager.append(log_id, Entered(f"{number}"), expected_version=ANY)
        times.append(time.monotonic() - began)
    flushed = worker.flush(30)
    return {"times": sorted(times), "flushed": flushed, "statistics": statistics()}


def append_and_repeat(count: str, *log_ids: str) -> dict[str, Any]:
    """Append, and send three messages each time, which overtake one another."""
    manager, choices = LogManager(Ledger, refresh_on_append=False), random.Random(1)
    for number in range(int(count)):
        log_id = log_ids[number % len(log_ids)]
        manager.append(log_id, Entered(f"{number}"), expected_version=ANY)
        for _ in range(3):
            app.send_task(
                "eventlogs.refresh_reduction",
                (dotted(Ledger), log_id, "default", None),
                countdown=choices.random(),
            )
    return {}


def sweep() -> dict[str, Any]:
    """Send the task that sweeps."""
    app.send_task("eventlogs.sweep_reductions")
    return {}


def send_in_contexts(count: str) -> dict[str, Any]:
    """Send tasks, every other one in a context, and tasks that these send and retry."""
    for number in range(int(count)):
        tasks = chain(note.s(number), note_again.s())
        if number % 2:
            with event_context(number=number):
                tasks.apply_async()
        else:
            tasks.apply_async()
    return {}


if __name__ == "__main__":
    logging.getLogger("eventlogs").addHandler(logging.NullHandler())
    jobs = (append, append_and_repeat, sweep, send_in_contexts)
    job = {each.__name__: each for each in jobs}[sys.argv[1]]
    print(json.dumps(job(*sys.argv[2:])))  # noqa: T201
