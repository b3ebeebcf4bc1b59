"""
Adoption: the rows of a live table become logs, each with the events that are known of it.

A row gets one genesis event, or an event for each row of its history, where django-simple-history,
django-pghistory or django-auditlog has kept one. A project declares this in an ``Adoption``.
"""

from __future__ import annotations

from eventlogs.operations.adoption.declarations import Adoption
from eventlogs.operations.adoption.histories import AuditLog, Change, PgHistory, SimpleHistory
from eventlogs.operations.adoption.running import Adopted

__all__ = ["Adopted", "Adoption", "AuditLog", "Change", "PgHistory", "SimpleHistory"]
