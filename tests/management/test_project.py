"""``eventlogs project``: runs until it is stopped, alone or as a supervisor of workers."""

from __future__ import annotations

import json
import os
import signal

import pytest
from django.core.management import CommandError
from django.db import connection, transaction
from django.utils import timezone

from eventlogs.models import Checkpoint, ProjectionWorker
from eventlogs.projections.base import projections
from example_project.payments.events import Captured, Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.locks import a_session_waits
from tests.processes import until


def captured(state) -> int:
    found = PaymentSummary.objects.filter(pk=state.log_id)
    return found.values_list("captured", flat=True).first() or 0


@pytest.mark.feed
def test_once_applies_all_existing_events(run, run_json, db):
    Payment.logs.create(Requested(amount=5))

    assert "payment-summary: 1 event applied" in run("project", "--once")
    assert run_json("project", "payment-summary", "--once") == {"applied": {"payment-summary": 0}}


@pytest.mark.feed
def test_the_command_keeps_rows_up_to_date_until_sigterm(start):
    state = Payment.logs.create(Requested(amount=5))
    process = start("project", "payment-summary")
    until(lambda: PaymentSummary.objects.exists())

    state = Payment.logs.append(state, Captured(amount=3))
    assert PaymentSummaries.wait_for(state.position, timeout=10)
    assert captured(state) == 3

    process.send_signal(signal.SIGTERM)
    assert "Running payment-summary." in process.ended()
    assert process.error_text == ""
    assert set(Checkpoint.objects.values_list("owner", flat=True)) == {""}
    assert not any_worker()


@pytest.mark.feed
def test_json_reports_applied_events_as_json_lines(start):
    Payment.logs.create(Requested(amount=5))
    process = start("project", "payment-summary", "--json")

    assert json.loads(process.line()) == {"applied": {"payment-summary": 1}}


@pytest.mark.feed
@pytest.mark.postgresql
def test_workers_that_die_are_restarted(start):
    process = start("project", "--workers", "2")
    until(lambda: ProjectionWorker.objects.count() == 2)
    victims = {int(each.name.split(":")[1]) for each in ProjectionWorker.objects.all()}
    assert process.pid not in victims

    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    state = Payment.logs.create(Requested(amount=5), Captured(amount=4))

    until(lambda: captured(state) == 4)
    process.send_signal(signal.SIGTERM)
    process.ended()
    assert process.error_text.count("(signal SIGKILL). Another one starts in") == 2


@pytest.mark.feed
@pytest.mark.postgresql
def test_workers_end_when_their_supervisor_is_killed(start):
    process = start("project", "--workers", "2")
    until(lambda: ProjectionWorker.objects.count() == 2)

    process.kill()

    until(lambda: not any_worker())


def any_worker() -> bool:
    return ProjectionWorker.objects.filter(seen_until__gt=timezone.now()).exists()


POOLS = [
    pytest.param({"OPTIONS": {"pool": {"min_size": 1, "max_size": 3}}}, id="Django's pool"),
    pytest.param({"ENGINE": "dj_db_conn_pool.backends.postgresql"}, id="django-db-connection-pool"),
]


@pytest.mark.postgresql
@pytest.mark.parametrize("pool", POOLS)
def test_workers_share_no_pool(start, pool):
    pytest.importorskip("psycopg_pool" if "OPTIONS" in pool else "dj_db_conn_pool")
    states = [Payment.logs.create(Requested(amount=9)) for _ in range(20)]
    process = start("project", "--workers", "3", **pool)
    until(lambda: ProjectionWorker.objects.count() == 3)

    for amount in range(1, 4):
        states = [Payment.logs.append(each, Captured(amount=amount)) for each in states]
    assert PaymentSummaries.wait_for(states[-1].position, timeout=20)

    assert [captured(each) for each in states] == [6] * 20
    process.send_signal(signal.SIGTERM)
    process.ended()
    assert process.error_text == ""
    assert not any_worker()


@pytest.mark.postgresql
def test_a_worker_that_is_stopped_while_it_starts_ends(start):
    process = start("project", "--workers", "2", moment="birth")

    until(lambda: "ended (exit code 0). Another one starts" in process.error_text)
    process.send_signal(signal.SIGTERM)
    process.ended()


@pytest.mark.postgresql
def test_a_worker_that_was_just_forked_is_stopped_as_well(start):
    process = start("project", "--workers", "2", moment="fork")

    process.ended()
    assert process.error_text == ""


@pytest.mark.postgresql
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_does_not_end_is_interrupted(start, number):
    process = start("project", "--workers", "2", moment="later")
    until(lambda: ProjectionWorker.objects.count() == 2)
    psycopg = pytest.importorskip("psycopg")
    state = Payment.logs.create(Requested(amount=5))
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE payments_paymentsummary")
        Payment.logs.append(state, Captured(amount=4))
        until(a_session_waits)
        process.send_signal(number)
        process.ended(code=0 if number == signal.SIGTERM else -number)
        # The process ends while the lock is still held. If a signal comes while psycopg 3.1 waits,
        # it leaves the statement to the server, which notices the lost client when it has the lock.
        if number == signal.SIGKILL or tuple(map(int, psycopg.__version__.split(".")[:2])) > (3, 1):
            until(lambda: not a_session_waits())


@pytest.mark.feed
def test_an_unknown_name_and_no_projection_are_command_errors(run, db, monkeypatch):
    with pytest.raises(
        CommandError, match=r"no projection 'x'\. Declared projections: .*payment-summary"
    ):
        run("project", "x")
    for name in list(projections):
        monkeypatch.delitem(projections, name)
    with pytest.raises(CommandError, match="No projection is declared"):
        run("project")


@pytest.mark.feed
def test_too_little_memory_is_a_command_error(run, db):
    with pytest.raises(CommandError, match="is not an int of at least 64"):
        run("project", "--max-memory", "1")


@pytest.mark.mariadb
@pytest.mark.fence
def test_without_a_feed_the_command_is_refused(db, run):
    with pytest.raises(CommandError, match="settled at an unknown time"):
        run("project")
