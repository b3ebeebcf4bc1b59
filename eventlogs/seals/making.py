"""
Making a seal: the position, the root of the tree over all logs, and the signature.

The position is a settled one of the feed: no transaction that is still open can commit an event at
or below it (see docs/feed.md). Everything else is read as of one moment after that, so all events
up to the position are seen. Memory is constant, and appends continue meanwhile.

The last events of all may be archived. The feed does not have them, so the seal's position is at
least that of the last archived event. That position is settled as well: a log is archived only when
its last event is, and its row is seen in this moment only if that was before.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.db import connections, router
from django.db.models import QuerySet
from django.utils import timezone

from eventlogs.exceptions import FeedUnavailable, SealUnavailable
from eventlogs.feed import scans
from eventlogs.feed.reader import Feed
from eventlogs.feed.sources import feed_source_for
from eventlogs.models import EventLog, LogMove
from eventlogs.seals import keys
from eventlogs.seals.documents import Seal, time_of
from eventlogs.seals.leaves import Counts, Leaf, last_archived, leaves_at
from eventlogs.seals.merkle import Tree
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.retries import in_transaction


def make_seal(
    *,
    using: str | None = None,
    previous: Seal | None = None,
    tell: Callable[[Leaf], None] | None = None,
) -> Seal:
    """
    Return a seal over all events of a database that are settled now, signed by the project's key.

    ``using`` is the database alias, by default the one that logs are written to. ``previous`` is
    the seal before this one, which it will name. ``tell`` gets each leaf. Nothing is stored.

    Raise SealUnavailable if no key is set, if no log has a chain, inside of a transaction, while a
    log is being moved to another database, and if the database has not come to the previous seal's
    position: then an older backup was restored.
    Raise FeedUnavailable as the feed does.
    """
    using = using or router.db_for_write(EventLog)
    keys.secret_key()  # before the work begins
    _check_transaction(using)
    position = _position(using, previous)
    tree, counts, events = Tree(), Counts(), 0
    with scans.a_moment(using):
        time = _now(using)
        _check_leaving(using)
        archived = last_archived(using)
        is_behind, position = archived > position, max(archived, position)
        for leaf in leaves_at(using, position, counts):
            tree.add(leaf.text)
            events += leaf.version
            if tell is not None:
                tell(leaf)
    if is_behind:
        _check_archived(using, archived)
    if not tree.count:
        raise SealUnavailable(
            "no log has a chain, so a seal would say nothing. Set EVENTLOGS['CHAIN'] = True for "
            "new logs; docs/proof.md says how to chain the logs that are there"
        )
    unsigned = Seal(
        position=position,
        root=tree.root().hex(),
        logs=tree.count,
        events=events,
        unchained=counts.unchained,
        erased=counts.erased,
        time=time_of(time),
        previous=None if previous is None else previous.digest,
        key="",
    )
    return keys.signed(unsigned)


def _position(using: str, previous: Seal | None) -> int:
    """
    Return the settled position of a seal, which is never before that of the previous one.

    If the log with the newest events was erased, the last event is before the previous seal. The
    database still knows that it has given out the positions up to there.
    """
    mark = feed_source_for(using).watermark()
    if mark.is_replica:  # it may be behind the previous seal
        raise FeedUnavailable("replica", using=using)
    if mark.is_snapshot:  # the same
        raise FeedUnavailable("isolation", using=using)
    position = Feed(using=using).settled()
    if previous is None or previous.position <= position:
        return position
    settled = feed_source_for(using).watermark().settled
    if settled < previous.position:
        raise SealUnavailable(
            f"the positions end at {settled}, before that of the last seal, {previous.position}: "
            f"an older backup was restored. Find out why, then begin a new file of seals"
        )
    return previous.position


def _now(using: str) -> datetime:
    """
    Return the time of the database, whose clock also gives the times of erasures.

    As the first statement of a moment: what is erased after the moment has a later time.
    """
    # With the marks of logs that were archived or erased.
    rows: QuerySet[Any] = QuerySet(EventLog, using=using).annotate(now=UTCNow())
    found: datetime | None = rows.values_list("now", flat=True).first()
    return found or timezone.now()  # without a log there is no seal


def _check_leaving(using: str) -> None:
    """Raise SealUnavailable if a log is between two databases: it has no leaf in either."""
    leaving = LogMove.objects.using(using).filter(state=LogMove.LEAVING).order_by("pk").first()
    if leaving is not None:
        raise SealUnavailable(
            f"{leaving.log_id} is being moved to the database {leaving.other!r}. Wait until it is "
            f"there, or end the move with --abandon"
        )


def _check_archived(using: str, position: int) -> None:
    """Raise SealUnavailable if an archived event has a position that was not given out yet."""
    settled = feed_source_for(using).watermark().settled
    if settled < position:
        raise SealUnavailable(
            f"the positions end at {settled}, before {position}, that of the last event of an "
            f"archived log: an older backup was restored, or a row of eventlogs_archivedlog was "
            f"changed. Find out why"
        )


def _check_transaction(using: str) -> None:
    """Raise SealUnavailable inside of a transaction, but for that of a TestCase."""
    connection = connections[using]
    if not in_transaction(connection):
        return
    blocks = connection.atomic_blocks
    if len(blocks) > 1 or not all(getattr(each, "_from_testcase", False) for each in blocks):
        raise SealUnavailable(
            "a transaction is open, whose events may be rolled back. Call it outside of one"
        )
