"""Pages of a log's events, with links to the pages around them (RFC 8288)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.http import HttpRequest
from django.utils.encoding import escape_uri_path

from eventlogs.contrib.http.answers import CACHING
from eventlogs.contrib.http.parameters import flag, whole_number
from eventlogs.events.codec import ENCODER
from eventlogs.events.registry import registry
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.pages import EventPage
from eventlogs.values import EventRecord, RetiredEvent


class LogEvents(NamedTuple):
    """The events of a log, to be paginated by Django REST framework or django-ninja."""

    logs: LogManager[Any]
    log_id: LogId | str


@dataclass(frozen=True, slots=True)
class LinkedPage:
    """One page of a log's events, and the addresses of the next and the previous one, or None."""

    events: EventPage
    next: str | None
    previous: str | None

    @property
    def headers(self) -> dict[str, str]:
        """``Link``, if there is another page, and ``Cache-Control``: for the caller only."""
        links = {"next": self.next, "prev": self.previous}
        text = ", ".join(f'<{url}>; rel="{name}"' for name, url in links.items() if url)
        return {"Cache-Control": CACHING} | ({"Link": text} if text else {})

    def as_json(self) -> dict[str, Any]:
        """Return ``{"events", "next", "previous"}``, each event as ``event_as_json`` shows it."""
        return {
            "events": [event_as_json(each) for each in self.events],
            "next": self.next,
            "previous": self.previous,
        }


def events_page(
    request: HttpRequest, logs: LogManager[Any], log_id: LogId | str, *, max_limit: int = 100
) -> LinkedPage:
    """
    Return the page of events that the query parameters ask for.

    ``start`` is the index of its first event, ``limit`` its number of events, 1 to ``max_limit``
    (which is also the default, and at most 10,000), ``reverse=true`` asks for the newest events
    first. Other parameters are kept in the links, which are paths without a host.

    Raise Problem (400) for a malformed parameter, LogNotFound for a log without events, and what
    ``LogManager.load`` raises.
    """
    start = whole_number(request, "start")
    limit = whole_number(request, "limit", lowest=1, highest=max_limit) or max_limit
    is_reverse = flag(request, "reverse")
    page = logs.load(log_id, start=start, limit=limit, reverse=is_reverse)
    if not page and not logs.exists(log_id):
        raise logs.not_found(log_id)
    before = after = None
    if start is not None and is_reverse:
        newer = logs.version(log_id) - 1 - start
        if newer > 0:
            before = start + min(limit, newer), min(limit, newer)
    elif start:
        before = max(0, start - limit), min(limit, start)
    if page.next_start is not None:
        after = page.next_start, limit
    return LinkedPage(page, _address(request, after), _address(request, before))


aevents_page = sync_to_async(events_page, thread_sensitive=True)
"""Do the same as ``events_page``, for async code."""


def event_as_json(record: EventRecord) -> dict[str, Any]:
    """
    Return an event as a JSON value: ``{"index", "type", "data", "recorded_at"}``.

    ``type`` and ``data`` are those of its current class, even if it was stored with older ones.
    Metadata and idempotency keys are left out: they are about other callers.
    """
    event, kind = record.event, registry.by_class(type(record.event))
    data = event.data if isinstance(event, RetiredEvent) else event
    return {
        "index": record.index,
        "type": record.type if kind is None else kind.name,
        "data": json.loads(ENCODER.encode(data)),
        "recorded_at": record.recorded_at.isoformat(),  # with microseconds
    }


def _address(request: HttpRequest, page: tuple[int, int] | None) -> str | None:
    """Return the address of another page of the request, by its start and limit, or None."""
    if page is None:
        return None
    start, limit = page
    query = request.GET.copy()
    query["start"], query["limit"] = str(start), str(limit)
    return f"{escape_uri_path(request.path)}?{query.urlencode()}"
