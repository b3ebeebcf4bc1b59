"""Archiving by the rules: choose logs, write them to files, compare, take them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from django.db import router

from eventlogs.archives import storage
from eventlogs.archives.rules import Retention, rules
from eventlogs.caches import backends
from eventlogs.exceptions import ArchiveUnavailable
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.operations.archiving import files, tables
from eventlogs.operations.archiving.choosing import (
    Limit,
    Unreadable,
    closed_logs,
    forget_returned,
    limit_of,
    without_inline_rows,
)
from eventlogs.operations.archiving.tidying import give_up, tidy
from eventlogs.stores import erasing

LOGS: Final = 1_000  # of one file
EVENTS: Final = 50_000  # of one file, unless one log has more
MAX_NAME: Final = 255  # characters of ``by``


@dataclass
class Archiving:
    """
    What ``archive`` has done so far.

    ``waiting`` is how many closed logs stay in the tables because a projection, or the feed, has
    not come to their end; ``limit`` is why the first of them stays, or None without any.
    ``unreadable`` are logs that cannot be folded. ``untidy`` is the error of an older archive that
    could not be written anew, or deleted; it keeps no log from being archived.
    """

    logs: int = 0
    events: int = 0
    files: list[str] = field(default_factory=list)
    size: int = 0  # bytes of the files
    waiting: int = 0
    limit: Limit | None = None
    unreadable: list[Unreadable] = field(default_factory=list)
    untidy: ArchiveUnavailable | None = None


class Waiting(NamedTuple):
    """What ``archive`` would take out of the tables by one rule."""

    log_type: str
    logs: int
    events: int


def _nobody(_: Archiving) -> None:
    return None


def archive(
    *,
    by: str,
    using: str | None = None,
    retention: Sequence[Retention] | None = None,
    limit: int | None = None,
    tell: Callable[[Archiving], None] = _nobody,
) -> Archiving:
    """
    Move the closed logs that the rules name from the tables to archives.

    ``by``, at most 255 characters, is the name of who does it, for people. ``using`` is the
    database, by default the one that logs are written to. ``retention`` are rules, by default those
    of ``EVENTLOGS["RETENTION"]``. ``limit`` is a number of logs after which no file is begun.
    ``tell`` is called after each file. In PostgreSQL the database role must own the table of
    events.

    Files are written one after the other, each with at most 1,000 logs or 50,000 events, or with
    one longer log. A log that somebody appends to meanwhile stays. A process that is killed leaves
    at most one file that nobody uses, and loses nothing.

    Raise ValueError for a name or a limit out of range, RegistrationError for a rule that is none,
    CannotErase if this database role does not own the table, ArchiveUnavailable if a new file
    cannot be written and read back, and RuntimeError inside of a transaction. The files before are
    complete, and their logs are taken out; nothing else was.
    """
    alias = using or router.db_for_write(EventLog)
    if not by.strip() or len(by) > MAX_NAME:
        raise ValueError(f"by is {by!r}. It must be a name of 1 to {MAX_NAME} characters.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}. It must be a number of logs, from 1.")
    chosen = rules() if retention is None else retention
    storage.archive_storage()
    erasing.check_owner(alias)
    done = Archiving()
    _tidy(alias, done)
    forget_returned(alias)
    for rule in chosen:
        read = limit_of(alias, rule.log_type)
        for batch in _batches(closed_logs(rule, alias, unreadable=done.unreadable), limit, done):
            _archive(alias, rule.log_type, batch, read, by.strip(), done)
            tell(done)
    return done


def waiting(
    *, using: str | None = None, retention: Sequence[Retention] | None = None
) -> Iterator[Waiting]:
    """
    Yield what the rules name now, without changing anything.

    Logs whose end a projection has not come to are counted as well. Raise RegistrationError for a
    rule that is none.
    """
    alias = using or router.db_for_write(EventLog)
    for rule in rules() if retention is None else retention:
        logs = events = 0
        for each in closed_logs(rule, alias, unreadable=[]):
            logs += 1
            events += each.version
        yield Waiting(rule.log_type, logs, events)


def _batches(logs: Iterator[LogRow], limit: int | None, done: Archiving) -> Iterator[list[LogRow]]:
    batch: list[LogRow] = []
    events = 0
    for each in logs:
        if batch and (len(batch) >= LOGS or events + each.version > EVENTS):
            yield batch
            batch, events = [], 0
        if limit is not None and done.logs + len(batch) >= limit:
            break
        batch.append(each)
        events += each.version
    if batch:
        yield batch


def _archive(
    using: str, log_type: str, logs: list[LogRow], read: Limit, by: str, done: Archiving
) -> None:
    behind, limit = without_inline_rows(using, logs)
    if limit is not None:
        done.waiting += len(behind)
        done.limit = done.limit or limit
        logs = [each for each in logs if each.log_id not in behind]
    while logs:
        made = files.make(using, log_type, files.from_tables(using, logs))
        changed = files.compare(made, files.from_tables(using, logs))
        late = {log for log, written in made.logs.items() if written.last_position > read.position}
        if late - changed:
            done.waiting += len(late - changed)
            done.limit = done.limit or read
        changed |= late
        if not changed:
            changed = tables.take_out(using, made, logs, by=by)
        if not changed:
            done.logs += len(logs)
            done.events += made.file.events
            done.size += made.file.size
            done.files.append(made.file.name)
            forget_cached(each.log_id for each in logs)
            return
        give_up(using, made.file)
        _tidy(using, done)
        logs = [each for each in logs if each.log_id.uuid not in changed]


def _tidy(using: str, done: Archiving) -> None:
    """Tidy; an archive that is lost must not end the archiving of others."""
    try:
        tidy(using=using)
    except ArchiveUnavailable as error:
        done.untidy = error


def forget_cached(log_ids: Iterator[LogId]) -> None:
    """Delete the cached reductions of logs: nobody reads them any more."""
    backends.forget_many(log_ids)
