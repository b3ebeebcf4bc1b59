"""
Send the event context with Celery's messages, in a header.

The events that a task appends have the context in which the task was sent. No setting is needed:
if Celery is installed, the app config imports this module, which connects the signals.

A task that runs eagerly, or is called as a function, has the context of its caller.
"""

from __future__ import annotations

from typing import Any, Final

from celery.signals import before_task_publish, task_postrun, task_prerun

from eventlogs.context import carried, current, received

HEADER: Final = "eventlogs_context"


@before_task_publish.connect
def send_context(headers: dict[str, Any] | None = None, **kwargs: Any) -> None:
    """Add the context to a message before it is sent."""
    context = carried()
    if context is not None and headers is not None:
        headers[HEADER] = context


@task_prerun.connect
def enter_context(task: Any, **kwargs: Any) -> None:
    """Begin a task with the context of its message, or with none if the message has none."""
    if not task.request.is_eager:
        # Celery makes each header of a message an attribute of the request.
        current.set(received(vars(task.request).get(HEADER)))


@task_postrun.connect
def leave_context(task: Any, **kwargs: Any) -> None:
    """End the context of a task, because the next task may run in the same thread."""
    if not task.request.is_eager:
        current.set(None)
