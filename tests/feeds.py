"""Whether the run's database has a feed, for tests that depend on it in a part only."""

from __future__ import annotations

from django.db import connection

from eventlogs import conf


def has_feed() -> bool:
    """Return whether there is a feed: MariaDB has one where positions come from counters."""
    return connection.vendor != "mysql" or conf.DEFAULTS["LAYOUT"] == "buckets"
