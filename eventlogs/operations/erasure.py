"""
Erasure of a whole log, and of the copies of its events.

``erase`` removes a log and leaves a tombstone; single events are redacted by SQL, see
docs/storage.md. Copies of events are in other places: rows of read models, shadow tables of
rebuilds, texts of errors, caches. ``forget_copies`` reaches all of those that the project itself
keeps.

A log is erased in one transaction, and its copies are removed after it: caches have no rollback.
A process that is killed in between has erased the log and left copies. They are found by the log's
id alone, so the same call removes them later.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

from django.db import transaction

from eventlogs.archives import listing
from eventlogs.caches import backends
from eventlogs.ids import LogId
from eventlogs.models import (
    AppliedVersion,
    ErasedLog,
    Event,
    IdempotencyKey,
    ParkedEvent,
    SkippedEvent,
    SubjectLog,
    UniqueValue,
)
from eventlogs.operations import unique_values
from eventlogs.operations.archiving.tidying import purge, tidy
from eventlogs.projections import actions, rebuild
from eventlogs.projections.base import RowProjection, declared
from eventlogs.routing import write_alias
from eventlogs.stores import erasing

MAX_NAME: Final = 255  # characters of ``by``


class Forgotten(NamedTuple):
    """The copies of a log's events that were rebuilt or removed, and those that were not."""

    rows: tuple[str, ...]  # projections whose row was rebuilt or removed
    entries: int  # of caches that were deleted
    to_rebuild: tuple[str, ...]  # projections whose rows must all be rebuilt, with restart


class Tombstone(NamedTuple):
    """What is known of an erased log. ``digest`` is of all of its events, in hexadecimal."""

    log_id: LogId
    events: int  # their number
    digest: str
    erased_by: str
    reason: str
    erased_at: datetime


class Erasure(NamedTuple):
    """
    A log that was erased, and what was done with its copies.

    ``is_new`` is False if an earlier call has erased it: this one has only removed copies.
    """

    tombstone: Tombstone
    is_new: bool
    copies: Forgotten


class Preview(NamedTuple):
    """What ``erase`` would remove: numbers of rows, and names of projections."""

    events: int
    idempotency_keys: int
    unique_values: int
    subjects: int  # keys of persons whose data the log may hold; the keys stay
    rows: tuple[str, ...]  # projections whose row of the log is removed
    to_rebuild: tuple[str, ...]  # projections with rows that several logs share


def erase(log_id: LogId | str, *, reason: str, by: str, using: str | None = None) -> Erasure:
    """
    Erase a whole log, for good: its events, the rows beside them, and their copies.

    A tombstone stays: the log's id and type, the number and the digest of its events, who has
    erased it, when and why. From then on the log is LogErased, a LogNotFound, and its id cannot be
    used again. Idempotency keys go as well, so a retry of the request that created the log, with
    its key and a new id, would be a new request. The archive of an archived log is written anew
    without it.

    ``reason`` and ``by``, at most 255 characters, are text for people, and stay: put no personal
    data there. ``using`` is the log's database, by default the one that logs are written to.

    Calling it again is safe, and finishes what a process that was killed has left: then the first
    tombstone stays. Call it **again a minute later** in any case, as ``forget_copies`` says.

    Raise ValueError for an empty reason or name, InvalidLogId, LogNotFound for a log that never
    existed, CannotErase if this database role does not own the table of events (PostgreSQL), and
    RuntimeError inside of a transaction: nothing was erased. Raise what ``forget_copies`` raises,
    and ArchiveUnavailable if an archive cannot be written anew: then the log is erased, and copies
    may be left. The same call again removes them.
    """
    log = _log(log_id)
    alias = using or write_alias(log)
    if not reason.strip():
        raise ValueError("reason is empty. Say why the log is erased: it stays in the tombstone.")
    if not by.strip() or len(by) > MAX_NAME:
        raise ValueError(f"by is {by!r}. It must be a name of 1 to {MAX_NAME} characters.")
    is_new = erasing.erase(alias, log, by=by.strip(), reason=reason.strip())
    copies = forget_copies(log, using=alias)
    tidy(using=alias)  # the archive that the log was in, or is in since it was brought back
    found = ErasedLog.objects.using(alias).get(pk=log.uuid)
    return Erasure(_tombstone(found), is_new, copies)


