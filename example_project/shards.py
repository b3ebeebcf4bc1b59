"""
A router that spreads logs over several databases, by their ids.

Name the aliases in ``databases``, and the class in DATABASE_ROUTERS. Never change the order or the
number of aliases while logs are stored: the place of a log follows from both. ``moved`` knows the
logs that ``manage.py eventlogs move`` has moved to another database.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from django.db.models import Model

from eventlogs import LogId
from eventlogs.routing import MovedLogs


class ShardRouter:
    """All of eventlogs, and the read models of payments, are in these databases."""

    databases: Sequence[str] = ["default"]
    moved = MovedLogs()
    apps = ("eventlogs", "payments")

    def db_for_write(
        self, model: type[Model], log_id: LogId | None = None, **hints: Any
    ) -> str | None:
        """Return the database of a log; without a log, the first one, for rows about no log."""
        if model._meta.app_label not in self.apps or "instance" in hints:
            return None  # an instance stays in the database that it was read from
        if log_id is None:
            return self.databases[0]
        number = int.from_bytes(sha256(log_id.uuid.bytes).digest()[:8])
        return self.moved.database_of(log_id, self.databases[number % len(self.databases)])

    db_for_read = db_for_write

    def log_databases(self, log_type: str | None) -> Sequence[str]:
        """Return the databases that logs can be in: this asks eventlogs to expect several."""
        return self.databases

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """Let these databases have the tables, and no others."""
        return db in self.databases if app_label in self.apps else None
