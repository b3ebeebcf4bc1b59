"""
Carry the event context through Celery, in a header of each message.

What a task appends has the context in which the task was sent: the same user, request and flow.
This needs no setting: the signals are connected where Celery is installed, when Django starts.

A task that runs eagerly, or is called like a function, has the context of its caller anyway.
"""

from __future__ import annotations

from typing import Any, Final

from celery.signals import before_task_publish, task_postrun, task_prerun

from eventlogs.context import carried, current, received

HEADER: Final = "eventlogs_context"


@before_task_publish.connect
def send_context(headers: dict[str, Any] | None = None, **kwargs: Any) -> None:
    """Add the context to a message that is about to be sent."""
    context = carried()
    if context is not None and headers is not None:
        headers[HEADER] = context


@task_prerun.connect
def enter_context(task: Any, **kwargs: Any) -> None:
    """Let a task have the context of its message, and none where that has none."""
    if not task.request.is_eager:
        # A header is an attribute of the request: so Celery reads messages of protocol 2.
        current.set(received(vars(task.request).get(HEADER)))


@task_postrun.connect
def leave_context(task: Any, **kwargs: Any) -> None:
    """End the context of a task: the next one may run in the same thread."""
    if not task.request.is_eager:
        current.set(None)
