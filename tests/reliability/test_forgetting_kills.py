"""Forgetting a person is killed at each of its steps, and finished by the next call."""

from __future__ import annotations

import signal

import pytest
from django.core.cache import caches as django_caches

from eventlogs import LogManager
from eventlogs.models import Event, SubjectKey
from eventlogs.privacy import memory
from tests.guests import SETTINGS, Guest, Joined
from tests.operations.everywhere import places
from tests.operations.guest_rows import EACH, KNOWN, MODELS, SharedNames
from tests.processes import Processes
from tests.projections.tables import made
from tests.reliability.forgetting_steps import STEPS, SUFFIXES, run

pytestmark = pytest.mark.django_db(transaction=True)

ADA, NAME = "member:1", "Countess Lovelace"
LOGS = 3


def cache():
    return "redis" if "redis" in django_caches.settings else "default"


@pytest.fixture(autouse=True)
def _tables(transactional_db, settings):
    settings.EVENTLOGS = {**SETTINGS, "CACHE": cache()}
    for alias in django_caches.settings:
        django_caches[alias].clear()
    memory.clear()
    with made(*MODELS), KNOWN.declared():
        yield
    for alias in django_caches.settings:
        django_caches[alias].clear()
    memory.clear()


COMMAND = ["eventlogs", "forget", ADA, "--by", "grace"]


TIMES = {"errors are cleared": (1, LOGS), "a row is made anew": (1, 2, LOGS * len(EACH))}


@pytest.mark.parametrize(
    ("step", "time"),
    [
        (f"{suffix} {step}", time)
        for step in STEPS
        for suffix in SUFFIXES
        for time in TIMES.get(step, (1,))
    ],
)
def test_a_call_that_is_killed_is_finished_by_the_next_one(step, time):
    guests = LogManager(Guest)
    logs = [guests.create(Joined(ADA, NAME)).log_id for _ in range(LOGS)]
    for projection in (*EACH, SharedNames):
        projection.catch_up()
    for each in logs:
        guests.reduce(each)

    with Processes() as processes:
        killed = processes.start(run, COMMAND, step, time)
        assert killed.report() is None
        assert killed.exit_code == -signal.SIGKILL

    is_destroyed = SubjectKey.objects.get(subject=ADA).wrapped is None
    assert is_destroyed == (step != f"before {STEPS[0]}")
    if is_destroyed:
        assert {guests.reduce(each).aggregate.name for each in logs} == {"erased"}
    with Processes() as processes:
        code, told = processes.start(run, COMMAND, None, 0).report()
    assert code == 1  # rows that several logs share have to be rebuilt
    assert "3 logs" in told
    SharedNames.rebuild(restart=True)
    assert [where for where in places(NAME) if where != "cache default"] == []
    if cache() == "redis":
        assert places(NAME) == []
    assert Event.objects.filter(type="eventlogs_forgetting.forgotten").count() == 1
    assert {guests.reduce(each).aggregate.name for each in logs} == {"erased"}
