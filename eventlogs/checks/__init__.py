"""
System checks: mistakes in settings, code and databases, found by ``manage.py check``.

Importing this package registers every check with Django. Each module lists its ids.
"""

from __future__ import annotations

from eventlogs.checks import (
    archives,
    databases,
    events,
    mysql,
    postgresql,
    privacy,
    projections,
    reductions,
    settings,
)

__all__ = [
    "archives",
    "databases",
    "events",
    "mysql",
    "postgresql",
    "privacy",
    "projections",
    "reductions",
    "settings",
]
