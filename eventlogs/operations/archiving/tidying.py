"""
Tidying archives: interrupted attempts are deleted, and files are written anew without gone logs.

A log that was brought back, or erased, is still in the file of its archive. The file is written
anew without it, and the old one is *replaced*: no row names it any more. It is kept for
``EVENTLOGS["ARCHIVE_GRACE"]``, because another history of the database may still name it: a replica
that is promoted without the commit, a backup that is restored, a reader with an old snapshot.

A copy of an erased log's events does not stay. So a replaced file is deleted at once if a log of
its type was erased since it was begun. That is right because no log is archived after it was
erased: the file of an erased log was begun before. (DAY is for clocks that differ, and for an
erasure that was timed when it began.) Which logs a replaced file has, no row says; so others of the
type lose their grace as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from django.db import router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, Max
from django.utils import timezone

from eventlogs import conf
from eventlogs.archives import storage
from eventlogs.archives.reading import exported_pages, in_file
from eventlogs.exceptions import ArchiveUnavailable, LogNotFound
from eventlogs.models import ArchivedLog, ArchiveFile, ErasedLog, EventLog
from eventlogs.operations.archiving import files, manifests, tables
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.restore import ExportedEvent
from eventlogs.stores.retries import run_again

OLD: Final = timedelta(hours=1)  # after which an unfinished file is given up
DAY: Final = timedelta(days=1)


class Tidied(NamedTuple):
    """How many files were deleted, and how many were written anew."""

    deleted: int = 0
    rewritten: int = 0


def tidy(
    *,
    using: str | None = None,
    older_than: timedelta = OLD,
    grace: timedelta | None = None,
    at_once: str | None = None,
) -> Tidied:
    """
    Delete the files that no log is read from, and write those anew that have logs too many.

    A file that was begun longer than ``older_than`` ago and is not complete is given up: a process
    that is still at it notices, and takes nothing out of the tables. A file that was replaced is
    kept for ``grace``, by default that of the settings, unless its log type is ``at_once``, or a
    log of its type was erased. Calling it again is safe.

    Raise ArchiveUnavailable if a file cannot be read, written or deleted, after all others are
    done. Raise RuntimeError inside of a transaction.
    """
    alias = using or router.db_for_write(EventLog)
    rows = ArchiveFile.objects.using(alias)
    begun = rows.filter(state=ArchiveFile.WRITING, created_at__lt=timezone.now() - older_than)

    def give_up_old(_: BaseDatabaseWrapper) -> None:
        # Durable: a file is deleted below, which no rollback brings back.
        with transaction.atomic(using=alias, durable=True):
            begun.update(state=ArchiveFile.REPLACED)

    run_again(alias, give_up_old)
    deleted = rewritten = 0
    first: ArchiveUnavailable | None = None
    for file in _with_too_many(alias):
        try:
            rewritten += _rewrite(alias, file)
        except ArchiveUnavailable as error:
            first = first or error
    until = timezone.now() - (conf.archive_grace() if grace is None else grace)
    for file in _to_delete(alias, until, at_once):
        try:
            storage.delete(file.name)
            storage.delete(file.name + manifests.SUFFIX)
        except ArchiveUnavailable as error:
            first = first or error
            continue
        _forget(alias, file)
        deleted += 1
    if first is not None:
        raise first
    return Tidied(deleted, rewritten)


def purge(using: str, log_type: str) -> None:
    """
    Delete the files that logs of a type were in and are not any more, without their grace.

    Call it after events of such logs were redacted. Raise what ``tidy`` raises.
    """
    replaced = ArchiveFile.objects.using(using).filter(state=ArchiveFile.REPLACED)
    if replaced.filter(log_type=log_type).exists() or any(
        each.log_type == log_type for each in _with_too_many(using)
    ):
        tidy(using=using, at_once=log_type)


def _to_delete(using: str, until: datetime, at_once: str | None) -> Iterator[ArchiveFile]:
    """Yield the files that nothing is read from, without those that another history may need."""
    replaced = list(
        ArchiveFile.objects.using(using).filter(state=ArchiveFile.REPLACED).order_by("pk")
    )
    # After the list: an erasure that commits later deletes what it has to by itself.
    erased: dict[str, datetime] = dict(
        ErasedLog.objects.using(using)
        .filter(log_type__in={each.log_type for each in replaced})
        .values("log_type")
        .annotate(last=Max("erased_at"))
        .values_list("log_type", "last")
    )
    for file in replaced:
        last = erased.get(file.log_type)
        if (
            file.replaced_at is None
            or file.replaced_at < until
            or file.log_type == at_once
            or (last is not None and last >= file.created_at - DAY)
        ):
            yield file


def _with_too_many(using: str) -> list[ArchiveFile]:
    """Return the files that have more logs than are read from them."""
    complete = ArchiveFile.objects.using(using).filter(state=ArchiveFile.COMPLETE)
    counted = complete.annotate(left=Count("archived_logs")).order_by("pk")
    return [each for each in counted if each.left < each.logs]


def _rewrite(using: str, old: ArchiveFile) -> int:
    """Write a file anew with the logs that are left; return 0 if there was nothing to write."""
    rows = list(ArchivedLog.objects.using(using).filter(archive=old).select_related("archive"))
    if not rows:
        complete = ArchiveFile.objects.using(using).filter(pk=old.pk, state=ArchiveFile.COMPLETE)
        empty = complete.exclude(archived_logs__isnull=False)
        run_again(using, lambda _: empty.update(state=ArchiveFile.REPLACED, replaced_at=UTCNow()))
        return 0
    # In the order of the file, in which short logs share a frame.
    rows.sort(key=in_file)
    try:
        made = files.make(using, old.log_type, _logs(using, rows))
        if files.compare(made, _logs(using, rows)):
            raise ArchiveUnavailable(
                made.file.name, reason="it differs from the file it was made of"
            )
    except LogNotFound:
        return 0  # a log was brought back meanwhile; the file that was begun is deleted later
    if tables.move(using, made, old, [each.pk for each in rows]):
        return 1
    give_up(using, made.file)
    return 0


def _forget(using: str, file: ArchiveFile) -> None:
    replaced = ArchiveFile.objects.using(using).filter(pk=file.pk, state=ArchiveFile.REPLACED)
    run_again(using, lambda _: replaced.delete())


def give_up(using: str, file: ArchiveFile) -> None:
    """Let a file that nothing relies on be deleted."""
    begun = ArchiveFile.objects.using(using).filter(pk=file.pk, state=ArchiveFile.WRITING)
    run_again(using, lambda _: begun.update(state=ArchiveFile.REPLACED))


def _logs(using: str, rows: list[ArchivedLog]) -> files.LogsWithEvents:
    for row in rows:
        yield row.log_id, _events(using, row)


def _events(using: str, row: ArchivedLog) -> Iterator[ExportedEvent]:
    for page in exported_pages(row, using=using):
        yield from page
