"""
Real Celery workers: the events of a task have the context in which the task was sent.

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
    """Return the kinds of events that have another context than their task was sent in."""
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
def test_events_of_a_task_have_the_context_in_which_it_was_sent(campaign, pool):
    campaign.start_worker(pool)

    assert mixed_up(campaign) == []


def test_a_worker_that_never_ends_a_context_is_detected(campaign):
    campaign.environ["CAMPAIGN_BROKEN_CONTEXT"] = "1"
    campaign.start_worker()

    assert mixed_up(campaign) != []
