"""A raw event, written for programs and for people."""

from __future__ import annotations

import json
from typing import Any

from eventlogs.management.output import plain
from eventlogs.values import EventRecord


def as_json(record: EventRecord) -> dict[str, Any]:
    """Return a raw event as ``EventPage.as_json`` names its parts."""
    return {
        "log_id": record.log_id,
        "index": record.index,
        "position": record.position,
        "type": record.type,
        "schema_version": record.schema_version,
        "data": record.event,
        "metadata": record.metadata,
        "idempotency_key": record.idempotency_key,
        "recorded_at": record.recorded_at,
    }


def compact(value: Any) -> str:
    """Return JSON on one line, with the characters of all languages."""
    return json.dumps(value, ensure_ascii=False, default=plain)
