"""The refreshers of eventlogs, each held to the contract of refreshers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.cache import caches

from eventlogs.reductions.worker import worker
from eventlogs.refreshers import (
    BaseRefresher,
    ImmediateRefresher,
    MessageRefresher,
    RefreshMessage,
    TasksRefresher,
    ThreadRefresher,
    refresh_by_names,
    refresher_for,
)
from eventlogs.testing.contracts.refreshers import MessageRefresherContract, RefresherContract


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    caches["default"].clear()
    yield
    assert worker.flush(20)
    caches["default"].clear()


class TestImmediate(RefresherContract):
    @pytest.fixture
    def refresher(self) -> BaseRefresher:
        return ImmediateRefresher()


class TestThread(RefresherContract):
    @pytest.fixture
    def refresher(self) -> BaseRefresher:
        return ThreadRefresher()


class TestThreadWithoutDelay(RefresherContract):
    @pytest.fixture
    def refresher(self) -> BaseRefresher:
        return ThreadRefresher(capacity=50, delay=0)


class Mailbox(MessageRefresher):
    """A custom refresher that keeps its messages until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[RefreshMessage] = []

    def send(self, message: RefreshMessage) -> None:
        self.messages.append(message)


class TornMailbox(Mailbox):
    def send(self, message: RefreshMessage) -> None:
        raise ConnectionError("the broker is down")


class TestMailbox(MessageRefresherContract):
    @pytest.fixture
    def refresher(self) -> BaseRefresher:
        return Mailbox()

    @pytest.fixture
    def broken(self) -> BaseRefresher:
        return TornMailbox()

    def rest(self, refresher: BaseRefresher) -> None:
        assert isinstance(refresher, Mailbox)
        assert worker.flush(10)
        while refresher.messages:
            refresh_by_names(*refresher.messages.pop(0))


@pytest.mark.skipif(find_spec("celery") is None, reason="Celery is not installed")
class TestCelery(MessageRefresherContract):
    """Its tasks run in the sending process; tests/reliability has real workers and brokers."""

    @pytest.fixture
    def app(self, tmp_path: Path) -> Iterator[Any]:
        """A Celery app whose broker is unreachable, as the default app."""
        tasks = importlib.import_module("eventlogs.tasks")
        before = tasks.refresh_reduction.app
        broker = f"redis+socket://{tmp_path}/nobody-listens"
        app = importlib.import_module("celery").Celery(broker=broker, set_as_current=False)
        app.set_default()
        yield app
        before.set_default()

    @pytest.fixture
    def refresher(self, app: Any) -> BaseRefresher:
        app.conf.task_always_eager = True
        options = {"queue": "reductions", "countdown": 0.1, "retries": 1}
        return refresher_for({"BACKEND": "eventlogs.tasks.CeleryRefresher", "OPTIONS": options})

    @pytest.fixture
    def broken(self, app: Any) -> BaseRefresher:
        return refresher_for("eventlogs.tasks.CeleryRefresher")


@pytest.mark.skipif(django.VERSION < (6, 0), reason="django.tasks came with Django 6.0")
class TestTasks(MessageRefresherContract):
    @pytest.fixture
    def refresher(self, settings: Any) -> BaseRefresher:
        settings.TASKS = {
            "default": {
                "BACKEND": "django.tasks.backends.immediate.ImmediateBackend",
                "QUEUES": ["default", "reductions"],
            }
        }
        return TasksRefresher(queue="reductions")

    @pytest.fixture
    def broken(self, settings: Any) -> BaseRefresher:
        settings.TASKS = {
            "default": {
                "BACKEND": "django.tasks.backends.immediate.ImmediateBackend",
                "QUEUES": ["default"],
            }
        }
        return TasksRefresher(queue="reductions")
