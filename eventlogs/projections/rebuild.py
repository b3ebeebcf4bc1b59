"""
Rebuilding: new rows are made of all events, while the old ones serve.

The new rows are made in a shadow table, batch by batch, each with its checkpoint, as a worker
does it: so a rebuild that is killed is resumed where it was. When it has caught up, one short
transaction locks the projection's checkpoints (a worker waits between two batches), applies what
has settled meanwhile, lets the tables change places, and makes the rebuild's checkpoints those of
the projection. A worker that held a lease finds its checkpoint gone, and takes a new one.

An inline projection is rebuilt in place, at most 200 logs at a time, under the locks that their
appends take (see ``inline_bulk.py``): readers see each row as it was, or the new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Final, NamedTuple

from django.db import (
    Error,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Exists, F, Max, OuterRef, QuerySet
from django.utils import timezone

from eventlogs.archives import listing
from eventlogs.exceptions import LogNotFound, ProjectionFailed, ProjectionUnavailable
from eventlogs.feed import scans
from eventlogs.feed.reader import Feed
from eventlogs.feed.replicas import FeedOnReplica
from eventlogs.feed.scans import LogRow
from eventlogs.feed.sources import beginning
from eventlogs.ids import LogId
from eventlogs.models import (
    AppliedVersion,
    Checkpoint,
    ParkedEvent,
    ProjectionAction,
    ProjectionState,
)
from eventlogs.projections import (
    actions,
    checkpoints,
    inline,
    inline_bulk,
    leases,
    shadow_tables,
    verify,
)
from eventlogs.projections.base import Failed, RowProjection
from eventlogs.projections.batches import Advancer
from eventlogs.projections.held_logs import HeldLogs
from eventlogs.projections.leases import GRACE, Lease, LeaseLost
from eventlogs.projections.releases import reading_of_rows
from eventlogs.projections.replays import NONE, Replayer, skipped_of
from eventlogs.stores.erasing import missing
from eventlogs.stores.retries import run_again

SWAPS: Final = 30  # attempts to get the lock for the swap
PAUSE: Final = 0.2  # seconds between two of them
INSUFFICIENT_PRIVILEGE: Final = "42501"  # PostgreSQL's code
RESUMED: Final = "Resumed; the time is that of the last run."
# Of an inline projection, in one step: a worker has other work, and appends wait.
LOGS_AT_ONCE: Final = 200
EVENTS_AT_ONCE: Final = 2_000
ARCHIVED_AT_ONCE: Final = 100  # rows of archived logs that are stored together


class Progress(NamedTuple):
    """
    How far a rebuild is: positions (or logs, of an inline projection) of how many.

    A call that resumes a rebuild begins at ``first``, after ``before`` events: its speed is that
    of what came on top.
    """

    applied: int  # events, in this call
    done: int
    total: int
    unit: str  # "positions" or "logs"
    first: int = 0  # done before this call
    before: int = 0  # events that were applied before this call


Tell = Callable[[Progress], None]
Steps = Generator[Progress, None, int]


def ignore(_: Progress) -> None:
    """Ignore the progress."""


def finish(steps: Steps, tell: Tell) -> int:
    """Run all steps of a rebuild, and return how many events were applied."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return int(end.value)
        tell(progress)


