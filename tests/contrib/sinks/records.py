"""Records to send, and consumers that read what has arrived."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from eventlogs import EventRecord, LogId
from eventlogs.projections.base import BaseProjection
from tests.accounts import Deposited

THEM: dict[str, type[BaseProjection]] = {}
MOMENT = datetime(2026, 1, 31, tzinfo=UTC)


def records(*counts: int, amount: int = 1) -> list[EventRecord]:
    """Return the records of logs, in turns: so many of each."""
    logs = [LogId.new("account") for _ in counts]
    found = [
        EventRecord(log_id, index, 0, "account.deposited", 1, Deposited(amount), {}, None, MOMENT)
        for index in range(max(counts))
        for log_id, count in zip(logs, counts, strict=True)
        if index < count
    ]
    return found


def encode(record: EventRecord) -> dict[str, Any]:
    return record.as_cloudevent()


def out_of_order(bodies: Iterable[bytes]) -> list[str]:
    """Return the logs whose events came first in another order than that of the log."""
    found: dict[str, list[int]] = {}
    for event in map(json.loads, bodies):
        indexes = found.setdefault(event["subject"], [])
        if (index := int(event["sequence"])) not in indexes:
            indexes.append(index)
    return [log for log, indexes in found.items() if indexes != list(range(len(indexes)))]


def ids(sent: Sequence[EventRecord]) -> set[str]:
    return {each.id for each in sent}
