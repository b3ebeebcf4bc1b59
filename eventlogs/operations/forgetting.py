"""
Forgetting a person: destroy their key, then remove what was made of their data.

The steps, in this order; each is safe to repeat, and a call that was killed is finished by the
next one:

1. The key is destroyed. From then on nothing can decrypt the person's data, and no cached state
   that was made of them is used, in any process (``eventlogs.reductions.key_proofs``). It cannot be
   undone.
2. In each database, for each log that may hold data of the key (``SubjectLog``), a page at a
   time: delete cached entries and snapshots, release unique values, clear the texts of errors,
   make the rows of read models anew.
3. The receipt of that page is written, if all of its rows could be made (``receipts.py``).

An append that has begun before step 1 may still fold the person's data into a row of an inline
projection, and commit after step 2. So forgetting waits some seconds for the transactions that
had appended and are still open; it says how many are left, and a second call finds their logs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from django.db import connections, router, transaction

from eventlogs.archives import listing
from eventlogs.caches import backends
from eventlogs.events.personal import RESERVED
from eventlogs.exceptions import (
    EventLogError,
    FeedUnavailable,
    KeyUnavailable,
    LogNotFound,
    SubjectUnknown,
)
from eventlogs.feed.sources import FeedSource, feed_source_for
from eventlogs.ids import LogId
from eventlogs.models import EventLog, SubjectLog
from eventlogs.operations import erasure, receipts, unique_values
from eventlogs.privacy.keys import key_store
from eventlogs.projections import rebuild
from eventlogs.projections.base import RowProjection, declared

LOGS: Final = 200  # of a page, and of a receipt
KEYS: Final = 500  # that are looked at at once
MAX_FAILURES: Final = 100  # that are named; more are counted
LONGEST_WAIT: Final = (
    5.0  # seconds, for transactions that had appended before the key was destroyed
)
# By the vendor. PostgreSQL's is on at each standby as well.
READ_ONLY: Final = {
    "postgresql": "SHOW transaction_read_only",
    "mysql": "SELECT @@global.read_only",
    "sqlite": "PRAGMA query_only",
}
NAP: Final = 0.02  # seconds between two looks at them


class NotRemade(NamedTuple):
    """A row of a read model that could not be made anew, and the class of the error."""

    projection: str
    log_id: LogId
    error: str


@dataclass
class ForgottenSubject:
    """
    What ``forget`` has done, or with ``dry_run`` would do.

    ``rows`` counts the rows that were made anew (or removed), by projection; ``entries`` are those
    of caches that were deleted. ``to_rebuild`` names projections whose rows several logs share, or
    that are being rebuilt: run ``manage.py eventlogs rebuild NAME --restart`` for each.
    ``not_remade`` are rows that could not be made, at most 100 of ``failed``. ``open_appends`` is
    the number of transactions that had appended before the key was destroyed and have not ended.
    """

    key_ids: list[UUID] = field(default_factory=list)
    logs: int = 0
    entries: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    to_rebuild: list[str] = field(default_factory=list)
    not_remade: list[NotRemade] = field(default_factory=list)
    failed: int = 0
    open_appends: int = 0
    receipts: list[LogId] = field(default_factory=list)  # the logs of the receipts
    new_receipts: int = 0  # that this call has written

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.failed or self.to_rebuild or self.open_appends)


def forget(
    subject: str, *, by: str | None = None, using: str | None = None, dry_run: bool = False
) -> ForgottenSubject:
    """
    Destroy the key of a subject, for good, and remove what was made of their data.

    ``subject`` is the text that ``Personal`` makes of the field's value, e.g. ``"member:42"``;
    ``by`` is a name for the receipt. ``using`` is a database alias; by default the copies in all
    databases with the tables are removed, except those that take no changes, such as replicas.
    The key is destroyed in any case. With ``dry_run`` nothing is changed.

    Afterwards events decode with the stand-ins of their fields. Call it again to finish what a
    killed call has begun, and once more a minute after the first: an append that had begun before
    may have committed since. A call that finds nothing new writes no receipt. A row that cannot
    be made anew is in ``not_remade``; its log gets its receipt with the call that makes it.

    Raise SubjectUnknown where the subject never had a key, RuntimeError inside of a transaction
    (its rollback would bring the key back), eventlogs.Unreachable if a cache does not answer,
    ArchiveUnavailable if an archive with logs of theirs cannot be read, and the database's errors.
    After an error of the last three the key is destroyed, and the copies in all other databases are
    removed; call it again.
    """
    aliases = databases(using)
    store = key_store()
    # The key of the digests of unique values is no person's: other values would be lost with it.
    key_id = None if subject.startswith(RESERVED) else store.find(subject)
    if key_id is None:
        raise SubjectUnknown()
    done = ForgottenSubject([key_id])
    if not dry_run:
        _refuse_transactions(aliases if store.using is None else {*aliases, store.using})
        store.destroy(subject)
    _forget_copies(done, key_id, aliases, by=by or "", dry_run=dry_run)
    return done


def forget_again(
    *, by: str | None = None, using: str | None = None, dry_run: bool = False
) -> ForgottenSubject:
    """
    Remove what was made of the data of all destroyed keys again, e.g. in a restored backup.

    The keys are those that logs refer to and that are destroyed. Raise what ``forget`` raises,
    SubjectUnknown excepted; and KeyUnavailable, after all of them, where the key store does not
    know a key that a log refers to, or the settings do not have what has wrapped it.
    """
    aliases = databases(using)
    done = ForgottenSubject()
    if not dry_run:
        _refuse_transactions(aliases)
    for key_id in destroyed_keys(aliases):
        done.key_ids.append(key_id)
        _forget_copies(done, key_id, aliases, by=by or "", dry_run=dry_run)
    return done


def databases(using: str | None = None) -> list[str]:
    """
    Return the aliases of the databases that have the tables and take changes, or the one given.

    The first is the one that logs are written to. Of two aliases of one database both are returned:
    the second finds nothing left to do.
    """
    if using is not None:
        return [using]
    table = SubjectLog._meta.db_table
    first = router.db_for_write(EventLog)
    return [
        alias
        for alias in sorted(connections, key=lambda alias: alias != first)
        if router.allow_migrate_model(alias, SubjectLog)
        and not connections[alias].settings_dict["TEST"]["MIRROR"]
        and table in connections[alias].introspection.table_names()
        and not _is_read_only(alias)
    ]


def _is_read_only(alias: str) -> bool:
    """Return whether a database takes no changes, as a replica does not."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        name = str(connection.settings_dict["NAME"])
        if "mode=ro" in name or "immutable=1" in name:
            return True
    with connection.cursor() as cursor:
        cursor.execute(READ_ONLY[connection.vendor])
        [value] = cursor.fetchone()
    return value in (1, "on")


