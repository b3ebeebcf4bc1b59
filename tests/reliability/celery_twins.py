"""Deliberately broken versions that need Celery; see twins.py."""

from __future__ import annotations

from eventlogs.tasks import CeleryRefresher
from tests.reliability import twins


class SendsEachTime(twins.SendsEachTime, CeleryRefresher):
    """It sends a message for each append."""
