"""The feed that a worker reads: that of its database, or of a replica of it."""

from __future__ import annotations

from eventlogs.feed.reader import Feed
from eventlogs.feed.replicas import FeedOnReplica
from eventlogs.projections.base import BaseProjection


def feed_of(projection: type[BaseProjection], using: str) -> Feed:
    """Return the feed that a projection's worker reads for the logs of a database."""
    replica = projection.reads_from.get(using)
    return Feed(using=using) if replica is None else FeedOnReplica(replica, using=using)
