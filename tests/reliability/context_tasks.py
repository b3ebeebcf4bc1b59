"""
Tasks that append, for the campaign about contexts; and a broken version of the worker.

With CAMPAIGN_BROKEN_CONTEXT, the worker keeps the context of a task until a message has another.
"""

from __future__ import annotations

import os
from typing import Any

from celery import shared_task, signals

from eventlogs.context import current, received
from eventlogs.contrib.celery import HEADER, enter_context, leave_context
from tests.accounts import Account, Noted


@shared_task(name="tests.note", bind=True, max_retries=1)
def note(task: Any, number: int) -> int:
    """Append an event, and another one when it is retried; return the number."""
    Account.logs.create(Noted({"number": number, "by": f"attempt {task.request.retries}"}))
    if not task.request.retries:
        raise task.retry(countdown=0)
    return number


@shared_task(name="tests.note_again")
def note_again(number: int) -> None:
    """Append an event, in a task that follows another one, and one in a task that it sends."""
    Account.logs.create(Noted({"number": number, "by": "chain"}))
    note_last.delay(number)


@shared_task(name="tests.note_last")
def note_last(number: int) -> None:
    """Append an event."""
    Account.logs.create(Noted({"number": number, "by": "task"}))


def keep_context(task: Any, **kwargs: Any) -> None:
    """Enter a context, and never leave it."""
    if (layer := received(vars(task.request).get(HEADER))) is not None:
        current.set(layer)


if "CAMPAIGN_BROKEN_CONTEXT" in os.environ:
    signals.task_prerun.disconnect(enter_context)
    signals.task_postrun.disconnect(leave_context)
    signals.task_prerun.connect(keep_context)
