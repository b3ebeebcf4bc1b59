"""Events with their digests, read from PostgreSQL: see ``digested_events.py``."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from eventlogs.stores.columns import events_of_bytes
from eventlogs.stores.digested_events import Digested
from eventlogs.stores.retries import run_again
from eventlogs.stores.statements import Row, Statement

EVENTS_WITH_DIGESTS = Statement("events_with_digests")


def events_with_digests(
    using: str, log: UUID, index: int, until: UUID, log_types: Collection[str], limit: int
) -> list[Digested]:
    """Return a page of events behind one of them, log by log, with their digests."""
    parameters = {
        "log": log,
        "index": index,
        "until": until,
        "log_types": sorted(log_types) or None,
        "limit": limit,
    }
    return run_again(
        using, lambda connection: EVENTS_WITH_DIGESTS.read(connection, parameters, _digested)
    )


def _digested(rows: list[Row]) -> list[Digested]:
    digests = [digest for *_, digest in rows]
    events = events_of_bytes([row[:-1] for row in rows])
    return list(map(Digested, events, digests))