def tombstone(log_id: LogId | str, *, using: str | None = None) -> Tombstone | None:
    """Return what is known of an erased log, or None for any other log. Raise InvalidLogId."""
    log = _log(log_id)
    alias = using or write_alias(log)
    found = ErasedLog.objects.using(alias).filter(pk=log.uuid, log_type=log.log_type).first()
    return None if found is None else _tombstone(found)


def _tombstone(found: ErasedLog) -> Tombstone:
    return Tombstone(
        found.log_id,
        found.count,
        bytes(found.digest).hex(),
        found.erased_by,
        found.reason,
        found.erased_at,
    )


def preview(log_id: LogId | str, *, using: str | None = None) -> Preview:
    """
    Return what ``erase`` would remove, and change nothing.

    Raise InvalidLogId, LogNotFound (LogErased for a log that is erased already), and CannotErase
    if this database role may not erase logs.
    """
    log = _log(log_id)
    alias = using or write_alias(log)
    if not _is_there(log, alias):
        raise erasing.missing(alias, log)
    erasing.check_owner(alias, log)
    own, shared = [], []
    for each in _readers(log, alias):
        if each.has_shared_rows():
            shared.append(each.name)
        elif each.model._base_manager.using(alias).filter(pk=log).exists():
            own.append(each.name)
    return Preview(
        Event.objects.using(alias).for_log(log).count()
        or listing.archived_among(alias, [log]).get(log, 0),
        IdempotencyKey.objects.using(alias).filter(log_id=log.uuid).count(),
        UniqueValue.objects.using(alias).filter(log_id=log.uuid).count(),
        SubjectLog.objects.using(alias).filter(log_id=log).count(),
        tuple(own),
        tuple(shared),
    )


def forget_copies(log_id: LogId | str, *, using: str | None = None) -> Forgotten:
    """
    Rebuild the copies of a log whose events were redacted; remove them if it was erased.

    Unique values that the log's events do not hold any more are released.

    Call it after the transaction that changed the events, and once more a minute later: a
    process may write a copy of an event that it read before the change. ``using`` is the log's
    database, by default the one that logs are written to.

    ``to_rebuild`` names the projections that this function cannot rebuild: rows that several
    logs share, and rebuilds in progress. For each, run
    ``manage.py eventlogs rebuild NAME --restart``. Read models without a declared projection
    are not known here.

    Raise ProjectionFailed if a projection cannot apply a redacted event,
    eventlogs.caches.Unreachable if a cache does not answer, and RuntimeError inside of a
    transaction on MariaDB and MySQL, which dropping a shadow table would commit. If the log was
    brought back from an archive, the files that were replaced are deleted at once: raise
    ArchiveUnavailable if that fails, after all other copies are removed. Calling it again is safe.
    """
    log = _log(log_id)
    alias = using or write_alias(log)
    is_there = _is_there(log, alias)
    entries = backends.forget(log)
    forget_failures(log, alias, is_there=is_there)
    if is_there:
        unique_values.settle(alias, [log])
    else:
        unique_values.forget(alias, log)
    rows: list[str] = []
    to_rebuild: list[str] = []
    for each in _readers(log, alias):
        if not rebuild.discard_unfinished(each, alias) or each.has_shared_rows():
            to_rebuild.append(each.name)
        if each.has_shared_rows():
            continue
        if is_there:
            rebuild.rebuild_log(each, log, using=alias)
        else:
            rebuild.remove_row(each, log, alias)
        rows.append(each.name)
    if is_there:
        purge(alias, log.log_type)
    return Forgotten(tuple(rows), entries, tuple(to_rebuild))


def _log(log_id: LogId | str) -> LogId:
    return log_id if isinstance(log_id, LogId) else LogId.parse(log_id)


def _is_there(log: LogId, using: str) -> bool:
    """Return whether a log is in the tables or in an archive."""
    return listing.version_of(using, log) > 0


def _readers(log: LogId, using: str) -> Iterator[type[RowProjection]]:
    """Yield the projections that may have read the log."""
    for each in declared(RowProjection, using=using):
        log_types = each.log_types_read()
        if log_types is None or log.log_type in log_types:
            yield each


def forget_failures(log: LogId, using: str, *, is_there: bool) -> None:
    """Remove the traces of failed events: the text of an error may contain their data."""
    failures = ParkedEvent.objects.using(using).filter(log_id=log)
    if is_there:
        failures.update(details="")
        return
    with transaction.atomic(using=using):
        failures.delete()
        SkippedEvent.objects.using(using).filter(log_id=log).delete()
        AppliedVersion.objects.using(using).filter(log_id=log).delete()
        actions.forget(log, using)