def destroyed_keys(aliases: Sequence[str]) -> Iterator[UUID]:
    """
    Yield the keys that logs in these databases refer to, and that are destroyed.

    Raise KeyUnavailable after the last of them, where the store does not know one of the others.
    """
    seen: set[UUID] = set()
    unknown: KeyUnavailable | None = None
    for alias in aliases:
        rows = SubjectLog.objects.using(alias).order_by("key_id").values_list("key_id", flat=True)
        found = rows.distinct()
        while some := list(found[:KEYS]):
            try:
                there = set(key_store().secrets(some))
            except KeyUnavailable:
                there = set()
                for each in some:
                    try:
                        there.update(key_store().secrets([each]))
                    except KeyUnavailable as error:
                        there.add(each)
                        unknown = error
            gone = [each for each in some if each not in there and each not in seen]
            seen.update(gone)
            yield from gone
            found = rows.filter(key_id__gt=some[-1]).distinct()
    if unknown is not None:  # after all others
        raise unknown


def pages_of(key_id: UUID, using: str) -> Iterator[list[LogId]]:
    """Yield the logs that may hold data of a key, a page at a time."""
    rows = SubjectLog.objects.using(using).filter(key_id=key_id).order_by("id")
    last = 0
    while page := list(rows.filter(id__gt=last).values_list("id", "log_id")[:LOGS]):
        yield [log_id for _, log_id in page]
        last, _ = page[-1]


def _refuse_transactions(aliases: Iterable[str]) -> None:
    for alias in aliases:
        with transaction.atomic(using=alias, durable=True):
            pass


def _forget_copies(
    done: ForgottenSubject, key_id: UUID, aliases: Sequence[str], *, by: str, dry_run: bool
) -> None:
    """Remove the copies in all databases; raise the first error after the last of them."""
    first: Exception | None = None
    for alias in aliases:
        try:
            _forget_in(done, key_id, alias, by=by, dry_run=dry_run, is_first=alias == aliases[0])
        except Exception as error:
            first = first or error
    if first is not None:
        raise first


