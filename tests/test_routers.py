"""
Every public method beside a replica that lags, to which a router sends all reads.

docs/logs.md has the table of reads, their databases and the reasons.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections, transaction
from django.db.models import Model, QuerySet
from django.test import Client

from eventlogs import Feed, LogManager, LogNotFound
from eventlogs.models import Event, EventLog, IdempotencyKey
from eventlogs.reductions.sweeps import sweep
from eventlogs.testing import RecordingCache
from example_project.payments.events import Authorized, Captured, Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries


class ReadsGoToAReplica:
    """As in Django's documentation, for the apps that have logs and read models."""

    replica = ""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return self.replica if model._meta.app_label in ("eventlogs", "payments") else None

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@pytest.fixture
def replica(second_database: str, settings: Any, monkeypatch: Any) -> str:
    """The alias of a replica, to which a test copies rows explicitly."""
    monkeypatch.setattr(ReadsGoToAReplica, "replica", second_database)
    settings.DATABASE_ROUTERS = ["tests.test_routers.ReadsGoToAReplica"]
    return second_database


def replicate(replica: str) -> None:
    """Copy the rows that the replica lacks."""
    models: list[type[Model]] = [EventLog, Event, IdempotencyKey]
    for model in models:
        known = set(QuerySet(model, using=replica).values_list("pk", flat=True))
        rows = [each for each in QuerySet[Model](model, using="default") if each.pk not in known]
        QuerySet[Model](model, using=replica).bulk_create(rows)


@contextmanager
def unread(alias: str) -> Iterator[None]:
    """Fail where a statement is sent to a database."""

    def refuse(execute: Any, sql: str, *call: Any) -> Any:
        raise AssertionError(f"{alias} was asked: {sql}")

    with connections[alias].execute_wrapper(refuse):
        yield


def said(*command: str) -> str:
    """Return the output of a command."""
    out = StringIO()
    call_command("eventlogs", *command, stdout=out, stderr=out)
    return out.getvalue()


def told(*command: str) -> dict[str, Any]:
    """Return the decoded JSON output of a command."""
    found: dict[str, Any] = json.loads(said(*command, "--json"))
    return found


def exported(file: Path) -> int:
    """Return how many events an export has."""
    said("export", str(file))
    return file.read_text().count('"log_id"')


def decided_on(log_id: Any) -> int:
    """Return how many events a decider sees."""
    seen = []
    Payment.logs.execute(log_id, lambda payment: seen.append(payment.version))
    return seen[0]


