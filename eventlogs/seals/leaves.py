"""
The leaves of a seal: a line of text for each chained log, in the order of the logs' UUIDs.

A leaf is ``<log id> <version> <head>``: the number of the log's events up to the seal's position,
and the digest of the last of them in hexadecimal. A log that was erased has a leaf like any other,
of its number of events and its digest at the end: so its leaf stays the same where it was erased
after a seal, if no event came in between.

A log that is archived has the leaf that it had in the tables: its row in ArchivedLog has the number
of its events and the digest of the last one. Nothing is read from its file. Only logs whose last
event is settled are archived, and an archived log gets no more events. So its leaf is the same as
of every position from its last event on, and ``make_seal`` takes no lower position.

A log that was moved to another database has the leaf of an erased one.

The leaves of a seal can be written to a file beside it. With the file, an attestation names each
log that differs, and a proof of a log can be made after logs were erased. The file needs no
signature: its root is in the seal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db.models import Exists, Max, Min, OuterRef, Q

from eventlogs.events.chain import DIGEST_SIZE
from eventlogs.exceptions import InvalidLogId, InvalidSeal
from eventlogs.feed import scans
from eventlogs.ids import LogId
from eventlogs.models import ArchivedLog, ErasedLog, EventLog, LogMove

PAGE: Final = 2_000  # rows read at once
PAIRS: Final = 200  # (log, index) pairs looked up by one statement
LINE: Final = re.compile(
    rb"(?P<log>[a-z_0-9]{28,90}) (?P<version>[1-9][0-9]{0,9}) (?P<head>[0-9a-f]{64})\n?\Z"
)


class Leaf(NamedTuple):
    """A log as of a position: the number of its events, and the digest of the last one."""

    log_id: LogId
    version: int
    head: bytes

    @property
    def text(self) -> bytes:
        """The bytes of which the tree's leaf is made."""
        return f"{self.log_id} {self.version} {self.head.hex()}".encode()

    @property
    def order(self) -> bytes:
        """By what leaves are sorted."""
        return self.log_id.uuid.bytes


class Counts:
    """What was counted while leaves were read."""

    def __init__(self) -> None:
        self.unchained = 0  # logs without a chain
        self.erased = 0  # leaves of logs that were erased


def leaves_at(using: str, position: int, counts: Counts) -> Iterator[Leaf]:
    """
    Yield the leaves of all chained logs as of a settled position.

    Call it where all statements read one moment (``scans.a_moment``). It reads heads, and of the
    logs with events after the position the digest of the last event before. The position must not
    be below that of the last event of an archived log: see ``last_archived``.
    """
    live = ((leaf, False) for leaf in _live(using, position, counts))
    archived = ((leaf, False) for leaf in _archived(using, counts))
    erased = ((leaf, True) for leaf in erased_leaves(using))
    last = None
    for leaf, is_erased in merge(live, archived, erased, key=_order):
        if leaf.order == last:
            continue  # a log that has come back: the first is the live one
        last = leaf.order
        counts.erased += is_erased
        yield leaf


def _order(leaf_and_kind: tuple[Leaf, bool]) -> bytes:
    leaf, _ = leaf_and_kind
    return leaf.order


def _live(using: str, position: int, counts: Counts) -> Iterator[Leaf]:
    # Events after the position come from appends that run now, so they are few, unless an open
    # transaction holds the feed back.
    later: dict[UUID, int] = dict(
        scans.events_of(using)
        .filter(position__gt=position)
        .values("log_id")
        .annotate(first=Min("index"))
        .values_list("log_id", "first")
    )
    logs = EventLog.objects.using(using).values_list(
        "pk", "log_type", "version", "head", named=True
    )
    for page in pages_by_key(logs):
        ends = {each.pk: later[each.pk] for each in page if each.pk in later}
        heads = dict(_digests(using, {log: end - 1 for log, end in ends.items() if end}))
        for each in page:
            version = ends.get(each.pk, each.version)
            if not version:
                continue
            if each.head is None:
                counts.unchained += 1
                continue
            head = heads[each.pk] if each.pk in ends else each.head
            yield Leaf(LogId.stored(each.log_type, each.pk), version, bytes(head or b""))


