"""
Receipts of forgotten people: the log of each destroyed key says who forgot it, when, and where.

A receipt is an ordinary event, so that projections and reactors can follow it: the feed has it,
exports have it, nobody can change it. It names the key, and never the person. Each database
has the receipts of its own logs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from eventlogs.aggregates import ANY, Aggregate
from eventlogs.context import Layer, entered
from eventlogs.events.registry import event
from eventlogs.exceptions import IdempotencyKeyReused, IdempotentReplay, LogAlreadyExists
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.stores import store_for
from eventlogs.values import EventRecord

LOG_TYPE: Final = "eventlogs_forgetting"


@event("eventlogs_forgetting.forgotten")
@dataclass(frozen=True, slots=True)
class Forgotten:
    """
    Copies of a person's data were removed after their key was destroyed.

    ``by`` is who asked for it, ``logs`` are the logs that held data of the key. The rows of
    ``projections`` were made anew; those of ``to_rebuild`` must be rebuilt, since several logs
    share them. A person with many logs has several of these events.
    """

    key_ids: tuple[str, ...]
    by: str = ""
    logs: tuple[str, ...] = ()
    projections: tuple[str, ...] = ()
    to_rebuild: tuple[str, ...] = ()


@dataclass
class Forgetting(Aggregate, log_type=LOG_TYPE, events=[Forgotten]):
    """The receipts of one key."""

    by: str = ""
    log_count: int = 0
    receipts: int = 0

    def apply(self, record: EventRecord) -> None:
        """Count a receipt."""
        self.by = self.by or record.event.by
        self.log_count += len(record.event.logs)
        self.receipts += 1


def log_of(key_id: UUID) -> LogId:
    """Return the log of the receipts of a key."""
    return LogId.from_uuid(LOG_TYPE, key_id)


def write(
    key_id: UUID,
    logs: Sequence[LogId],
    *,
    by: str,
    projections: Sequence[str],
    to_rebuild: Sequence[str],
    using: str,
) -> bool:
    """
    Write the receipt of a key and some logs, unless there is one; return whether it was written.

    The idempotency key is made of the logs: so the receipt of the same logs is written once,
    whoever calls again, and two processes that forget one person write one. It has no metadata.
    """
    log_id = log_of(key_id)
    digest = hashlib.sha256("\n".join(logs).encode()).hexdigest()[:32]
    idempotency_key = f"{key_id}:{digest}"
    if store_for(using).claim(LOG_TYPE, idempotency_key) is not None:
        return False
    receipt = Forgotten(
        (str(key_id),), by, tuple(map(str, logs)), tuple(projections), tuple(to_rebuild)
    )
    manager = LogManager(Forgetting, using=using)
    try:
        # Without the context of the caller's request: it may name the person, or have personal
        # data of theirs, which cannot be encrypted any more.
        with entered(Layer({})):
            try:
                manager.create(receipt, log_id=log_id, idempotency_key=idempotency_key)
            except LogAlreadyExists:
                manager.append(
                    log_id, receipt, expected_version=ANY, idempotency_key=idempotency_key
                )
    except (IdempotentReplay, IdempotencyKeyReused):  # another process was faster
        return False
    return True
