"""
Send the event context with tasks of django.tasks (Django 6.0 or newer).

Tasks of django.tasks have no headers. The context is sent as a keyword argument, and removed from
the arguments before the function is called. Mix the class into the backend of your project::

    class Backend(EventContextBackend, DatabaseBackend):
        pass

    TASKS = {"default": {"BACKEND": "shop.backends.Backend"}}

Django's ImmediateBackend runs a task at once, in the context of the caller, and needs no mixin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from django.tasks.base import Task  # type: ignore[import-not-found, unused-ignore]

from eventlogs.context import carried, entered, received

__all__ = ["EventContextBackend"]

CONTEXT: Final = "eventlogs_context"  # the keyword argument

if TYPE_CHECKING:
    from django.tasks.backends.base import BaseTaskBackend as Base
else:
    Base = object


class ContextTask:
    """A mixin for Task: it removes the context from the arguments, and enters it."""

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function of the task."""
        layer = received(kwargs.pop(CONTEXT, None))
        if layer is None:
            return super().call(*args, **kwargs)  # type: ignore[misc]
        with entered(layer):
            return super().call(*args, **kwargs)  # type: ignore[misc]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function of the task, in async code."""
        layer = received(kwargs.pop(CONTEXT, None))
        if layer is None:
            return await super().acall(*args, **kwargs)  # type: ignore[misc]
        with entered(layer):
            return await super().acall(*args, **kwargs)  # type: ignore[misc]


class EventContextBackend(Base):
    """
    A mixin for a backend of django.tasks: tasks run in the context in which they were enqueued.

    The worker of the backend must run tasks with ``task.call()`` or ``task.acall()``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Set a class of tasks that removes the context from the arguments."""
        super().__init_subclass__(**kwargs)
        made = getattr(cls, "task_class", Task)
        if not issubclass(made, ContextTask):
            cls.task_class = type("ContextTask", (ContextTask, made), {})

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Enqueue a task, with the context."""
        return super().enqueue(task, args, _with_context(kwargs))

    async def aenqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Enqueue a task, with the context, in async code."""
        return await super().aenqueue(task, args, _with_context(kwargs))


def _with_context(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    context = None if CONTEXT in kwargs else carried()
    return dict(kwargs) if context is None else {**kwargs, CONTEXT: context}