def rebuild_steps(
    cls: type[RowProjection],
    *,
    restart: bool = False,
    park: bool = False,
    downgrade: bool = False,
    without_archived: bool = False,
    replica: str | None = None,
    by: str = "",
    using: str | None = None,
) -> Steps:
    """
    Rebuild step by step, one batch each: a worker does other work between two of them.

    With ``replica``, a database alias, the events are read there as far as it has them, and the
    last ones here, as the tables are swapped.

    The generator's value is how many events were applied in this call. Closed in the middle, it
    leaves the rebuild to be resumed. Its end is recorded, see ``actions``.
    """
    using = cls.database_alias(using=using)
    if cls.has_shared_rows() and not without_archived:
        _refuse_archived(cls, using)
    state = checkpoints.ensure(
        cls.name, using=using, version=cls.version, mode=cls.mode, partitions=cls.partitions
    )
    if state.version > cls.version and not downgrade:
        raise ProjectionUnavailable("newer", projection=cls.name)
    begun = time.monotonic()
    try:
        if cls.mode == cls.INLINE:
            inline_one = _InlineRebuild(cls, using, by, without_archived)
            return (yield from inline_one.steps(restart=restart, downgrade=downgrade))
        shadow_one = _ShadowRebuild(
            cls,
            using,
            is_strict=not park,
            by=by,
            without_archived=without_archived,
            replica=replica,
        )
        return (yield from shadow_one.steps(restart=restart))
    except (Exception, KeyboardInterrupt) as error:
        if not (isinstance(error, ProjectionUnavailable) and error.reason == "busy"):
            # Raise the error that ended the rebuild, even if it cannot be recorded.
            with suppress(Error), transaction.atomic(using=using):
                actions.add(
                    cls.name,
                    ProjectionAction.REBUILD_FAILED,
                    using=using,
                    by=by,
                    seconds=time.monotonic() - begun,
                    note=actions.reason(error),
                )
        raise


def _refuse_archived(cls: type[RowProjection], using: str) -> None:
    """
    Raise ProjectionUnavailable if some of the events that made shared rows are in archives.

    Such rows are made of the events of many logs, in the order of positions. Archives have them
    log by log.
    """
    count = listing.archived_logs(using, log_types=cls.log_types_read()).count()
    if count:
        raise ProjectionUnavailable("archived", projection=cls.name, logs=count)


def request_rebuild(cls: type[RowProjection], *, by: str = "", using: str | None = None) -> None:
    """Let a worker rebuild; one that was interrupted is resumed."""
    using = cls.database_alias(using=using)
    checkpoints.ensure(
        cls.name, using=using, version=cls.version, mode=cls.mode, partitions=cls.partitions
    )
    with transaction.atomic(using=using):
        ProjectionState.objects.using(using).filter(name=cls.name).update(
            rebuild_requested_at=timezone.now(), rebuild_error=""
        )
        actions.add(cls.name, ProjectionAction.REBUILD_REQUESTED, using=using, by=by)


def requested_rebuilds(using: str) -> set[str]:
    """Return the names of the projections that a worker is to rebuild."""
    states = ProjectionState.objects.using(using).exclude(rebuild_requested_at=None)
    return set(states.values_list("name", flat=True))


def end_request(cls: type[RowProjection], why: str = "", *, using: str | None = None) -> None:
    """Note that a rebuild that was asked for is over, and why, if it came to nothing."""
    ProjectionState.objects.using(cls.database_alias(using=using)).filter(name=cls.name).update(
        rebuild_requested_at=None, rebuild_error=why
    )


def rebuild_log(
    cls: type[RowProjection],
    log_id: LogId,
    *,
    downgrade: bool = False,
    by: str | None = None,
    using: str | None = None,
) -> int:
    """
    Rebuild the row of one log; return the number of its events that were applied.

    The row of a log that was erased is removed. An archived log is read from its archive. With
    ``by``, the action is recorded. The transaction is run again where the database gives it up,
    e.g. because an append to the log committed meanwhile and the isolation level is REPEATABLE
    READ.

    Raise LogNotFound where there is neither log nor row, ArchiveUnavailable if its archive cannot
    be read, ProjectionUnavailable where a newer release has made the row, unless ``downgrade``, and
    TransactionMustRetry inside of a caller's transaction that has to be run again.
    """
    using = cls.database_alias(using=using)
    if cls.has_shared_rows():
        raise ProjectionUnavailable("shared rows", projection=cls.name)
    if not listing.version_of(using, log_id):
        if not remove_row(cls, log_id, using):
            raise missing(using, log_id)
        return 0
    return run_again(using, _rebuild_log, cls, log_id, downgrade=downgrade, by=by)