def _forget_in(
    done: ForgottenSubject, key_id: UUID, using: str, *, by: str, dry_run: bool, is_first: bool
) -> None:
    if not dry_run:
        done.open_appends += _wait_for_open_appends(using)
    read_models = _ReadModels(done, using, dry_run=dry_run)
    is_empty = True
    for page in pages_of(key_id, using):
        is_empty = False
        done.logs += len(page)
        if dry_run:
            done.entries += backends.count(page)
            read_models.look(page)
            continue
        failed = done.failed
        _forget_page(done, page, using, read_models)
        if done.failed == failed:
            _write_receipt(done, key_id, page, using, by=by, read_models=read_models)
    # The receipt of a key that no log refers to: it says that there was nothing to remove.
    if is_empty and is_first and not dry_run:
        _write_receipt(done, key_id, (), using, by=by, read_models=read_models)


def _forget_page(
    done: ForgottenSubject, page: Sequence[LogId], using: str, read_models: _ReadModels
) -> None:
    done.entries += backends.forget_many(page)
    there = set(
        EventLog.objects.using(using)
        .filter(pk__in=[each.uuid for each in page])
        .values_list("pk", flat=True)
    )
    there.update(each.uuid for each in listing.archived_among(using, page))
    for log_id in page:
        erasure.forget_failures(log_id, using, is_there=log_id.uuid in there)
    # An error without the keys: a receipt must not say that a value was released which was not.
    held = [each for each in page if each.uuid in there]
    unique_values.settle_all(using, held, needs_keys=True)
    for log_id in page:
        read_models.remake(log_id)


def _write_receipt(
    done: ForgottenSubject,
    key_id: UUID,
    page: Sequence[LogId],
    using: str,
    *,
    by: str,
    read_models: _ReadModels,
) -> None:
    done.new_receipts += receipts.write(
        key_id,
        page,
        by=by,
        projections=read_models.names,
        to_rebuild=done.to_rebuild,
        using=using,
    )
    log_id = receipts.log_of(key_id)
    if log_id not in done.receipts:
        done.receipts.append(log_id)


class _ReadModels:
    """The read models of a database whose rows are made of the logs of a subject."""

    def __init__(self, done: ForgottenSubject, using: str, *, dry_run: bool) -> None:
        self._done, self._using, self._dry_run = done, using, dry_run
        self._declared = declared(RowProjection, using=using)
        self._by_log_type: dict[str, list[type[RowProjection]]] = {}
        self._prepared: set[str] = set()
        self.names: list[str] = []  # of those whose rows are made anew

    def look(self, page: Sequence[LogId]) -> None:
        """Count the rows that would be made anew."""
        for log_id in page:
            for each in self._of(log_id.log_type):
                self._done.rows[each.name] += 1

    def remake(self, log_id: LogId) -> None:
        """Make the rows of a log anew; note those that cannot be made."""
        done = self._done
        for each in self._of(log_id.log_type):
            try:
                rebuild.rebuild_log(each, log_id, using=self._using)
            except LogNotFound:  # it was erased, and had no row
                continue
            except EventLogError as error:
                done.failed += 1
                if len(done.not_remade) < MAX_FAILURES:
                    done.not_remade.append(NotRemade(each.name, log_id, type(error).__name__))
            else:
                done.rows[each.name] += 1

    def _of(self, log_type: str) -> list[type[RowProjection]]:
        found = self._by_log_type.get(log_type)
        if found is None:
            found = self._by_log_type[log_type] = [
                each
                for each in self._declared
                if (types := each.log_types_read()) is None or log_type in types
                if self._prepare(each)
            ]
        return found

    def _prepare(self, each: type[RowProjection]) -> bool:
        """Drop the rows of an unfinished rebuild; return whether rows can be made one by one."""
        done, is_shared = self._done, each.has_shared_rows()
        if each.name not in self._prepared:
            self._prepared.add(each.name)
            is_busy = not self._dry_run and not rebuild.discard_unfinished(each, self._using)
            if (is_busy or is_shared) and each.name not in done.to_rebuild:
                done.to_rebuild.append(each.name)
            if not is_shared:
                self.names.append(each.name)
        return not is_shared


def _wait_for_open_appends(using: str) -> int:
    """
    Wait for the transactions that have appended and are open; return how many are left.

    An append folds into inline rows after its events have their positions, and those hold the feed
    back until it ends. So each append that can have read the key before it was destroyed is
    among them now; a later one cannot read it. SQLite has one writer at a time. Of a database
    without a feed nothing is known: 0.
    """
    try:
        source = feed_source_for(using)
        until = time.monotonic() + LONGEST_WAIT
        left = _open_appends(source)
        while left and time.monotonic() < until:
            time.sleep(NAP)
            left &= _open_appends(source)
    except FeedUnavailable:
        return 0
    return len(left)


def _open_appends(source: FeedSource) -> set[Hashable]:
    """Return what tells the open transactions that have appended from those that come later."""
    return {
        each.transaction or (each.pid, each.prepared_as, each.position)
        for each in source.holding_back()
    }
