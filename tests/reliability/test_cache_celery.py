"""
Real Celery workers with a real broker: few tasks for many appends, and caches that converge.

Workers are killed in the middle of a task, messages come three times and out of order, and the
broker is gone for a while. The broker is a private Redis; where AMQP_URL names a RabbitMQ, that
one as well.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.test import override_settings

from eventlogs import LogId, LogManager
from eventlogs.caches.backends import statistics
from eventlogs.caches.counters import counters
from tests.locks import is_waited_for
from tests.processes import Program, until
from tests.processes.waiting import witnesses
from tests.races import COMMITS
from tests.reliability.cache_jobs import ledgers
from tests.reliability.ledgers import Entered, Ledger
from tests.reliability.redises import MortalRedis
from tests.servers import die_with_parent

pytestmark = [pytest.mark.redis, COMMITS]

BROKERS = ["redis"] + (["amqp"] if "AMQP_URL" in os.environ else [])
FEW = 250  # tasks, for 1,000 appends to 10 logs by 2 processes


class Campaign:
    """A broker, a cache, workers, and programs that append."""

    def __init__(self, directory: Path, cache: MortalRedis, broker: str) -> None:
        self.log = directory / "worker.log"
        self.log.touch()
        self.environ = {
            "DJANGO_SETTINGS_MODULE": "tests.reliability.worker_settings",
            "CAMPAIGN_REDIS_URL": cache.url,
            "CAMPAIGN_BROKER_URL": broker,
            "CAMPAIGN_QUEUE": f"{os.environ['EVENTLOGS_TEST_NAME']}_{uuid4().hex[:8]}",
        }
        self.worker: Program | None = None

    def start_worker(self, pool: str = "solo") -> None:
        options = ["--pool", pool, "--concurrency", "2", "--loglevel", "INFO"]
        with self.log.open("ab") as log:
            self.worker = Program(
                *("-m", "celery", "--app", "tests.reliability.celery_app"),
                *("worker", *options, "--without-gossip", "--without-mingle"),
                environ=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )

    def kill_worker(self) -> None:
        """Kill it with SIGKILL, and its children."""
        assert self.worker is not None
        os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.close()
        self.worker = None

    def run(self, *job: Any, count: int = 1, **environ: str) -> list[Any]:
        """Run a job of celery_jobs.py in several processes; return their output."""
        with ExitStack() as stack:
            programs = [
                stack.enter_context(
                    Program(
                        *("-m", "tests.reliability.celery_jobs", *map(str, job)),
                        environ={**self.environ, **environ},
                    )
                )
                for _ in range(count)
            ]
            return [json.loads(program.ended()) for program in programs]

    def tasks(self, what: str = "received") -> int:
        """Return how many refreshes the worker's log says were received, or succeeded."""
        return sum(
            f" {what}" in line
            for line in self.log.read_text().splitlines()
            if "Task eventlogs.refresh_reduction[" in line
        )

    def converges(self, log_ids: list[LogId]) -> None:
        """Wait until the cached reductions are up to date, and check that they are right."""
        manager = ledgers()
        versions = {log_id: manager.version(log_id) for log_id in log_ids}
        witnesses.append(self.log.read_text)
        until(
            lambda: manager._reductions().versions(log_ids) == versions,
            what=f"{versions} in the cache",
        )
        witnesses.remove(self.log.read_text)
        counters.reset()
        for log_id in log_ids:
            found, truth = manager.reduce(log_id), manager.reduce(log_id, fresh=True)
            assert found.aggregate == truth.aggregate
        assert statistics()["hits"] == len(log_ids)
        assert "Traceback" not in self.log.read_text()


@pytest.fixture
def broker() -> Iterator[MortalRedis]:
    with MortalRedis() as broker:
        yield broker


@pytest.fixture(params=BROKERS)
def campaign(
    request: pytest.FixtureRequest, tmp_path: Path, broker: MortalRedis
) -> Iterator[Campaign]:
    url = f"redis+socket://{broker.socket}"
    if request.param == "amqp":
        url = os.environ["AMQP_URL"]
    with MortalRedis() as cache, override_settings(CACHES=cache.caches):
        campaign = Campaign(tmp_path, cache, url)
        yield campaign
        if campaign.worker is not None:
            campaign.kill_worker()
        if request.param == "amqp":
            kombu = import_module("kombu")  # the module comes with Celery
            with kombu.Connection(url) as connected, connected.channel() as channel:
                channel.queue_delete(campaign.environ["CAMPAIGN_QUEUE"])
                channel.exchange_delete(campaign.environ["CAMPAIGN_QUEUE"])


def new_logs(count: int) -> list[LogId]:
    manager = LogManager(Ledger, refresh_on_append=False)
    return [manager.create(Entered("first")).log_id for _ in range(count)]


@pytest.mark.parametrize("pool", ["solo", pytest.param("prefork", marks=pytest.mark.long)])
def test_many_appends_lead_to_few_tasks_and_to_current_entries(campaign, pool, record_property):
    log_ids = new_logs(10)
    campaign.start_worker(pool)

    reports = campaign.run("append", 500, *log_ids, count=2)

    assert all(report["flushed"] for report in reports)
    campaign.converges(log_ids)
    record_property("tasks", campaign.tasks())
    assert 10 <= campaign.tasks() <= FEW


@pytest.mark.long
def test_a_broken_version_without_the_flag_sends_many_tasks(campaign):
    log_ids = new_logs(10)
    campaign.start_worker()

    campaign.run(
        "append",
        *(500, *log_ids),
        count=2,
        CAMPAIGN_REFRESHER="tests.reliability.broken_celery.SendsEachTime",
    )

    campaign.converges(log_ids)
    until(lambda: campaign.tasks() > FEW)


@pytest.mark.parametrize("pool", ["solo", pytest.param("prefork", marks=pytest.mark.long)])
def test_one_sweep_repairs_the_work_of_a_killed_worker(campaign, pool):
    log_ids = new_logs(10)
    campaign.run("append", 20, *log_ids)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE eventlogs_event IN ACCESS EXCLUSIVE MODE")
        campaign.start_worker(pool)
        until(lambda: is_waited_for("eventlogs_event"))
        campaign.kill_worker()
    assert campaign.tasks("succeeded") == 0

    campaign.start_worker(pool)
    campaign.run("sweep")

    campaign.converges(log_ids)


def test_messages_that_come_three_times_and_out_of_order_do_no_harm(campaign):
    log_ids = new_logs(5)
    campaign.start_worker()

    campaign.run("append_and_repeat", 50, *log_ids)

    until(lambda: campaign.tasks("succeeded") == 150)
    campaign.converges(log_ids)


@pytest.mark.parametrize("campaign", ["redis"], indirect=True)
def test_appends_continue_without_the_broker_and_one_sweep_refreshes_the_cache(
    campaign, broker, record_property
):
    log_ids = new_logs(10)
    campaign.start_worker()
    campaign.run("append", 20, *log_ids)
    campaign.converges(log_ids)
    broker.stop()

    (report,) = campaign.run("append", 300, *log_ids)

    assert report["statistics"]["errors"]["unsent"] > 0
    record_property("median", median(report["times"]))
    record_property("slowest", report["times"][-1])
    assert median(report["times"]) < 0.1  # seconds
    assert sum(report["times"]) < 0.1 * len(report["times"])
    broker.start()
    # kombu may not recover from the loss of a Redis; a supervisor restarts the worker
    campaign.kill_worker()
    campaign.log.write_text("")
    campaign.start_worker()
    campaign.run("sweep")
    campaign.converges(log_ids)