def _rebuild_log(
    connection: BaseDatabaseWrapper,
    cls: type[RowProjection],
    log_id: LogId,
    *,
    downgrade: bool,
    by: str | None,
) -> int:
    projection, using = cls(), connection.alias
    with ExitStack() as stack:
        upto = verify.at_rest(stack, projection, log_id, using)
        if projection.is_inline and not downgrade:
            inline.refuse_newer(projection, log_id, using)
        if projection.is_inline:
            HeldLogs(cls, using).rows().filter(log_id=log_id).delete()
        upto = verify.upto_of(log_id, upto, using)
        row, count = verify.replay(projection, log_id, using, upto=upto)
        verify.put_right(projection, log_id, row, using)
        if projection.is_inline:
            version = listing.version_of(using, log_id)
            inline.note(projection, log_id, version, using, made_by=cls.version)
        if by is not None:
            actions.add(
                cls.name,
                ProjectionAction.REBUILT,
                using=using,
                by=by,
                log_id=log_id,
                count=count,
            )
    return count


def remove_row(cls: type[RowProjection], log_id: LogId, using: str) -> bool:
    """Remove the row of a log that is erased; return whether there was one."""
    rows = cls.model._base_manager.using(using).filter(pk=log_id)
    if not rows.exists():
        return False
    with ExitStack() as stack:
        verify.at_rest(stack, cls(), log_id, using)
        rows.delete()
        AppliedVersion.objects.using(using).filter(projection=cls.name, log_id=log_id).delete()
    return True


def remove_strays(cls: type[RowProjection], using: str) -> None:
    """
    Remove the rows that belong to no log: each row of a log has an AppliedVersion.

    They are found by a read without locks, and then removed one at a time. One DELETE for all of
    them would deadlock with appends in MariaDB, which locks every row that the statement reads.
    """
    known = AppliedVersion.objects.using(using).filter(projection=cls.name, log_id=OuterRef("pk"))
    rows = cls.model._base_manager.using(using).filter(~Exists(known)).order_by("pk")
    strays, last = rows.values_list("pk", flat=True), ""
    while some := list(strays.filter(pk__gt=last)[:LOGS_AT_ONCE]):
        for log_id in some:
            run_again(using, _remove_stray, cls, log_id)
        last = some[-1]


def _remove_stray(connection: BaseDatabaseWrapper, cls: type[RowProjection], log_id: LogId) -> None:
    using = connection.alias
    with transaction.atomic(using=using):
        inline.lock_log(log_id, using)
        row = cls.model._base_manager.using(using).filter(pk=log_id)
        # Locked before its version is read: a transaction that creates this log at the same time
        # has committed both or neither then.
        if not row.select_for_update().exists() or inline.applied_version(cls(), log_id, using):
            return
        if not listing.archived_among(using, [log_id]):
            row.delete()


def discard_unfinished(cls: type[RowProjection], using: str) -> bool:
    """
    Drop the rows of an interrupted rebuild, so that the next one begins from the start.

    An inline projection is rebuilt in place, and goes on where it was; it has such rows only if
    its rebuild was interrupted before it became inline.

    Return False where a rebuild is running: it is not stopped. Raise RuntimeError inside of a
    transaction where dropping a table would commit it (MariaDB, MySQL): nothing was changed. An
    inline projection without such rows has nothing to drop. Raise OperationalError where another
    process takes more than ten seconds to make the table.
    """
    is_inline = cls.mode == cls.INLINE
    has_table = not is_inline or shadow_tables.exists(cls.model, using)
    with ExitStack() as stack:
        if has_table:
            _refuse_to_commit(using)
            stack.enter_context(shadow_tables.one_at_a_time(cls.name, using))
        stack.enter_context(transaction.atomic(using=using))
        states = ProjectionState.objects.using(using).filter(name=cls.name)
        states.update(version=F("version"))  # one at a time, as a rebuild begins
        try:
            _ShadowRebuild(cls, using, is_strict=True).refuse_if_busy()
        except ProjectionUnavailable:
            return False
        if has_table:
            checkpoints.forget_rebuild(cls.name, using=using)
            if not is_inline:
                states.update(rebuild_version=None, rebuild_started_at=None)
            # Last: on MariaDB this commits, and a table without checkpoints is made anew. It
            # unlocks the state before the table is gone, so a rebuild that begins waits for the
            # lock by name.
            shadow_tables.drop(cls.model, using)
    return True


