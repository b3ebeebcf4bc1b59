"""Subcommands of ``manage.py eventlogs`` as text, for messages from which people paste them."""

from __future__ import annotations

from django.db import router

from eventlogs.models import Event


def command(text: str, *, using: str) -> str:
    """Return a subcommand for a database, whose alias it names unless logs are written there."""
    where = "" if using == router.db_for_write(Event) else f" --database {using}"
    return f"manage.py eventlogs {text}{where}"
