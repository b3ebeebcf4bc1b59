"""
Held logs in groups of one cause: "1,804 parked: ZeroDivisionError in captured()".

One bug parks one event of each log that meets it. A person has to see the bug, and how many logs
it holds; the single events come after that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.db.models import Case, Count, F, Max, Min, Q, TextField, Value, When

from eventlogs.models import ParkedEvent

PARKED: Final = "parked"
RETRYING: Final = "retrying"
RELEASE: Final = "release"
WORDS: Final = {
    PARKED: "parked",
    RETRYING: "waiting for a retry",
    RELEASE: "waiting for a release",
}


@dataclass(frozen=True, slots=True)
class HeldGroup:
    """
    The logs that one projection holds for one cause; each log is held by one event.

    ``state`` is "parked" (a person must act), "retrying" (the event is tried again by itself) or
    "release" (it waits for a release that knows the event). ``error`` is the class of the last
    error, "" for "release" and where no attempt was made yet; ``handler`` the function of the
    project's own code that raised it, "" where unknown.
    """

    projection: str
    state: str
    error: str
    handler: str
    type: str
    schema_version: int
    logs: int
    first_failed_at: datetime
    failed_at: datetime

    @property
    def headline(self) -> str:
        """How many logs are held, and why: "1,804 parked: ZeroDivisionError in captured()"."""
        return f"{self.logs:,} {WORDS[self.state]}: {self.cause}"

    @property
    def cause(self) -> str:
        """The cause in a few words: "ZeroDivisionError in captured()"."""
        if self.state == RELEASE:
            return f"{self.type} version {self.schema_version}"
        if not self.error:
            return "not tried yet"
        return f"{self.error} in {self.handler}()" if self.handler else self.error


def groups(using: str, projections: Collection[str] | None = None) -> list[HeldGroup]:
    """
    Return the held logs of a database in groups, those with most logs first: one query.

    ``projections`` are names, None is all of them. Logs that only a rebuild holds are left out.
    """
    held = ParkedEvent.objects.using(using).filter(is_rebuild=False)
    if projections is not None:
        held = held.filter(projection__in=projections)
    found = (
        held.order_by()
        .annotate(
            state=Case(
                When(~Q(awaits=""), then=Value(RELEASE)),
                When(retry_at=None, then=Value(PARKED)),
                default=Value(RETRYING),
                output_field=TextField(),
            ),
            why=_unless_left("error"),
            where=_unless_left("handler"),
        )
        .values_list("projection", "state", "why", "where", "type", "schema_version")
        .annotate(logs=Count("pk"), first=Min("first_failed_at"), last=Max("failed_at"))
        .order_by("-logs", "projection", "state", "why", "where", "type", "schema_version")
    )
    return [HeldGroup(*each) for each in found]


def state_of(event: ParkedEvent) -> str:
    """Return the state of the group that an event is in."""
    if event.awaits_release:
        return RELEASE
    return PARKED if event.is_parked else RETRYING


def within(state: str, error: str, handler: str, type_: str, schema_version: int) -> Q:
    """Return the condition on ParkedEvent for the rows of a group, of one projection."""
    found = Q(type=type_, schema_version=schema_version)
    if state == RELEASE:
        return found & ~Q(awaits="")
    found &= Q(awaits="", error=error, handler=handler)
    return found & Q(retry_at__isnull=state == PARKED)


def _unless_left(field: str) -> Case:
    # The error of an earlier attempt is not why the event waits for a release.
    return Case(When(awaits="", then=F(field)), default=Value(""), output_field=TextField())