def test_reads_use_the_replica_and_appends_and_complete_reads_the_primary(replica, tmp_path):
    payments = Payment.logs
    state = payments.create(Requested(100), idempotency_key="r")
    replicate(replica)
    log_id = payments.append(state, Authorized(100, None), idempotency_key="a").log_id
    only_here = payments.create(Requested(7)).log_id

    on_the_replica: dict[str, tuple[Callable[[], Any], Any]] = {
        "reduce": (lambda: payments.reduce(log_id).version, 1),
        "reduce, fresh": (lambda: payments.reduce(log_id, fresh=True).version, 1),
        "reduce, at a version": (lambda: payments.reduce(log_id, version=1).version, 1),
        "areduce": (lambda: async_to_sync(payments.areduce)(log_id).version, 1),
        "load": (lambda: len(payments.load(log_id)), 1),
        "stream": (lambda: len(list(payments.stream(log_id))), 1),
        "version": (lambda: payments.version(log_id), 1),
        "exists": (lambda: payments.exists(only_here), False),
        "EventLog.objects": (lambda: EventLog.objects.get(pk=log_id.uuid).version, 1),
        "EventLog.objects.of_type": (lambda: EventLog.objects.of_type("payment").count(), 1),
        "Event.objects": (lambda: Event.objects.for_log(log_id).count(), 1),
        "IdempotencyKey.objects": (lambda: IdempotencyKey.objects.count(), 1),
    }
    for name, (read, expected) in on_the_replica.items():
        with unread("default"):
            assert read() == expected, name

    def within() -> tuple[int, int, int, bool]:
        with transaction.atomic():
            return (
                payments.reduce(log_id).version,
                len(payments.load(log_id)),
                payments.version(log_id),
                payments.exists(only_here),
            )

    on_the_primary: dict[str, tuple[Callable[[], Any], Any]] = {
        "a transaction": (within, (2, 2, 2, True)),
        "execute": (lambda: decided_on(log_id), 2),
        "execute with a key": (
            lambda: payments.execute(log_id, lambda _: [], idempotency_key="a").version,
            2,
        ),
        "get_or_create": (
            lambda: payments.get_or_create(Requested(100), idempotency_key="r"),
            (state, False),
        ),
        "EventLog.objects.store": (lambda: EventLog.objects.store().version(log_id), 2),
        "Feed.read": (lambda: len(Feed().read()), 3),
        "Feed.settled": (lambda: Feed().settled() > state.position, True),
        "Feed.holding_back": (lambda: Feed().holding_back(), []),
        "Projection.lag": (lambda: PaymentSummaries.lag().positions > 0, True),
        "Projection.catch_up": (PaymentSummaries.catch_up, 3),
        "Projection.wait_for": (lambda: PaymentSummaries.wait_for(state.position), True),
        "Projection.verify": (lambda: PaymentSummaries.verify().checked, 2),
        "Projection.parked": (PaymentSummaries.parked, []),
        "Projection.rebuild": (lambda: PaymentSummaries.rebuild() is None, False),
        "rows": (lambda: PaymentSummary.objects.using("default").count(), 2),
        "sweep": (lambda: sweep(full=True).logs, 2),
        "eventlogs reduce": (lambda: told("reduce", str(log_id))["version"], 2),
        "eventlogs show": (lambda: len(told("show", str(log_id))["events"]), 2),
        "eventlogs verify": (lambda: told("verify")["events"], 3),
        "eventlogs stats": (lambda: "logs" in str(told("stats")), True),
        "eventlogs parked": (lambda: said("parked").strip(), "No event waits."),
        "eventlogs export": (lambda: exported(tmp_path / "all.jsonl"), 3),
        "eventlogs project": (lambda: "payment-summary" in said("project", "--once"), True),
        "eventlogs rebuild": (
            lambda: "payment-summary" in said("rebuild", "payment-summary"),
            True,
        ),
        "eventlogs prune": (lambda: bool(said("prune", "--older-than", "1d", "--dry-run")), True),
        "prune": (lambda: IdempotencyKey.objects.prune(older_than=timedelta()), 2),
        "prune of some": (
            lambda: IdempotencyKey.objects.filter(key="a").prune(older_than=timedelta()),
            0,
        ),
    }
    for name, (work, expected) in on_the_primary.items():
        with unread(replica):
            assert work() == expected, name
    with pytest.raises(LogNotFound):
        payments.reduce(only_here)


def test_an_entry_of_the_primary_is_not_used_by_a_reader_of_the_replica(replica):
    cache = RecordingCache()
    refresher = "eventlogs.refreshers.ImmediateRefresher"
    payments = LogManager(Payment, cache=cache, refresher=refresher, refresh_on_append=True)
    state = payments.create(Requested(100))
    replicate(replica)
    state = payments.append(state, Authorized(100, None))

    behind = payments.reduce(state.log_id)
    with transaction.atomic():
        newest = payments.reduce(state.log_id)

    assert (behind.version, behind.aggregate.amount_approved) == (1, 0)
    assert (newest.version, newest.aggregate.amount_approved) == (2, 100)
    assert payments.append(newest, Captured(1)).version == 3


def test_using_overrides_the_routers(replica):
    state = Payment.logs.create(Requested(100))
    primary, copy = LogManager(Payment, using="default"), LogManager(Payment, using=replica)

    with unread(replica):
        assert primary.reduce(state.log_id).version == 1
    with unread("default"):
        assert not copy.exists(state.log_id)


def test_pages_of_logs_read_the_replica_and_pages_of_projections_the_primary(replica):
    payments = Payment.logs
    state = payments.create(Requested(100))
    replicate(replica)
    only_here = payments.create(Requested(7)).log_id
    User.objects.create_superuser("ada", password="x")
    client = Client()
    client.login(username="ada", password="x")

    page = client.get("/admin/eventlogs/eventlog/").content.decode()
    assert str(state.log_id) in page
    assert str(only_here) not in page
    assert client.get(f"/admin/eventlogs/eventlog/{state.log_id}/change/").status_code == 200
    with unread(replica):
        assert client.get("/admin/eventlogs/projectionstate/").status_code == 200
        detail = "/admin/eventlogs/projectionstate/payment-summary/change/"
        assert client.get(detail).status_code == 200