def _refuse_to_commit(using: str) -> None:
    """Raise RuntimeError in a caller's transaction that a statement about a table would commit."""
    connection = connections[using]
    if shadow_tables.commits_by_itself(connection) and connection.in_atomic_block:
        raise RuntimeError(
            "Rebuild, or remove the copies of events, outside of a transaction: here, making or "
            "dropping a table would commit it."
        )


class _Rebuild:
    """A call that rebuilds a projection in a database."""

    def __init__(
        self, cls: type[RowProjection], using: str, by: str, without_archived: bool
    ) -> None:
        self._cls = cls
        self._without_archived = without_archived
        self._using = using
        self._by = by
        self._begun = time.monotonic()

    def _end(self, states: QuerySet[ProjectionState], **more: Any) -> bool:
        """Store that the rows are those of this version; return False if there is no state."""
        return bool(
            states.update(
                version=self._cls.version,
                rebuilt_at=timezone.now(),
                rebuild_version=None,
                rebuild_started_at=None,
                **more,
            )
        )

    def _note(self, count: int, *, is_resumed: bool) -> None:
        """Record the rebuild, in the caller's transaction."""
        actions.add(
            self._cls.name,
            ProjectionAction.REBUILT,
            using=self._using,
            by=self._by,
            count=count,
            seconds=time.monotonic() - self._begun,
            note=RESUMED if is_resumed else "",
        )


