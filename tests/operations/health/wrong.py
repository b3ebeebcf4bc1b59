"""Problems that health() reports, and helpers that find them in its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event as Flag
from threading import Thread
from typing import Any

from django.db import connection, connections, transaction
from django.utils import timezone

from eventlogs import Finding, Health, LogId
from eventlogs.models import ParkedEvent, ProjectionWorker
from eventlogs.projections import leases, releases
from eventlogs.projections.workers import Worker
from example_project.payments.events import Payment, Requested
from example_project.payments.projections import PaymentSummaries

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
NAME = "payment-summary"
DEAD = f"{leases.HOST}:{2**22 + 1}:dead"  # no process has such a number


def of(found: Health, code: str) -> list[Finding]:
    return [each for each in found.findings if each.code == code]


def one(found: Health, code: str) -> Finding:
    [each] = of(found, code)
    return each


def acts(found: Health) -> list[str]:
    return [each.code for each in found.findings if each.must_act]


def pay(count: int = 1) -> Any:
    for _ in range(count):
        state = Payment.logs.create(Requested(amount=5))
    return state


def work() -> Worker:
    """Return a worker of all projections, after a round."""
    runner = Worker()
    runner.round()
    return runner


def hold(count: int = 1, **values: Any) -> None:
    values = {
        "projection": NAME,
        "index": 1,
        "position": 1,
        "type": "payment.captured",
        "attempts": 5,
        "error": "ZeroDivisionError",
        "handler": "captured",
        "first_failed_at": NOON,
        "failed_at": NOON,
        **values,
    }
    ParkedEvent.objects.bulk_create(
        ParkedEvent(log_id=LogId.new("payment"), **values) for _ in range(count)
    )


def declare(name: str, *, age: float = -10.0, **values: Any) -> None:
    """Store a worker with the handlers of this process."""
    handled = {each.name: releases.handles_of(each).as_json for each in (PaymentSummaries,)}
    ProjectionWorker.objects.create(
        name=name,
        **{
            "projections": handled,
            "seen_until": timezone.now() - timedelta(seconds=age),
            "declared_at": NOON,
            **values,
        },
    )


@contextmanager
def lock_table(name: str) -> Iterator[None]:
    with in_a_transaction(
        lambda: connection.cursor().execute(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
    ):
        yield


@contextmanager
def in_a_transaction(work: Callable[[], Any]) -> Iterator[int | None]:
    """Call a function in an open transaction of another connection; yield its process id."""
    begun, end = Flag(), Flag()
    pids: list[int | None] = []

    def run() -> None:
        try:
            with transaction.atomic():
                work()
                raw = connection.connection
                pids.append(raw.info.backend_pid if connection.vendor == "postgresql" else None)
                begun.set()
                end.wait(60)
        finally:
            begun.set()
            connections.close_all()

    thread = Thread(target=run)
    thread.start()
    try:
        assert begun.wait(60)
        assert pids, "it has failed"
        yield pids[0]
    finally:
        end.set()
        thread.join()
