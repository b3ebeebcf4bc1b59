"""Deliberately broken versions of publishers; the campaign must find the defect of each."""

from __future__ import annotations

from typing import Any

from eventlogs.contrib.sending import Sending
from eventlogs.projections.publications import Publications, Published
from tests.overriding import override


def publishes_afterwards() -> None:
    """The checkpoint moves first, and then the events are published."""
    original = Publications._publish

    def advance(self: Any, events: Any, reached: int) -> None:
        done = {event.position for event in events}
        self._store(Published(done, set(), [], []), events, reached)
        original(self, events)

    override(Publications, _advance=advance)


def without_acknowledgements() -> None:
    """The checkpoint moves when the events are sent, whether or not the broker stores them."""

    def next_of_all(self: Any) -> int | None:
        for later in self._later.values():
            self._ready.extend(later)
            later.clear()
        return self._ready.popleft() if self._ready else None

    async def end(self: Any) -> None:
        return None

    override(Sending, next=next_of_all, end=end)
