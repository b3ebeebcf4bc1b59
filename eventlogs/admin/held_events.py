"""The held events of one projection, in groups of one cause, as the admin shows them."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.http import Http404, QueryDict
from django.utils.translation import gettext as _

from eventlogs.admin.parameters import number_from
from eventlogs.conf import MAX_VERSION
from eventlogs.models import ParkedEvent
from eventlogs.projections.held_causes import PARKED, RELEASE, WORDS, HeldGroup, state_of, within

GROUPS: Final = 20  # groups on the page of a projection
FEW: Final = 5  # events of a group that are shown on that page, too


class Cause(NamedTuple):
    """The values that the held events of one group have in common."""

    state: str
    error: str
    handler: str
    type: str
    schema_version: int

    @property
    def text(self) -> str:
        """The cause in words: "ValueError in captured(), payment.captured version 1"."""
        event = f"{self.type} version {self.schema_version}"
        if not self.error:
            return event
        where = f" in {self.handler}()" if self.handler else ""
        return f"{self.error}{where}, {event}"


def cause_of(group: HeldGroup) -> Cause:
    """Return the cause of a group."""
    return Cause(group.state, group.error, group.handler, group.type, group.schema_version)


def cause_of_event(event: ParkedEvent) -> Cause:
    """Return the cause of the group that an event is in."""
    state = state_of(event)
    if state == RELEASE:
        return Cause(state, "", "", event.type, event.schema_version)
    return Cause(state, event.error, event.handler, event.type, event.schema_version)


def read_cause(values: QueryDict) -> Cause | None:
    """Read a cause from an address or a form, None for all causes; raise Http404 if invalid."""
    if not values.get("state"):
        return None
    state, error, handler, type_ = (
        values.get(name, "").replace("\0", "") for name in Cause._fields[:-1]
    )
    version = number_from(values.get("schema_version"))
    if state not in WORDS or version is None or version > MAX_VERSION:
        raise Http404(_("There is no such group of events."))
    return Cause(state, error, handler, type_, version)


def held_events(projection: str, using: str, cause: Cause | None = None) -> QuerySet[ParkedEvent]:
    """Return the events that hold logs of a projection, of one cause or of all."""
    rows = ParkedEvent.objects.using(using).filter(projection=projection, is_rebuild=False)
    return rows if cause is None else rows.filter(within(*cause))


def first_causes(projection: str, using: str, held: list[HeldGroup]) -> list[dict[str, Any]]:
    """Return the first groups, those with parked events before others, with a few events each."""
    first = sorted(held, key=lambda each: each.state != PARKED)[:GROUPS]
    small = [each for each in first if each.logs <= FEW]
    events: dict[Cause, list[ParkedEvent]] = {}
    if small:
        wanted = reduce(or_, (within(*cause_of(each)) for each in small))
        rows = held_events(projection, using).filter(wanted)
        for each in rows.order_by("position")[: FEW * GROUPS]:
            events.setdefault(cause_of_event(each), []).append(each)
    return [
        {
            "group": each,
            "cause": cause_of(each),
            "query": urlencode(cause_of(each)._asdict()),
            "events": events.get(cause_of(each), []),
            "is_urgent": each.state == PARKED,
        }
        for each in first
    ]
