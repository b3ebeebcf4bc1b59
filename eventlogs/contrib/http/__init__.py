"""
HTTP APIs on logs: idempotency keys, preconditions, problems, pages and streams of events.

For plain views of Django; ``eventlogs.contrib.rest_framework`` and ``eventlogs.contrib.ninja`` have
what is different there.
"""

from __future__ import annotations

from eventlogs.contrib.http.answers import areduce_for, reduce_for, with_etag
from eventlogs.contrib.http.bodies import read_json
from eventlogs.contrib.http.change_requests import ChangeRequest
from eventlogs.contrib.http.pages import (
    LinkedPage,
    LogEvents,
    aevents_page,
    event_as_json,
    events_page,
)
from eventlogs.contrib.http.problems import Problem, Problems
from eventlogs.contrib.http.streams import event_stream

__all__ = [
    "ChangeRequest",
    "LinkedPage",
    "LogEvents",
    "Problem",
    "Problems",
    "aevents_page",
    "areduce_for",
    "event_as_json",
    "event_stream",
    "events_page",
    "read_json",
    "reduce_for",
    "with_etag",
]
