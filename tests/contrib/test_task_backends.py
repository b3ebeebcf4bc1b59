"""The event context in tasks of django.tasks."""

from __future__ import annotations

import json
from threading import Thread
from typing import Any

import django
import pytest

from eventlogs import event_context
from eventlogs.context import carried

if django.VERSION >= (6, 0):
    from django.tasks import task_backends
    from django.tasks.backends.immediate import ImmediateBackend

    from eventlogs.contrib.task_backends import EventContextBackend

    class Queue(ImmediateBackend):
        """A backend that keeps messages as text until a worker, a thread, takes them."""

        messages: list[str] = []

        def enqueue(self, task: Any, args: Any, kwargs: Any) -> None:
            self.messages.append(json.dumps([task.module_path, args, kwargs]))

        def work(self) -> None:
            for message in self.messages:
                name, args, kwargs = json.loads(message)
                task = made[name]
                worker = Thread(target=task.call, args=args, kwargs=kwargs)
                worker.start()
                worker.join()

    class Backend(EventContextBackend, Queue):
        """The same, with the context."""


pytestmark = pytest.mark.skipif(django.VERSION < (6, 0), reason="django.tasks came with Django 6.0")
done: list[Any] = []
made: dict[str, Any] = {}


def note(text: str, *, number: int = 0) -> None:
    done.append((text, number, carried()))


async def anote(text: str, *, number: int = 0) -> None:
    note(text, number=number)


@pytest.fixture
def backend(settings, request):
    settings.TASKS = {"default": {"BACKEND": f"{__name__}.{request.param}"}}
    backend = task_backends["default"]
    for function in (note, anote):
        task = backend.task_class(
            priority=0, func=function, backend="default", queue_name="default", run_after=None
        )
        made[task.module_path] = task
    done.clear()
    Queue.messages.clear()
    return backend


def enqueue_all() -> None:
    for task in made.values():
        with event_context(user="7"):
            task.enqueue("a", number=1)
        task.enqueue("b")


@pytest.mark.parametrize("backend", ["Backend"], indirect=True)
def test_a_task_has_the_context_in_which_it_was_enqueued(backend):
    enqueue_all()
    backend.work()

    assert done == [("a", 1, '{"user":"7"}'), ("b", 0, None)] * 2


@pytest.mark.parametrize("backend", ["Queue"], indirect=True)
def test_without_the_mixin_a_task_has_no_context(backend):
    enqueue_all()
    backend.work()

    assert done == [("a", 1, None), ("b", 0, None)] * 2
