"""Deliberately broken versions that need Celery; see broken.py."""

from __future__ import annotations

from eventlogs.tasks import CeleryRefresher
from tests.reliability import broken


class SendsEachTime(broken.SendsEachTime, CeleryRefresher):
    """Sends a message for each append."""
