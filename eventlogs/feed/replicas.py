"""
The feed of a database, read on a replica of it: for workers whose checkpoints are here.

The replica saves the database work, and nothing depends on it. A page of it counts only if

- it is a replica, so that its feed ends where a checkpoint of this database says: see
  ``postgresql.py``;
- the last event up to where its reader goes on, of any type, is here at its position. So the events
  before it are of this history. A replica of another database, or of one that has lost events, has
  other events there. (One thing it does not show: a log that was erased or archived in a history
  that a restore of this database has undone. After a restore, replicas are made anew.);
- the logs of its events are still here. A replica that is behind shows the events of a log that was
  erased, archived or moved away since. They are left out, since a reader here would not see them. A
  log leaves with all of its events, and leaves its row;
- every log that has come back here has come back there. From an archive it comes back at the same
  positions, which a reader of a replica that is behind would pass. From another database it comes
  back at other positions, and that replica shows its old ones;
- it is not far behind.

Otherwise, and while the replica does not answer, this database is read. A reader here keeps the
replica's feed moving, by the heartbeat of ``Feed``: so no other process has to.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import Error, connections
from django.db.models import Exists, OuterRef
from django.utils.connection import ConnectionDoesNotExist

from eventlogs.exceptions import FeedUnavailable
from eventlogs.feed.reader import Feed
from eventlogs.feed.sources import FeedQuery, FeedSource, feed_source_for
from eventlogs.feed.stored_pages import StoredPage, read_upto
from eventlogs.feed.tokens import Witness
from eventlogs.models import LogMove

logger = logging.getLogger("eventlogs.feed")

BEAT: Final = 0.05  # seconds between two heartbeats
# Where the replica is of no use, the database is read for so many seconds, or so many times as long
# as it took to find out: a server that is gone may keep its clients waiting for minutes.
LOOK_AGAIN: Final = 10.0
TIMES_AS_LONG: Final = 10

BEHIND: Final = 30.0  # seconds within which the replica must have what this database had
RETURNS: Final = 1_000  # logs that came back lately; with more of them, the database is read

OTHERS: Final = "it has other events"


Return = tuple[UUID, datetime]


class NoReplicaOf(Exception):
    """The other database is no replica of this one; the text says why."""


class FeedOnReplica(Feed):
    """The feed of ``using``, read on a replica where that can be done."""

    def __init__(self, replica: str, *, using: str) -> None:
        """Read on the database alias ``replica``, which is a replica of ``using``."""
        super().__init__(using=using)
        self._replica = replica
        self._next_beat = 0.0  # by the monotonic clock, as all times here
        self._not_before = self._began = 0.0
        self._goal: tuple[int, float] | None = None  # a position to be reached, and since when
        self._complaint = ""

    def _read(self, query: FeedQuery, witnesses: tuple[Witness, ...] = ()) -> StoredPage:
        found = None
        if (now := time.monotonic()) >= self._not_before:
            if now >= self._next_beat:
                position = self.heartbeat()
                if self._goal is None or position < self._goal[0]:
                    self._goal = position, now
                self._next_beat = now + BEAT
            self._began = time.monotonic()
            found = self._read_there(query, witnesses)
        return super()._read(query, witnesses) if found is None else found

    def _read_there(self, query: FeedQuery, witnesses: tuple[Witness, ...]) -> StoredPage | None:
        """Return a page of the replica; None where it is to be read here."""
        try:
            source = feed_source_for(self._replica)
            # Before the snapshot begins: in one, a primary would be refused for that.
            if not source.watermark().is_replica:
                raise NoReplicaOf("it is no replica")

            def read() -> tuple[set[Return], StoredPage]:
                mark = source.watermark()
                self._note(mark.settled)
                # Before the page: where both are not of one moment, the page is the newer one.
                came_back = _came_back(source)
                return came_back, read_upto(source, mark, query, witnesses)

            came_back, found = source.at_one_moment(read)
        except (Error, FeedUnavailable, NoReplicaOf, ConnectionDoesNotExist) as error:
            self._give_up(error)
            return None
        here = feed_source_for(self.using)
        try:
            # After what is there was read: so those that have come back by then are there.
            is_current = len(came_back) <= RETURNS and _came_back(here) == came_back
            page = _still_here(found, here) if is_current else None
        except NoReplicaOf as error:
            self._give_up(error)
            return None
        if self._complaint:
            logger.info("The feed of %r is read on %r again.", self.using, self._replica)
            self._complaint = ""
        return page

    def _note(self, settled: int) -> None:
        """Note how far the replica is settled; raise NoReplicaOf if it stays behind."""
        if self._goal is None:
            return
        position, since = self._goal
        if settled >= position:
            self._goal = None
        elif time.monotonic() - since > BEHIND:  # also at the next look, until it has come there
            raise NoReplicaOf(f"it is more than {BEHIND:g} seconds behind")

    def _give_up(self, error: Exception) -> None:
        """Read this database for some seconds; say so once, as long as the reason is the same."""
        now = time.monotonic()
        self._not_before = now + max(LOOK_AGAIN, TIMES_AS_LONG * (now - self._began))
        if isinstance(error, Error):
            with suppress(Error):
                connections[self._replica].close()
        why = type(error).__name__ if isinstance(error, Error) else str(error)
        if why != self._complaint:
            self._complaint = why
            logger.warning(
                "The feed of %r is read there, and not on %r: %s", self.using, self._replica, why
            )


def _came_back(source: FeedSource) -> set[Return]:
    """
    Return the logs that came back from archives, and when.

    Each return stores a row, which is removed after some days. A replica is behind by seconds.
    """
    rows = source.rows("ReturnedLog").order_by("pk").values_list("pk", "returned_at")
    return set(rows[: RETURNS + 1])


def _still_here(found: StoredPage, here: FeedSource) -> StoredPage | None:
    """Return a page without the events of logs that have left; None if it is to be read here."""
    last, is_missing = found.last, False
    if last is None:
        if found.next_after:
            raise NoReplicaOf("it has no events")
        return found
    uuids = {last.log, *(each.log_id.uuid for each in found.events)}
    while True:
        left = here.rows("LogMove").filter(uuid=OuterRef("pk"), state=LogMove.LEFT)
        logs = here.rows("EventLog").filter(pk__in=uuids).annotate(has_left=Exists(left))
        rows = list(logs.values_list("pk", "log_type", "has_left"))
        if len(rows) < len(uuids):
            raise NoReplicaOf(OTHERS)
        alive = {uuid: has_left for uuid, log_type, has_left in rows if log_type}
        if any(alive.values()) or last.log not in alive:
            return None
        stored = here.places([last.position]).get(last.position)
        if stored is None and not is_missing:
            is_missing = True  # its log may have left since it was looked for
            continue
        if stored != last:
            raise NoReplicaOf(OTHERS)
        return found._replace(events=[each for each in found.events if each.log_id.uuid in alive])
