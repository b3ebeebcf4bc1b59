"""Stores whose process chains new logs, and broken ones."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.test import override_settings

from eventlogs import LogState
from eventlogs.stores import AppendRequest
from eventlogs.stores.portable import Locked, PortableStore


class ChainingPortableStore(PortableStore):
    """Chains through the ORM."""

    def append(self, request: AppendRequest) -> LogState:
        with override_settings(EVENTLOGS={"CHAIN": True}):
            return super().append(request)


class StaleHead(ChainingPortableStore):
    """Broken: reads the head before it has the lock, as an append that another one overtakes."""

    def _lock(self, connection: Any, logs: QuerySet[Any]) -> Locked | None:
        head = logs.values_list("head", flat=True).first()
        locked = super()._lock(connection, logs)
        return None if locked is None else locked._replace(head=head)