class _ShadowRebuild(_Rebuild):
    """A rebuild into a shadow table."""

    def __init__(
        self,
        cls: type[RowProjection],
        using: str,
        *,
        is_strict: bool,
        by: str = "",
        without_archived: bool = False,
        replica: str | None = None,
    ) -> None:
        super().__init__(cls, using, by, without_archived)
        self._is_strict = is_strict
        self._feed = Feed(using=using)
        self._on_replica = None if replica is None else FeedOnReplica(replica, using=using)
        self._owner = leases.new_owner()
        self._table_owner = shadow_tables.owner(cls.model, using)
        self._applied = 0
        self._beginning = 0  # of the feed, once it is known
        self._first = 0  # the position, and the events applied, when this call began
        self._before = 0

    def steps(self, *, restart: bool) -> Steps:
        advancers = self._at_work(self._prepare(restart))
        try:
            self._beginning = beginning(self._using)
            self._first = min(each.position for each in advancers)
            self._before = self._applied_in_all()
            has_archived = self._without_archived or self._cls.has_shared_rows()
            if self._on_replica is not None:
                yield from self._fill_from(self._on_replica, advancers)
            for _ in range(SWAPS):
                try:
                    yield from self._fill(advancers)
                    if not has_archived:
                        yield from self._fill_archived(advancers)
                        has_archived = True
                        yield from self._fill(advancers)
                    if self._swap(advancers):
                        return self._applied
                    time.sleep(PAUSE)
                    advancers = self._at_work(
                        [replace(each, was_abandoned=False) for each in self._take()]
                    )
                except LeaseLost:
                    advancers = self._at_work(self._resume())
                    has_archived = self._without_archived or self._cls.has_shared_rows()
        except BaseException:
            self._give_back(advancers)
            raise
        self._give_back(advancers)
        raise ProjectionUnavailable("busy", projection=self._cls.name)

    def _resume(self) -> list[Lease]:
        """
        Continue after a release has declared itself, which takes leases away.

        Raise ProjectionUnavailable where another process has begun to rebuild, or is done.
        """
        state = checkpoints.state_of(self._cls.name, self._using)
        if state is None or state.rebuild_version != self._cls.version:
            raise ProjectionUnavailable("busy", projection=self._cls.name)
        return self._prepare(restart=False)

    def _give_back(self, advancers: list[Advancer]) -> None:
        """Let the next call, of this process or another one, begin at once."""
        for each in advancers:
            with suppress(Error):
                each.close()

    def _prepare(self, restart: bool) -> list[Lease]:
        """Begin a rebuild, or resume the one that was begun."""
        name, using, model = self._cls.name, self._using, self._cls.model
        _refuse_to_commit(using)
        with shadow_tables.one_at_a_time(name, using), transaction.atomic(using=using):
            states = ProjectionState.objects.using(using).filter(name=name)
            states.update(version=F("version"))  # one at a time
            state = states.get()
            self.refuse_if_busy()
            if (
                restart
                or state.rebuild_version != self._cls.version
                or self._checkpoints().count() != self._cls.partitions
                or not shadow_tables.is_alike(model, using)
            ):
                # First: on MariaDB the new table commits this, and unlocks the state. A rebuild
                # that ends there is begun anew, since it has no checkpoints.
                checkpoints.forget_rebuild(name, using=using)
                states.update(rebuild_version=None)
                with self._as_owner():
                    shadow_tables.drop(model, using)
                    shadow_tables.create(model, using)
                checkpoints.add_checkpoints(
                    name, using=using, partitions=self._cls.partitions, is_rebuild=True
                )
                states.update(rebuild_version=self._cls.version, rebuild_started_at=timezone.now())
            # While the state is locked: the next rebuild then finds these leases.
            return self._take()

    @contextmanager
    def _as_owner(self) -> Iterator[None]:
        """Name the table's owner in the error, where this database role may not replace it."""
        try:
            yield
        except ProgrammingError as error:
            if getattr(error.__cause__, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
                raise
            raise ProjectionUnavailable(
                "privilege", projection=self._cls.name, owner=self._table_owner
            ) from error

    def _applied_in_all(self) -> int:
        """Return how many events this rebuild has applied, in all calls."""
        return sum(self._checkpoints().values_list("applied", flat=True))

    def _checkpoints(self) -> QuerySet[Checkpoint]:
        """Return the checkpoints of the rebuild."""
        rows = Checkpoint.objects.using(self._using)
        return rows.filter(projection=self._cls.name, is_rebuild=True)

    def refuse_if_busy(self) -> None:
        owned = self._checkpoints().exclude(owner="")
        if any(leases.is_live(each, using=self._using) for each in owned):
            raise ProjectionUnavailable("busy", projection=self._cls.name)

    def _take(self) -> list[Lease]:
        taken = [
            leases.acquire(
                self._cls.name,
                number,
                using=self._using,
                owner=self._owner,
                seconds=self._cls.timeout + GRACE,
                is_rebuild=True,
            )
            for number in range(self._cls.partitions)
        ]
        found = [each for each in taken if each is not None]
        if len(found) < len(taken):
            raise ProjectionUnavailable("busy", projection=self._cls.name)
        return found

    def _at_work(self, taken: list[Lease]) -> list[Advancer]:
        shadow = shadow_tables.shadow_of(self._cls.model)
        return [
            Advancer(self._cls(model=shadow), each, self._feed, is_strict=self._is_strict)
            for each in taken
        ]

    def _fill_from(self, feed: Feed, advancers: list[Advancer]) -> Iterator[Progress]:
        """Apply what another feed has; what follows is read from that of the database again."""
        for each in advancers:
            each.feed = feed
        with suppress(LeaseLost):  # the next fill meets it, too
            yield from self._fill(advancers)
        for each in advancers:
            each.feed = self._feed

    def _fill(self, advancers: list[Advancer]) -> Iterator[Progress]:
        more = True
        while more:
            upto, more = self._feed.settled(), False
            for each in advancers:
                before = each.applied
                more |= each.step()
                if not self._is_strict:
                    more |= each.retry_due()
                self._applied += each.applied - before
            done = min(each.position for each in advancers)
            yield Progress(
                self._applied,
                max(done - self._beginning, 0),
                max(done, upto) - self._beginning,
                "positions",
                max(self._first - self._beginning, 0),
                self._before,
            )

    def _fill_archived(self, advancers: list[Advancer]) -> Iterator[Progress]:
        """
        Make the rows of archived logs: their events are not in the feed.

        Right because: it comes after the feed. A log that is archived during the rebuild is either
        seen here, or was in the tables while the feed was read. For a log that is brought back
        during it, the feed may be past its events: so its return removes the checkpoints of the
        rebuild (see ``archiving/tables.py``), which begins anew then. A row is made of the whole
        log, so doing it again, after a kill, makes the same row.
        """
        cls, using = self._cls, self._using
        projection = cls(model=shadow_tables.shadow_of(cls.model))
        ids = listing.ids_in_order(using, log_types=cls.log_types_read())
        while some := list(islice(ids, ARCHIVED_AT_ONCE)):
            rows: dict[LogId, Any] = {}
            short = listing.events_of(using, some)
            replayer = Replayer(projection, reading_of_rows(cls, using), using)
            skipped = skipped_of(cls.name, some, using)
            for log_id in some:
                if (events := short.get(log_id)) is None:
                    row, count = verify.replay(projection, log_id, using, upto=verify.EVERYTHING)
                else:
                    try:
                        row, count = replayer.row(log_id, events, skipped.get(log_id, NONE))
                    except Failed as failed:
                        at = failed.position or 0
                        raise ProjectionFailed(cls.name, log_id, at) from failed.error
                rows[log_id] = row
                self._applied += count
                for each in advancers:
                    each.rest()
            with leases.fenced(advancers[0].lease):
                verify.put_all_right(projection, rows, using)
            done = min(each.position for each in advancers)
            done = max(done - self._beginning, 0)
            first = max(self._first - self._beginning, 0)
            yield Progress(self._applied, done, done, "positions", first, self._before)

    def _swap(self, advancers: list[Advancer]) -> bool:
        """Put the new rows in use; return False if the lock was not granted in time."""
        using, name = self._using, self._cls.name
        connection = connections[using]
        alone = not connection.in_atomic_block
        applied = self._applied
        try:
            with transaction.atomic(using=using):
                if connection.vendor == "postgresql" and alone:
                    # Reading the feed needs READ COMMITTED.
                    with connection.cursor() as cursor:
                        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                    shadow_tables.limit_lock_wait(using)
                live = checkpoints.lock_all(name, using=using)
                upto, archived = self._feed.settled(), self._last_archived()
                for each in advancers:
                    before = each.applied
                    while each.position < upto and each.step(upto):
                        pass
                    each.move_to(max(upto, archived))
                    self._applied += each.applied - before
                with self._as_owner():
                    shadow_tables.swap(self._cls.model, using)
                self._switch(live)
        except (OperationalError, IntegrityError):
            # The lock was not granted in time; or a constraint refused one of the last rows, and
            # the next fill meets it again and names its event. The transaction is rolled back, and
            # the leases are at the positions from before it.
            self._applied = applied
            if not connection.is_usable():
                raise
            return False
        if shadow_tables.commits_by_itself(connection):
            with shadow_tables.one_at_a_time(name, using):
                if not self._checkpoints().exists():  # else another rebuild has begun, with its own
                    shadow_tables.drop(self._cls.model, using)
        return True

    def _last_archived(self) -> int:
        """
        Return the last position of an archived event: the new rows have it, and the feed does not.

        Right because: a log is archived once its last event is settled. So the feed has been read
        up to that position as well.
        """
        if self._without_archived:
            return 0
        found = listing.archived_logs(self._using).aggregate(last=Max("last_position"))
        return int(found["last"] or 0)

    def _switch(self, live: list[Checkpoint]) -> None:
        using, name = self._using, self._cls.name
        self._note(self._applied_in_all(), is_resumed=self._before > 0)
        Checkpoint.objects.using(using).filter(projection=name, is_rebuild=False).delete()
        self._checkpoints().update(
            is_rebuild=False,
            owner="",
            leased_until=None,
            # Higher than any token that a worker holds.
            token=max((each.token for each in live), default=0) + F("token") + 1,
        )
        ParkedEvent.objects.using(using).filter(projection=name, is_rebuild=False).delete()
        ParkedEvent.objects.using(using).filter(projection=name, is_rebuild=True).update(
            is_rebuild=False
        )
        AppliedVersion.objects.using(using).filter(projection=name).delete()
        states = ProjectionState.objects.using(using).filter(name=name)
        self._end(states, mode=self._cls.mode, partitions=self._cls.partitions)


class _InlineRebuild(_Rebuild):
    """A rebuild in place, of a projection whose rows change with the appends."""

    def steps(self, *, restart: bool, downgrade: bool) -> Steps:
        cls, using = self._cls, self._using
        states = ProjectionState.objects.using(using).filter(name=cls.name)
        state = states.get()
        if state.mode != cls.INLINE:
            checkpoints.become_inline(cls.name, using=using)
        if restart or state.rebuild_version != cls.version:
            states.update(
                rebuild_version=cls.version,
                rebuild_started_at=timezone.now(),
                rebuild_reached=None,
                rebuild_applied=0,
            )
        state = states.get()
        before = state.rebuild_applied
        logs, log_types = cls.logs_read(using), cls.log_types_read() or ()
        done = logs.filter(pk__lte=state.rebuild_reached).count() if state.rebuild_reached else 0
        total = logs.count()
        if not self._without_archived:
            total += listing.archived_logs(using, log_types=cls.log_types_read()).count()
        applied, reached, done_before = 0, state.rebuild_reached, done
        for page in scans.logs_by_id(using, after=reached, log_types=log_types):
            for some in verify.in_chunks(page, LOGS_AT_ONCE, EVENTS_AT_ONCE):
                applied += self._rebuild_many(some, downgrade)
                done += len(some)
                states.update(
                    rebuild_reached=some[-1].log_id.uuid,
                    rebuild_done=done,
                    rebuild_total=max(total, done),
                    rebuild_applied=before + applied,
                )
                yield Progress(applied, done, max(total, done), "logs", done_before, before)
        for log_id in self._archived():
            applied += self._rebuild(log_id, downgrade)
            done += 1
            yield Progress(applied, done, max(total, done), "logs", done_before, before)
        remove_strays(cls, using)
        mine = states if downgrade else states.filter(version__lte=cls.version)
        with transaction.atomic(using=using):
            if not self._end(mine, rebuild_reached=None):
                raise ProjectionUnavailable("newer", projection=cls.name)
            self._note(before + applied, is_resumed=before > 0)
        # Rows that processes of the old version made meanwhile, of logs that were already rebuilt.
        # They make no more: appends that begin now find the new version, and a worker applies the
        # events of those that have not committed yet.
        for log_id in self._made_by_others(downgrade):
            applied += self._rebuild(log_id, downgrade)
        return applied

    def _archived(self) -> Iterator[LogId]:
        if not self._without_archived:
            yield from listing.ids_in_order(self._using, log_types=self._cls.log_types_read())

    def _made_by_others(self, downgrade: bool) -> Iterator[LogId]:
        made = inline.applied_versions(self._cls.name, self._using).order_by("log_id")
        if downgrade:
            made = made.exclude(made_by=self._cls.version)
        else:
            made = made.filter(made_by__lt=self._cls.version)
        log_ids, last = made.values_list("log_id", flat=True), ""
        while some := list(log_ids.filter(log_id__gt=last)[:LOGS_AT_ONCE]):
            yield from some
            last = some[-1]

    def _rebuild_many(self, logs: Sequence[LogRow], downgrade: bool) -> int:
        counts: dict[LogId, int] = {}
        if len(logs) > 1 and inline_bulk.is_possible(self._using):
            # If one of them cannot be rebuilt, the next loop says which one, and why.
            with suppress(Exception, SystemExit):
                counts = inline_bulk.rebuild_rows(self._cls, logs, self._using, downgrade=downgrade)
        others = [log.log_id for log in logs if log.log_id not in counts]
        return sum(counts.values()) + sum(self._rebuild(each, downgrade) for each in others)

    def _rebuild(self, log_id: LogId, downgrade: bool) -> int:
        try:
            return rebuild_log(self._cls, log_id, downgrade=downgrade, using=self._using)
        except LogNotFound:
            return 0  # erased meanwhile, and had no row
