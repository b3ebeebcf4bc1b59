"""The example project with django-redis and a real Celery worker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Program, output_of
from tests.servers import Redis

pytestmark = pytest.mark.redis

SCRIPT = """
import django
django.setup()
from eventlogs.reductions.worker import worker
from eventlogs.caches import statistics
from eventlogs.reductions.sweeps import sweep
from example_project.payments.events import Authorized, Payment, Requested
from tests.processes import until

payments = Payment.logs
state = payments.create(Requested(amount=100))
for _ in range(20):
    state = payments.append(state, Authorized(amount=1, approval_code=None))
assert worker.flush(10)
until(
    lambda: payments._reductions().versions([state.log_id]) == {state.log_id: 21},
    what="the worker's refresh",
)
assert payments.reduce(state.log_id).aggregate.amount_approved == 20
found = statistics()
assert found["hits"] == 1 and found["refreshes"] == 0, found
print("a worker has refreshed")
"""


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    with Redis() as redis:
        yield {
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3",
            "EXAMPLE_REDIS_URL": redis.url,
            "CELERY_BROKER_URL": f"redis+socket://{redis.socket}",
        }


def test_a_worker_refreshes_the_cache_after_appends(environ: dict[str, str]):
    output_of("manage.py", "migrate", "-v", "0", environ=environ)

    worker = ("-m", "celery", "--app", "example_project", "worker", "--concurrency", "1")
    with Program(*worker, environ=environ, stdout=subprocess.DEVNULL) as running:
        assert "a worker has refreshed" in output_of("-c", SCRIPT, environ=environ)
        running.terminate()
        running.ended()


def test_with_redis_the_settings_have_no_findings(environ: dict[str, str]):
    assert "no issues" in output_of("manage.py", "check", environ=environ)
