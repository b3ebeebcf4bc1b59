"""
Reactors: their handlers run event by event, outside of a transaction.

A reactor has no rows. Its handler runs before the checkpoint moves, so it is called at least once
for each event.
"""

from __future__ import annotations

from django.db import connections

from eventlogs.projections.base import Failed
from eventlogs.projections.deadlines import HandlerTimedOut, deadline
from eventlogs.projections.lost_connections import (
    cancel_statement,
    drop,
    failure_of_loss,
    is_broken,
)
from eventlogs.projections.one_by_one import OneByOne
from eventlogs.values import StoredEvent


class Reactions(OneByOne):
    """Calls a reactor's handlers, at least once for each event."""

    counts_each_attempt = False  # each count is one more transaction

    def advance(self, events: list[StoredEvent], reached: int) -> None:
        self.apply_each(events)

    def before_transaction(self, event: StoredEvent) -> Failed | None:
        """Call the handler."""
        partition = self.partition
        using = partition.using
        raw = connections[using].connection
        try:
            with deadline(partition.projection.timeout):
                partition.projection.apply(partition.records([event]), using)
        except Failed as failed:
            # Only a broken connection counts: a handler may close one that works.
            broken = raw if raw is not None and is_broken(using, raw) else None
            if broken is not None or connections[using].connection is not None:
                return failure_of_loss(using, broken, failed.error) or failed
            return failed
        except HandlerTimedOut:
            cancel_statement(using)
            drop(using)
            return Failed(event.position, partition.too_long())
        return None
