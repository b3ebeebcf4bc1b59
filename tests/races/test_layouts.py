"""The layout is changed beside writers and a reader: nothing is lost, and nothing is passed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from django.db import connection

from eventlogs import ANY, Feed, LogId, LogState
from eventlogs.exceptions import LayoutDiffers
from eventlogs.feed.sources import has_feed
from eventlogs.models import Event
from eventlogs.operations.layouts import change_layout
from eventlogs.stores.layouts import layout_of
from tests.accounts import Account, Deposited, Opened
from tests.processes import Place, until
from tests.races import COMMITS

pytestmark = COMMITS

WRITERS = 4
OTHER = {"fence": "buckets", "buckets": "fence"}

accounts = Account.logs


def append_until_the_layout_differs(
    place: Place, log_ids: Sequence[LogId]
) -> Iterator[LogState | LayoutDiffers]:
    """Append to a log of its own; return the states, and the error at last."""
    number = 0
    while True:
        key = f"{place.number}-{number}"
        try:
            yield accounts.append(
                log_ids[place.number], Deposited(1), expected_version=ANY, idempotency_key=key
            )
        except LayoutDiffers as error:
            error.__cause__ = None  # it cannot be pickled
            yield error
            return
        number += 1


def are_there(events: int) -> bool:
    return Event.objects.count() > events


def test_beside_writers_no_event_is_lost_or_passed(crew, settings):
    home = layout_of(connection)
    log_ids = [accounts.create(Opened("ada")).log_id for _ in range(WRITERS)]
    seen: list[int] = []

    def read() -> None:
        if has_feed("default"):
            page = Feed().read(after=seen[-1] if seen else 0, limit=10_000)
            seen.extend(each.position for each in page)

    try:
        with ThreadPoolExecutor(1) as thread:
            racing = thread.submit(crew.race, WRITERS, append_until_the_layout_differs, log_ids)
            for events in (20, 40, 60):
                until(partial(are_there, events), what="events")
                read()
            change_layout(OTHER[home], using="default")
            answers = racing.result()

        states = [each for each in answers if isinstance(each, LogState)]
        assert len(answers) - len(states) == WRITERS
        assert Event.objects.count() == len(states) + WRITERS
        settings.EVENTLOGS = {**settings.EVENTLOGS, "LAYOUT": OTHER[home]}
        last = accounts.append(log_ids[0], Deposited(1), expected_version=ANY)
        assert last.position > max(each.position for each in states)
        if has_feed("default"):
            read()
            everything = sorted(Event.objects.values_list("position", flat=True))
            assert seen == everything
    finally:
        change_layout(home, using="default")
