"""Checkpoints: how far a projection is. Whoever moves one holds its row's lock."""

from __future__ import annotations

from django.db.models import F

from eventlogs.models import Checkpoint


def lock(name: str, using: str) -> Checkpoint:
    """
    Return the checkpoint of a projection, locked until the transaction ends.

    An UPDATE locks it in PostgreSQL, and is the write that SQLite waits for others at.
    """
    rows = Checkpoint.objects.using(using).filter(projection=name)
    if not rows.update(position=F("position")):
        Checkpoint.objects.using(using).bulk_create(
            [Checkpoint(projection=name)], ignore_conflicts=True
        )
        rows.update(position=F("position"))
    return rows.get()


def position(name: str, using: str) -> int:
    """Return the position up to which the projection's rows are right; 0 at first."""
    found = Checkpoint.objects.using(using).filter(projection=name)
    return found.values_list("position", flat=True).first() or 0
