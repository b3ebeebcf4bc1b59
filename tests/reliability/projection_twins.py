"""Deliberately broken projections: each campaign must see its own one fail."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from django.db import transaction
from django.db.models import F

from eventlogs.models import Checkpoint
from eventlogs.projections import advancing, leases, rebuilding
from eventlogs.projections.parking import Parking


def checkpoint_in_a_transaction_of_its_own() -> None:
    """Commit the rows, and then the checkpoint."""
    fenced = leases.fenced

    @contextmanager
    def broken(lease: Any, position: Any = None, **figures: Any) -> Any:
        with transaction.atomic(using=lease.using):
            yield replace(lease, position=lease.position if position is None else position)
        with fenced(lease, position, **figures):
            pass

    advancing.fenced = broken


def token_is_not_looked_at() -> None:
    """Move the checkpoint, whoever has it by now and wherever it is."""

    def broken(lease: Any, position: int, **figures: Any) -> Any:
        figures["applied"] = F("applied") + 1
        Checkpoint.objects.filter(pk=lease.pk).update(position=position, **figures)
        return replace(lease, position=position)

    leases.move = broken


def later_events_do_not_wait() -> None:
    """Apply the later events of a log whose event is parked."""
    Parking.held = lambda self: set()  # type: ignore[method-assign]


def attempts_are_counted_afterwards() -> None:
    """Count an attempt only when it has failed, which a crash never does."""

    def broken(self: Any, waiting: Any) -> bool:
        return True

    Parking.begin = broken  # type: ignore[method-assign]


def checkpoint_stays_behind() -> None:
    """Let the new rows be the ones, and go on behind the old ones' position."""

    def broken(self: Any, live: Any) -> None:
        leases.forget_rebuild(self._cls.name, using=self._using)

    rebuilding._ShadowRebuild._switch = broken  # type: ignore[method-assign]
