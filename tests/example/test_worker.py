"""The example project with django-redis and a real Celery worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.example.conftest import ROOT
from tests.servers import Redis

pytestmark = pytest.mark.redis

SCRIPT = """
import time
import django
django.setup()
from eventlogs.reductions.worker import worker
from eventlogs.caches import statistics
from eventlogs.reductions.sweeps import sweep
from example_project.payments.events import Authorized, Payment, Requested

payments = Payment.logs
state = payments.create(Requested(amount=100))
for _ in range(20):
    state = payments.append(state, Authorized(amount=1, approval_code=None))
assert worker.flush(10)
until = time.monotonic() + 30
while payments._reductions().versions([state.log_id]) != {state.log_id: 21}:
    assert time.monotonic() < until, "the worker did not refresh"
    time.sleep(0.05)
assert payments.reduce(state.log_id).aggregate.amount_approved == 20
found = statistics()
assert found["hits"] == 1 and found["refreshes"] == 0, found
print("a worker has refreshed")
"""


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    with Redis() as redis:
        yield {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3",
            "EXAMPLE_REDIS_URL": redis.url,
            "CELERY_BROKER_URL": f"redis+socket://{redis.socket}",
        }


def test_a_worker_refreshes_what_is_appended(environ: dict[str, str], tmp_path: Path):
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v", "0"], cwd=ROOT, env=environ, check=True
    )
    command = [sys.executable, "-m", "celery", "--app", "example_project", "worker"]
    with (tmp_path / "worker.log").open("w+") as log:
        worker = subprocess.Popen(
            [*command, "--concurrency", "1"], cwd=ROOT, env=environ, stdout=log, stderr=log
        )
        try:
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT],
                cwd=ROOT,
                env=environ,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            worker.terminate()
            worker.wait(30)
        log.seek(0)

        assert "a worker has refreshed" in done.stdout, done.stderr + log.read()


def test_with_redis_nothing_is_wrong_with_the_settings(environ: dict[str, str]):
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "no issues" in done.stdout, done.stderr