def _archived(using: str, counts: Counts) -> Iterator[Leaf]:
    for page in pages_by_key(ArchivedLog.objects.using(using).defer("frames")):
        for each in page:
            if each.head is None:
                counts.unchained += 1
            else:
                yield Leaf(each.log_id, each.version, bytes(each.digest))


def last_archived(using: str) -> int:
    """Return the highest position of an event of an archived log, or 0. It reads all their rows."""
    found = ArchivedLog.objects.using(using).aggregate(last=Max("last_position"))
    return found["last"] or 0


def _digests(using: str, places: dict[UUID, int]) -> Iterator[tuple[UUID, Any]]:
    """Yield logs and the digest of one event of each."""
    pairs = list(places.items())
    for start in range(0, len(pairs), PAIRS):
        wanted = Q()
        for log, index in pairs[start : start + PAIRS]:
            wanted |= Q(log_id=log, index=index)
        yield from scans.events_of(using).filter(wanted).values_list("log_id", "digest")


def erased_leaves(using: str) -> Iterator[Leaf]:
    """Yield the leaves of the logs that were erased with their chain."""
    for each in erased_logs(using):
        digest = bytes(each.digest)
        if len(digest) == DIGEST_SIZE:
            yield Leaf(each.log_id, each.count, digest)


def erased_logs(using: str) -> Iterator[ErasedLog]:
    """Yield the logs that were erased or moved away, in the order of their UUIDs."""
    stones = (each for page in pages_by_key(ErasedLog.objects.using(using)) for each in page)
    last = None
    for each in merge(stones, moved_logs(using), key=lambda row: row.pk.bytes):
        if each.pk != last:  # a log that was moved, and then erased, is erased
            yield each
        last = each.pk


def moved_logs(using: str) -> Iterator[ErasedLog]:
    """
    Yield the logs that have left for another database, in the order of their UUIDs.

    What is left of them here is what is left of a log that was erased: the number of its events,
    and their digest. So they are given as one.
    """
    moves = LogMove.objects.using(using)
    later = moves.filter(uuid=OuterRef("uuid"), pk__gt=OuterRef("pk"))
    left = moves.filter(~Exists(later), state=LogMove.LEFT).order_by("uuid")
    page = list(left[:PAGE])
    while page:
        for each in page:
            yield ErasedLog(
                id=each.uuid,
                log_type=each.log_type,
                count=each.version,
                digest=bytes(each.digest or b""),
                erased_by=each.moved_by,
                reason=f"moved to {each.other}",
                erased_at=each.ended_at or each.begun_at,
            )
        page = list(left.filter(uuid__gt=page[-1].uuid)[:PAGE]) if len(page) == PAGE else []


def pages_by_key(rows: Any) -> Iterator[list[Any]]:
    """Yield pages of the rows of a table whose key is a log's UUID, in that order."""
    rows = rows.order_by("pk")
    page = list(rows[:PAGE])
    while page:
        yield page
        page = list(rows.filter(pk__gt=page[-1].pk)[:PAGE]) if len(page) == PAGE else []


def leaves_in(lines: Iterable[bytes]) -> Iterator[Leaf]:
    """Yield the leaves of a file; raise InvalidSeal for a line that is none."""
    last = b""
    for number, line in enumerate(lines, start=1):
        found = LINE.match(line)
        try:
            log_id = LogId.parse(found["log"].decode()) if found else None
        except InvalidLogId:
            log_id = None
        if found is None or log_id is None:
            raise InvalidSeal(number, "it is not a leaf: a log id, a version and a digest")
        leaf = Leaf(log_id, int(found["version"]), bytes.fromhex(found["head"].decode()))
        if leaf.order <= last:
            raise InvalidSeal(number, "its log does not come after that of the line before")
        last = leaf.order
        yield leaf
