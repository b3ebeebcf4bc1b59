"""Stores of PostgreSQL in processes that chain new logs."""

from __future__ import annotations

from django.test import override_settings

from eventlogs import LogState
from eventlogs.stores import AppendRequest
from eventlogs.stores.postgresql import PostgreSQLStore
from tests.stores.grouped import GroupStore


class ChainingStore(PostgreSQLStore):
    """Chains in the statement of the append."""

    def append(self, request: AppendRequest) -> LogState:
        with override_settings(EVENTLOGS={"CHAIN": True}):
            return super().append(request)


class ChainingGroupStore(GroupStore):
    """Chains in the statement of several appends."""

    def append(self, request: AppendRequest) -> LogState:
        with override_settings(EVENTLOGS={"CHAIN": True}):
            return super().append(request)
