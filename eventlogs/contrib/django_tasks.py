"""
The task of TasksRefresher, for django.tasks (Django 6.0 or newer).

Its backend and its queue are the project's: ``TASKS`` in the settings.
"""

from __future__ import annotations

from django.tasks import task  # type: ignore[import-not-found, unused-ignore]

from eventlogs.refreshers import refresh_by_names


@task
def refresh_reduction(aggregate: str, log_id: str, using: str, cache: str | None = None) -> None:
    """Bring one cached reduction up to date. Safe to run twice, late or never."""
    refresh_by_names(aggregate, log_id, using, cache)
