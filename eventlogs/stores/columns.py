"""The columns of a stored event, in the one order in which they are read through the ORM."""

from __future__ import annotations

from typing import Final

from django.db.models import TextField
from django.db.models.functions import Cast

# Data and metadata as text, which is decoded once: see docs/performance.md.
STORED: Final = (
    "index",
    "position",
    "type",
    "schema_version",
    Cast("data", TextField()),
    Cast("metadata", TextField()),
    "idempotency_key",
    "recorded_at",
)
