"""
The methods that users call on a projection, each with its a-twin for async code.

The classes here add class methods to the declarations of ``base.py``. Each method calls the part
of the engine that does the work, and hands it the class as a declaration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet

from eventlogs.exceptions import DatabasesDiffer
from eventlogs.ids import LogId
from eventlogs.models import ParkedEvent
from eventlogs.projections import (
    catch_up,
    checkpoints,
    from_now,
    held_actions,
    lags,
    rebuild,
    verify,
    waiting,
)
from eventlogs.projections.base import BaseProjection, RowProjection
from eventlogs.projections.from_now import PassedOver
from eventlogs.projections.held_logs import HeldLogs
from eventlogs.projections.lags import Lag
from eventlogs.projections.rebuild import Tell, ignore
from eventlogs.projections.verify import Verification
from eventlogs.utils.twins import AsyncTwin
from eventlogs.values import EventRecord, LogState, Reduction

Place = LogState | Reduction[Any] | EventRecord | int
"""A place in a feed: the state of a log, an event, or a position."""


class Operations(BaseProjection):
    """The operations that every projection and reactor has."""

    @classmethod
    def catch_up(cls, *, strict: bool = False, using: str | None = None) -> int:
        """
        Apply all settled events, and return the number of events that this call applied.

        All events that were settled at the call are applied when it returns, by this process or
        by another one that is waited for. An event whose handler raises is tried again later and
        then parked, with its log's later events held behind it (see ``waiting`` and ``parked``).
        Other logs' events are applied, and nothing is raised.

        With ``strict``, for tests, all events are applied or ProjectionFailed is raised, with the
        handler's own exception as its ``__cause__``. It is raised at the first event that cannot
        be applied. Events before it stay applied. The failed event does not: no attempt is
        counted, its log is not held, and the next call begins with it. Events that earlier calls
        have left waiting are tried at once, before they are due; that counts as an attempt.
        ProjectionFailed is also raised, without an attempt and without a cause, for an event that
        is parked or waits for another release.

        Where it runs on several databases, they are caught up one after the other.

        Raise FeedUnavailable as the feed does, and ProjectionUnavailable where the rows are of
        newer code, or have to be rebuilt first.
        """
        return sum(
            catch_up.catch_up_projection(cls, strict=strict, using=each)
            for each in cls.database_aliases(using=using)
        )

    @classmethod
    def lag(cls, *, using: str | None = None) -> Lag:
        """
        Return how far the projection is behind the newest committed event; see lags.Lag.

        Events that an open transaction holds back in the feed are lag. An inline projection whose
        rows are right has none, and needs neither a worker nor a feed for that. The call reads a
        bounded part of the tables. Of several databases, it is the sum of their events, and the
        age of the oldest.

        Raise FeedUnavailable as the feed does, unless it is inline.
        """
        found = [lags.lag(cls, each) for each in cls.database_aliases(using=using)]
        return found[0] if len(found) == 1 else lags.sum_of(found)

    @classmethod
    def wait_for(cls, position: Place, *, timeout: float = 5.0, using: str | None = None) -> bool:
        """
        Wait until ``position`` is applied, at most ``timeout`` seconds; return whether it is.

        ``position`` is a LogState, a Reduction or an EventRecord, or the position of one of them.
        The first three name their log, and so its database: pass them where a router spreads logs
        over several. Of a manager with ``using``, pass its ``using`` here, too.

        Nothing is applied here: another process does that. An event is applied when the partition
        of its log has passed it or, inline, when the row has its log's version. Other partitions
        are not read. An event that waits for another attempt, or is parked, is not applied, nor are
        the later ones of its log.

        For an event that the projection does not read, the call waits for the last one before it
        in its log that it reads; it returns True at once where there is none. Where there is no
        event at the position, its append may be uncommitted: the call waits for it. It returns
        False at once where the event can never appear: its append was rolled back, or its log is
        erased.

        Raise DatabasesDiffer for a number without ``using``, if it runs on several databases.
        """
        number, alias = cls._place(position, using)
        return waiting.wait_for(cls, number, timeout, using=alias)

    @classmethod
    async def await_for(
        cls, position: Place, *, timeout: float = 5.0, using: str | None = None
    ) -> bool:
        """Do the same as ``wait_for``, for async code. No thread is occupied while it waits."""
        number, alias = cls._place(position, using)
        return await waiting.await_for(cls, number, timeout, using=alias)

    @classmethod
    def _place(cls, position: Place, using: str | None) -> tuple[int, str]:
        """Return the position to wait for, and the alias of the database that it counts in."""
        if not isinstance(position, int):
            return position.position, cls.alias_of_log(position.log_id, using=using)
        if using is None and len(cls.database_aliases()) > 1:
            raise DatabasesDiffer("position")
        return position, cls.database_aliases(using=using)[0]

    @classmethod
    def parked(cls, *, using: str | None = None) -> list[ParkedEvent]:
        """Return the parked events, the oldest of a database first; each holds its log."""
        return cls._held(using, lambda rows: rows.filter(retry_at=None, awaits=""))

    @classmethod
    def waiting(cls, *, using: str | None = None) -> list[ParkedEvent]:
        """
        Return the held events that are not parked, the oldest of a database first.

        They are tried again. Each holds its log: until its next attempt, or, with ``awaits``, until
        a release runs that can apply it.
        """
        return cls._held(using, lambda rows: rows.exclude(retry_at=None, awaits=""))

    @classmethod
    def _held(
        cls,
        using: str | None,
        choose: Callable[[QuerySet[ParkedEvent]], QuerySet[ParkedEvent]],
    ) -> list[ParkedEvent]:
        held = (HeldLogs(cls, each).rows() for each in cls.database_aliases(using=using))
        return [row for rows in held for row in choose(rows).order_by("position")]

    @classmethod
    def retry(
        cls, log_id: LogId | str | None = None, *, by: str = "", using: str | None = None
    ) -> int:
        """
        Make events that wait or are parked due at once; return how many there are.

        ``log_id`` names the log, None means all logs. A worker, or the next ``catch_up``, applies
        the event first, and then the later ones of its log, in order. ``by`` is the person who
        does it, for the projection's history (eventlogs.models.ProjectionAction).

        Raise InvalidLogId for a text that is no log id.
        """
        if log_id is not None:
            log = _log_id(log_id)
            return held_actions.retry(cls, log, by=by, using=cls.alias_of_log(log, using=using))
        return sum(
            held_actions.retry(cls, by=by, using=each) for each in cls.database_aliases(using=using)
        )

    @classmethod
    def skip(cls, log_id: LogId | str, *, by: str = "", using: str | None = None) -> bool:
        """
        Skip the event that holds a log, permanently; return whether there was one.

        Rebuilds skip it, too. The later events of the log are applied as by ``retry``. ``by`` is
        the person who does it, for the projection's history.

        Raise InvalidLogId for a text that is no log id, and ProjectionUnavailable where newer code
        has made the rows. Nothing is skipped then.
        """
        log = _log_id(log_id)
        return held_actions.skip(cls, log, by=by, using=cls.alias_of_log(log, using=using))

    acatch_up = AsyncTwin(catch_up)
    alag = AsyncTwin(lag)
    aparked = AsyncTwin(parked)
    awaiting = AsyncTwin(waiting)
    aretry = AsyncTwin(retry)
    askip = AsyncTwin(skip)


class RowOperations(Operations, RowProjection):
    """The operations that only projections with rows have."""

    @classmethod
    def rebuild(
        cls,
        log_id: LogId | str | None = None,
        *,
        restart: bool = False,
        park: bool = False,
        downgrade: bool = False,
        without_archived: bool = False,
        replica: str | None = None,
        tell: Tell = ignore,
        by: str = "",
        using: str | None = None,
    ) -> int:
        """
        Rebuild the rows from all events, and return how many were applied in this call.

        They are made in a shadow table, while the old table serves and is kept up to date. Then
        the tables are swapped, in one short transaction. A rebuild that was killed is resumed by
        the next call, if it was of the same ``version``, unless ``restart``. An inline projection
        is rebuilt in place, at most 200 logs at a time. With ``log_id``, the row of that log
        alone is rebuilt, at once; of a log that was erased, it is removed.

        ``downgrade`` lets older code take over rows that a newer version of the projection has
        made, after a rollback: stop the processes of the newer release first.

        Rows of archived logs are made of the events in their archives. Where several logs share a
        row, that is impossible: ProjectionUnavailable says how many logs are archived, and nothing
        is changed. ``without_archived`` rebuilds from the events in the tables alone: shared rows
        lack those of archived logs then, and other rows of archived logs are left out, or, of an
        inline projection, stay as they are.

        ``replica`` is the alias of a replica of the database: the events are read there, but for
        the last ones. While it does not answer, or is no replica, they are read in the database. It
        is for rebuilds into a second table: ValueError for an inline projection, and with
        ``log_id``.

        ``tell`` is called with a rebuild.Progress after each batch. ``by`` is the person who
        rebuilds: the projection's history says how each rebuild ended.

        Raise ProjectionFailed at the first event that cannot be applied; the next call resumes the
        rebuild, and the old rows serve on. With ``park``, such events are parked instead, as they
        are in ``catch_up``; those of archived logs are not, and raise. Raise ArchiveUnavailable if
        an archive cannot be read, and ProjectionUnavailable where another process rebuilds it at
        the moment, a newer version has made the rows, or several logs share the row of ``log_id``;
        and LogNotFound where neither the log nor a row of it exists.
        """
        if replica is not None and (log_id is not None or cls.mode == cls.INLINE):
            raise ValueError(
                "replica is for rebuilds into a second table. The rows of an inline projection, "
                "and that of one log, are made under the locks of their logs: leave it out."
            )
        if log_id is not None:
            log = _log_id(log_id)
            alias = cls.alias_of_log(log, using=using)
            return rebuild.rebuild_log(cls, log, downgrade=downgrade, by=by, using=alias)
        applied = 0
        for each in cls.database_aliases(using=using):
            steps = rebuild.rebuild_steps(
                cls,
                restart=restart,
                park=park,
                downgrade=downgrade,
                without_archived=without_archived,
                replica=replica,
                by=by,
                using=each,
            )
            applied += rebuild.finish(steps, tell)
        return applied

    @classmethod
    def request_rebuild(cls, *, by: str = "", using: str | None = None) -> None:
        """
        Ask a worker (``eventlogs project``, or the Celery task) to rebuild, and return at once.

        The worker rebuilds beside its other work. Its progress is in
        eventlogs.models.ProjectionState: ``rebuild_started_at``, and ``rebuild_error`` where it
        failed. ``by`` is the person who asks, for the projection's history.
        """
        for each in cls.database_aliases(using=using):
            rebuild.request_rebuild(cls, by=by, using=each)

    @classmethod
    def verify(
        cls, *, sample: int | None = 100, repair: bool = False, using: str | None = None
    ) -> Verification:
        """
        Replay logs, compare them with their rows, and return what differs.

        ``sample`` is the number of logs to compare in each database, chosen at random, those with
        many events more often; None for all of them. Rows without a log are looked for where all
        logs are compared. ``repair`` rewrites rows that differ, log by log. Rows are compared as of
        the checkpoint, so events that are not applied yet are no difference. Appends and workers
        continue meanwhile.

        The answer also counts what was not compared. ``held`` is the number of logs that were
        compared only up to an event that is parked or waits. ``failed`` are the logs whose events
        cannot be replayed, e.g. because a handler raises: their rows are not compared.

        Raise ProjectionUnavailable where several logs share a row, and where a release that runs
        beside this one has made a row, or handles an event that this one does not.
        """
        found = [
            verify.verify_rows(cls, sample=sample, repair=repair, using=each)
            for each in cls.database_aliases(using=using)
        ]
        return found[0] if len(found) == 1 else verify.sum_of(found)

    @classmethod
    def is_rebuild_due(cls, *, using: str | None = None) -> bool:
        """Return whether the rows were made by another version of the projection."""
        aliases = cls.database_aliases(using=using)
        return any(cls.needs_rebuild(checkpoints.state_of(cls.name, each)) for each in aliases)

    arebuild = AsyncTwin(rebuild)
    arequest_rebuild = AsyncTwin(request_rebuild)
    averify = AsyncTwin(verify)
    ais_rebuild_due = AsyncTwin(is_rebuild_due)


class ReactorOperations(Operations):
    """The operation that only reactors have."""

    @classmethod
    def pass_over(
        cls, *, dry_run: bool = False, by: str = "", using: str | None = None
    ) -> PassedOver:
        """
        Move a reactor past all settled events, permanently; return their number and the position.

        Use it after an import of old logs. Events that wait or are parked are passed over, too:
        otherwise the later events of their logs would still be applied. A worker that
        runs continues from the new position; it may be in the middle of one event. ``dry_run``
        changes nothing and returns the same. ``by`` is the person who does it, for the reactor's
        history.

        Raise FeedUnavailable as the feed does, and DatabasesDiffer without ``using`` if it runs on
        several databases.
        """
        aliases = cls.database_aliases(using=using)
        if len(aliases) > 1:
            raise DatabasesDiffer("all", other=cls.name)
        return from_now.pass_over(cls, aliases[0], dry_run=dry_run, by=by)

    apass_over = AsyncTwin(pass_over)


def _log_id(value: LogId | str) -> LogId:
    return LogId.parse(value) if isinstance(value, str) else value
