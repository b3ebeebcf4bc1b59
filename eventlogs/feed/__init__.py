"""The feed: the events of all logs of a database, in the order of their positions."""

from __future__ import annotations

from eventlogs.feed.reader import Feed, FeedPage

__all__ = ["Feed", "FeedPage"]
