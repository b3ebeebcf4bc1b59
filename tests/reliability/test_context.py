"""
Real Celery workers: what a task appends has the context in which it was sent, and no other.

Tasks are retried, follow one another in a chain, and send further tasks; every other one has no
context.
"""

from __future__ import annotations

import pytest
from django.db import connections

from eventlogs.models import Event
from tests.processes import until
from tests.races import COMMITS
from tests.reliability import test_cache_celery

pytestmark = [pytest.mark.redis, COMMITS]
broker, campaign = test_cache_celery.broker, test_cache_celery.campaign  # fixtures

SENT = 20
EVENTS = 4  # of each: two attempts, the chain, and the task that it sends


def mixed_up(campaign: test_cache_celery.Campaign) -> list[str]:
    """Return which events do not have the context in which their task was sent."""
    campaign.run("send_in_contexts", SENT)
    until(lambda: Event.objects.count() == SENT * EVENTS, what="events of all tasks")
    found = []
    for event in Event.objects.all():
        number = event.data["note"]["number"]
        if event.metadata != ({"number": number} if number % 2 else {}):
            found.append(event.data["note"]["by"])
    connections.close_all()
    return found


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_what_a_task_appends_has_the_context_in_which_it_was_sent(campaign, pool):
    campaign.start_worker(pool)

    assert mixed_up(campaign) == []


def test_a_worker_that_keeps_a_context_is_found_out(campaign):
    campaign.environ["CAMPAIGN_BROKEN_CONTEXT"] = "1"
    campaign.start_worker()

    assert mixed_up(campaign) != []
