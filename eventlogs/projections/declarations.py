"""What a project writes: projections and reactors, their names and their handlers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from django.db import models, router

from eventlogs.aggregates import Aggregate, fold, nothing
from eventlogs.conf import MAX_PROJECTION_NAME_LENGTH
from eventlogs.events.codec import EventReader
from eventlogs.events.registry import registry
from eventlogs.exceptions import LogCorrupted, ProjectionUnavailable, RegistrationError
from eventlogs.feed import scans
from eventlogs.feed.scans import LogRow
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.models import Event, ParkedEvent, ProjectionState
from eventlogs.projections import (
    catch_up as catching_up,
)
from eventlogs.projections import (
    checkpoints,
    from_now,
    inline,
    inline_bulk,
    lags,
)
from eventlogs.projections import (
    rebuild as rebuilding,
)
from eventlogs.projections import (
    verify as verifying,
)
from eventlogs.projections import (
    waiting as awaiting,
)
from eventlogs.projections.batches import Failed, parking_of
from eventlogs.projections.databases import has_table
from eventlogs.projections.defaults import fill
from eventlogs.projections.from_now import PassedOver
from eventlogs.projections.lags import Lag
from eventlogs.projections.rebuild import Tell, nobody
from eventlogs.projections.rows import Rows
from eventlogs.projections.verify import Verification
from eventlogs.stores import participants as appends
from eventlogs.stores.base import AppendRequest
from eventlogs.utils.twins import AsyncTwin
from eventlogs.values import EventRecord, LogState, Reduction, StoredEvent

BATCH: Final = 1_000  # events that are applied in one transaction
TIMEOUT: Final = 30.0  # seconds that a transaction, or a reactor's handler, may take
MAX_ATTEMPTS: Final = 5
BACKOFF: Final = 1.0  # seconds before the second attempt, doubled for each further one
MAX_REDUCTIONS: Final = 5_000  # that a worker keeps in memory
SHORT: Final = 200  # events of a log up to which it is read together with others

F = TypeVar("F", bound=Callable[..., Any])
P = TypeVar("P", bound="type[BaseProjection]")


class BaseProjection:
    """
    What projections and reactors have in common; each reads the feed of the events' database.

    Class attributes: ``log_types`` are the types of the logs to read (None: all).
    ``partitions`` is how many workers can share the work, by parts of the logs. ``batch_size``
    is how many events are applied in one transaction. ``timeout`` is how many seconds that may
    take, or a reactor's handler: then it is interrupted, and a lease of that length runs out.
    An event that fails is tried ``max_attempts`` times, the second time after ``backoff``
    seconds, doubled each time up to five minutes. Then it is parked.

    Methods take ``using``, the alias of the database whose logs are meant. By default it is the
    one that logs are written to. Rows and checkpoints are in that database, too.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    ASYNC: Final = "async"
    INLINE: Final = "inline"
    mode: ClassVar[str] = ASYNC
    log_types: ClassVar[Iterable[str] | None] = None
    partitions: ClassVar[int] = 1
    batch_size: ClassVar[int] = BATCH
    timeout: ClassVar[float] = TIMEOUT
    max_attempts: ClassVar[int] = MAX_ATTEMPTS
    backoff: ClassVar[float] = BACKOFF
    is_transactional: ClassVar[bool] = True
    _handlers: ClassVar[Mapping[type, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the handlers."""
        super().__init_subclass__(**kwargs)
        handlers: dict[type, str] = {}
        for base in reversed(cls.__mro__):  # mixins have handlers, too
            own: dict[type, str] = {}
            for name, value in vars(base).items():
                for event in getattr(value, "_eventlogs_handles", ()):
                    if event in own:
                        raise RegistrationError(
                            f"{base.__qualname__} handles {event.__name__} twice, by "
                            f"{own[event]}() and {name}(): let one of them call the other."
                        )
                    own[event] = name
            handlers |= own
        cls._handlers = handlers

    # Running

    @classmethod
    def catch_up(cls, *, strict: bool = False, using: str | None = None) -> int:
        """
        Apply all that is settled, and return the number of events that were applied here.

        When it returns, what was settled at the call is applied, by this process or, where
        another one is at it, by that one: it is waited for. An event whose handler raises is
        tried again later and then parked, with its log's later events behind it (see
        ``waiting`` and ``parked``); the others are applied, and nothing is raised.

        With ``strict``, for tests, all is applied or ProjectionFailed is raised, with the
        handler's own exception as its ``__cause__``. It is raised at the first event that cannot
        be applied. What was applied before it stays applied; the event is not: no attempt is
        counted, its log is not held, and the next call begins with it. What other calls have left
        waiting is tried at once, whenever it is due; that counts as an attempt. It is also raised,
        without an attempt and without a cause, for an event that is parked or waits for another
        release.

        Raise FeedUnavailable as the feed does, and ProjectionUnavailable where the rows are of
        newer code, or have to be rebuilt first.
        """
        return catching_up.catch_up(cls, strict=strict, using=using)

    @classmethod
    def lag(cls, *, using: str | None = None) -> Lag:
        """
        Return how far the projection is behind the newest committed event; see lagging.Lag.

        Events that an open transaction holds back in the feed are lag. An inline projection whose
        rows are right has none, and needs neither a worker nor a feed for that. What the call
        asks of the database is bounded.

        Raise FeedUnavailable as the feed does, unless it is inline.
        """
        return lags.lag(cls, cls._using(using))

    @classmethod
    def wait_for(cls, position: int, timeout: float = 5.0, *, using: str | None = None) -> bool:
        """
        Wait until ``position`` is applied, at most ``timeout`` seconds; return whether it is.

        ``position`` is e.g. that of a LogState. Nothing is applied here: another process does
        that. It is applied where the partition of its log has passed it (the others are not asked
        for), or, inline, where the row has its log's version. An event that waits for another
        attempt, or is parked, is not applied, nor are those behind it in its log.

        Of an event that the projection does not read, the ones before it in its log are waited
        for, if it reads any; else the answer is True at once. Where there is no event at the
        position, its append may be yet to be committed: it is waited for. The answer is False at
        once where it can never appear: its append was rolled back, or its log is erased.
        """
        return awaiting.wait_for(cls, position, timeout, using=cls._using(using))

    @classmethod
    async def await_for(
        cls, position: int, timeout: float = 5.0, *, using: str | None = None
    ) -> bool:
        """Wait from async code; see ``wait_for``. It keeps no thread while it waits."""
        return await awaiting.await_for(cls, position, timeout, using=cls._using(using))

    # What failed

    @classmethod
    def parked(cls, *, using: str | None = None) -> list[ParkedEvent]:
        """Return the events that were given up on, the oldest first; each holds its log back."""
        waiting = parking_of(cls, cls._using(using)).rows()
        return list(waiting.filter(retry_at=None, awaits="").order_by("position"))

    @classmethod
    def waiting(cls, *, using: str | None = None) -> list[ParkedEvent]:
        """
        Return the events that will be tried again by themselves, the oldest first.

        Each holds its log back: until its next attempt, or, with ``awaits``, until a release runs
        that can apply it.
        """
        waiting = parking_of(cls, cls._using(using)).rows()
        return list(waiting.exclude(retry_at=None, awaits="").order_by("position"))

    @classmethod
    def retry(
        cls, log_id: LogId | str | None = None, *, by: str = "", using: str | None = None
    ) -> int:
        """
        Let events that wait or are parked be tried again at once; return how many there are.

        ``log_id`` names the log, None is all of them. A worker, or the next ``catch_up``, does
        it: the event first, and then the later ones of its log, in order. ``by`` is who does
        it, for the projection's history (eventlogs.models.ProjectionAction).
        """
        return catching_up.retry(
            cls, None if log_id is None else _log_id(log_id), by=by, using=using
        )

    @classmethod
    def skip(cls, log_id: LogId | str, *, by: str = "", using: str | None = None) -> bool:
        """
        Pass over the event that a log is held by, for good; return whether there was one.

        Rebuilds pass over it, too. The later events of the log are applied as by ``retry``.
        ``by`` is who does it, for the projection's history.
        """
        return catching_up.skip(cls, _log_id(log_id), by=by, using=using)

    # The same for async code; ``await_for`` is above

    acatch_up = AsyncTwin(catch_up)
    alag = AsyncTwin(lag)
    aparked = AsyncTwin(parked)
    awaiting = AsyncTwin(waiting)
    aretry = AsyncTwin(retry)
    askip = AsyncTwin(skip)

    # How it works inside

    @property
    def is_inline(self) -> bool:
        """Whether it takes part in appends."""
        return self.mode == self.INLINE

    def apply(self, records: Sequence[EventRecord], using: str) -> None:
        """Apply records; raise Failed with the position of the one that cannot be."""
        raise NotImplementedError

    def missing(self, rows: Sequence[StoredEvent], using: str) -> list[StoredEvent]:
        """Return the rows of which nothing has been applied, one for each log."""
        raise NotImplementedError

    def can_catch_up_many(self, using: str) -> bool:
        """Return whether an inline projection can catch up with many logs in one transaction."""
        return False

    def catch_up_many(
        self, wanted: Mapping[LogId, int], using: str, *, most: int, is_own: bool
    ) -> tuple[set[LogId], list[LogId]]:
        """Bring many logs to a version at least; return those that are, and that come later."""
        raise NotImplementedError

    def applied_version(self, log_id: LogId, using: str) -> int:
        """Return which version of a log is in its row, of an inline projection."""
        raise NotImplementedError

    def _call(self, name: str, record: EventRecord, *args: Any) -> Any:
        try:
            return getattr(self, name)(*args, record)
        except (Exception, SystemExit) as error:
            raise Failed(record.position, error) from error

    @classmethod
    def _types(cls) -> list[str] | None:
        return registry.names_of(cls._handlers)

    @classmethod
    def _log_types(cls) -> list[str] | None:
        if cls.log_types is None:
            return None
        return [cls.log_types] if isinstance(cls.log_types, str) else list(cls.log_types)

    @classmethod
    def _using(cls, using: str | None = None) -> str:
        """Return the database to work on; raise where the projection cannot."""
        if not cls.name:
            raise RegistrationError(f"{cls.__qualname__} has no name: decorate it, @projection().")
        return router.db_for_write(Event) if using is None else using

    @classmethod
    def _check(cls) -> None:
        """Raise RegistrationError for a class that cannot work as it is written."""
        if cls.mode not in (cls.ASYNC, cls.INLINE):
            raise RegistrationError(
                f"{cls.__qualname__}: mode must be Projection.ASYNC or Projection.INLINE."
            )
        if not (isinstance(cls.partitions, int) and 1 <= cls.partitions <= 256):
            raise RegistrationError(f"{cls.__qualname__}: partitions must be from 1 to 256.")
        if not (isinstance(cls.batch_size, int) and 1 <= cls.batch_size <= 10_000):
            raise RegistrationError(f"{cls.__qualname__}: batch_size must be from 1 to 10,000.")
        if cls.timeout <= 0 or cls.max_attempts < 1 or cls.backoff < 0:
            raise RegistrationError(
                f"{cls.__qualname__}: timeout must be positive, max_attempts from 1, and "
                f"backoff not negative."
            )
        for each in cls._handlers:
            if registry.by_class(each) is None:
                raise RegistrationError(
                    f"{cls.__qualname__} handles {each!r}, which is no event: put @event('…') "
                    f"above its @dataclass."
                )


class RowProjection(BaseProjection):
    """A projection that keeps rows."""

    model: ClassVar[type[models.Model]]
    folds_whole_logs: ClassVar[bool] = False  # also the events that a person has said to skip

    def __init__(self, model: type[models.Model] | None = None) -> None:
        """Keep the rows in another table than the model's, where ``model`` says so."""
        if model is not None:
            self.model = model  # type: ignore[misc]

    @classmethod
    def rebuild(
        cls,
        log_id: LogId | str | None = None,
        *,
        restart: bool = False,
        park: bool = False,
        downgrade: bool = False,
        tell: Tell = nobody,
        by: str = "",
        using: str | None = None,
    ) -> int:
        """
        Make the rows anew from all events, and return how many were applied in this call.

        They are made in a table beside, while the old one serves and is kept up to date, and
        then the tables are swapped, in one short transaction. A rebuild that was killed is
        resumed by the next call, if it was of the same ``version``, unless ``restart``. An
        inline projection is rebuilt in place, some hundred logs at a time. With ``log_id``, the row
        of that log alone is made anew, at once; of a log that was erased, it is removed.

        ``downgrade`` lets older code take over rows that a newer version of the projection has
        made, after a rollback: stop the processes of the newer release first.

        ``tell`` is called with a rebuilding.Progress after each batch. ``by`` is who rebuilds:
        the projection's history says how each rebuild ended.

        Raise ProjectionFailed at the first event that cannot be applied; what was done is kept
        for the next call, and the old rows serve on. With ``park``, such events are parked
        instead, as they are in ``catch_up``. Raise ProjectionUnavailable where another process
        rebuilds it at the moment, or a newer version has made the rows, and LogNotFound where the
        log does not exist.
        """
        if log_id is not None:
            return rebuilding.rebuild_log(cls, _log_id(log_id), by=by, using=using)
        return rebuilding.rebuild(
            cls, restart=restart, park=park, downgrade=downgrade, tell=tell, by=by, using=using
        )

    @classmethod
    def request_rebuild(cls, *, by: str = "", using: str | None = None) -> None:
        """
        Let a worker (``eventlogs project``, or the Celery task) rebuild, and return at once.

        It does so beside its other work. How it goes is in eventlogs.models.ProjectionState:
        ``rebuild_started_at``, and ``rebuild_error`` where it came to nothing. ``by`` is who
        asks, for the projection's history.
        """
        rebuilding.request(cls, by=by, using=using)

    @classmethod
    def verify(
        cls, sample: int | None = 100, repair: bool = False, *, using: str | None = None
    ) -> Verification:
        """
        Replay logs, compare with their rows, and return what differs.

        ``sample`` is how many logs are looked at, chosen at random, those with many events more
        often; None for all of them. Rows without a log are looked for where all logs are.
        ``repair`` puts right what differs, log by log. Rows are compared as of the checkpoint, so
        events that are yet to be applied are no difference. Others go on meanwhile.

        The answer says what was left out. ``held`` is the number of logs that were compared only
        up to an event that is parked or waits. ``failed`` are the logs whose events cannot be
        replayed, e.g. because a handler raises: their rows are not compared.

        Raise ProjectionUnavailable where several logs share a row, and where a release that runs
        beside this one has made a row, or handles an event that this one does not.
        """
        return verifying.verify(cls, sample=sample, repair=repair, using=using)

    @classmethod
    def is_rebuild_due(cls, *, using: str | None = None) -> bool:
        """Return whether the rows were made by another version of the projection."""
        return cls.is_made_otherwise(checkpoints.state_of(cls.name, cls._using(using)))

    # The same for async code

    arebuild = AsyncTwin(rebuild)
    arequest_rebuild = AsyncTwin(request_rebuild)
    averify = AsyncTwin(verify)
    ais_rebuild_due = AsyncTwin(is_rebuild_due)

    @classmethod
    def is_made_otherwise(cls, state: ProjectionState | None) -> bool:
        """Return whether rows of this state are those of another version, or mode."""
        return state is not None and (state.version != cls.version or state.mode != cls.mode)

    def missing(self, rows: Sequence[StoredEvent], using: str) -> list[StoredEvent]:
        return inline.missing(self, rows, using)

    def can_catch_up_many(self, using: str) -> bool:
        return inline_bulk.is_possible(using)

    def catch_up_many(
        self, wanted: Mapping[LogId, int], using: str, *, most: int, is_own: bool
    ) -> tuple[set[LogId], list[LogId]]:
        return inline_bulk.catch_up(self, wanted, using, most=most, is_own=is_own)

    def applied_version(self, log_id: LogId, using: str) -> int:
        found = inline.applied_versions(self.name, using).filter(log_id=log_id)
        return found.values_list("version", flat=True).first() or 0

    def row_of(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        """Return the row that a log should have, made of all of its records; None for none."""
        raise NotImplementedError

    def row_at_once(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        """Return what ``row_of`` does, of records that are all in memory: nothing is read."""
        return self.row_of(log_id, records, using)

    def change(self, records: Sequence[EventRecord], using: str, *, anew: bool = False) -> None:
        """Apply records inside of a transaction; ``anew`` begins with blank rows."""
        raise NotImplementedError

    def apply(self, records: Sequence[EventRecord], using: str) -> None:
        if not self.is_inline:
            self.change(records, using)
            return
        for record in records:
            inline.catch_up(self, record.log_id, using, upto=record.index + 1)

    @classmethod
    def _follow(cls, using: str, state: LogState, request: AppendRequest) -> None:
        inline.follow(cls, using, state, request)

    @classmethod
    def _using(cls, using: str | None = None) -> str:
        home = super()._using()
        if using is not None and using != home:
            if not has_table(cls.model, using):
                raise ProjectionUnavailable("table", projection=cls.name)
            return using
        if router.db_for_write(cls.model) != home:
            raise RegistrationError(
                f"{cls.model.__qualname__} is in another database than the events: rows and "
                f"checkpoint could not be committed together. Route it to {home!r}."
            )
        return home

    @classmethod
    def _keeps_rows_in(cls, using: str) -> bool:
        """
        Return whether there can be rows for the logs of a database.

        Raise RegistrationError where the rows of the default one are routed elsewhere.
        """
        if using == super()._using():
            return cls._using() == using
        return has_table(cls.model, using)

    @classmethod
    def _check(cls) -> None:
        super()._check()
        if not hasattr(cls, "model"):
            raise RegistrationError(f"{cls.__qualname__} needs model = …, the read model's.")

    @classmethod
    def has_shared_rows(cls) -> bool:
        """Return whether events of several logs change one row."""
        return False


class Projection(RowProjection):
    """
    A read model whose rows are changed by methods with ``@handles``.

    By default there is one row for each log, whose primary key is a LogIdField.
    """

    _rows: Rows

    def key(self, record: EventRecord) -> Hashable | None:
        """
        Return the primary key of the row that an event changes; None passes over the event.

        By default it is the log's id. With another one, such as a day, events of several logs
        change one row: then there can be but one partition, and no inline mode.
        """
        return record.log_id

    def delete(self, row: Any) -> None:
        """Let a handler delete its row; a later event of the log begins with a new one."""
        self._rows.delete(row)

    def change(self, records: Sequence[EventRecord], using: str, *, anew: bool = False) -> None:
        keys = [self._call("key", record) for record in records]
        loaded = () if anew else (key for key in keys if key is not None)
        rows = self._rows = Rows(self.model, loaded, using)
        handlers = self._handlers
        for key, record in zip(keys, records, strict=True):
            name = handlers.get(type(record.event))
            if key is not None and name is not None:
                self._call(name, record, rows[key])
        rows.write()

    def row_of(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        rows = self._rows = Rows(self.model, (), using)
        for record in records:
            name = self._handlers.get(type(record.event))
            if name is not None and self.key(record) is not None:
                self._call(name, record, rows[log_id])
        return rows.get(log_id)

    @classmethod
    def has_shared_rows(cls) -> bool:
        return cls.key is not Projection.key

    @classmethod
    def _check(cls) -> None:
        super()._check()
        if cls.has_shared_rows() and (cls.partitions != 1 or cls.mode == cls.INLINE):
            raise RegistrationError(
                f"{cls.__qualname__} has a key() of its own, so events of several logs change one "
                f"row: it must be Projection.ASYNC, with partitions = 1."
            )


class ReductionProjection(RowProjection):
    """A read model with one row for each log of an aggregate, made of its reduction."""

    aggregate: ClassVar[type[Aggregate]]
    folds_whole_logs = True

    def __init__(self, model: type[models.Model] | None = None) -> None:
        """Keep the rows in another table than the model's, where ``model`` says so."""
        super().__init__(model)
        # Of logs that were at work lately. A reduction of a version is the same for good, so
        # what a transaction takes back need not be taken back here.
        self._reductions: OrderedDict[LogId, Reduction[Any]] = OrderedDict()

    def to_row(self, reduction: Reduction[Any]) -> Any:
        """
        Return the row, or its fields: by default those named like the aggregate's.

        None says that there is to be no row.
        """
        return {
            field.attname: getattr(reduction.aggregate, field.attname)
            for field in self.model._meta.concrete_fields
            if not field.primary_key and hasattr(reduction.aggregate, field.attname)
        }

    def change(self, records: Sequence[EventRecord], using: str, *, anew: bool = False) -> None:
        by_log: dict[LogId, list[EventRecord]] = {}
        for record in records:
            by_log.setdefault(record.log_id, []).append(record)
        rows = Rows(self.model, (), using)
        gone: list[LogId] = []
        for log_id, reduction in self._reductions_of(by_log, using):
            try:
                row = self._row(reduction, using)
            except (Exception, SystemExit) as error:
                raise Failed(by_log[log_id][0].position, error) from error
            if row is None:
                gone.append(log_id)
            else:
                rows.put(row)
        if gone:
            self.model._base_manager.using(using).filter(pk__in=gone).delete()
        rows.write()

    def row_of(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        version = max((record.index + 1 for record in records), default=None)
        if version is None:
            return None
        reduction = LogManager(self.aggregate, using=using).reduce(log_id, version=version)
        return self._row(reduction, using)

    def row_at_once(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        return self._row(fold(nothing(self.aggregate, log_id), records), using)

    def _reductions_of(
        self, by_log: dict[LogId, list[EventRecord]], using: str
    ) -> Iterator[tuple[LogId, Reduction[Any]]]:
        """Yield the reductions as of the last records: not later ones, which are not settled."""
        missing: list[LogId] = []
        for log_id, records in by_log.items():
            kept = self._reductions.pop(log_id, None)
            if kept is None and records[0].index == 0:
                kept = nothing(self.aggregate, log_id)
            if kept is None or kept.version != records[0].index:
                missing.append(log_id)
                continue
            try:
                reduction = fold(kept, records)
            except LogCorrupted:  # records were left out: parked or skipped ones
                missing.append(log_id)
                continue
            except (Exception, SystemExit) as error:
                raise Failed(records[0].position, error) from error
            yield log_id, self._keep(reduction)
        for log_id, reduction in self._load(missing, by_log, using):
            yield log_id, self._keep(reduction)

    def _load(
        self, log_ids: list[LogId], by_log: dict[LogId, list[EventRecord]], using: str
    ) -> Iterator[tuple[LogId, Reduction[Any]]]:
        """Yield reductions: of long logs one by one, as they are cached; of short ones at once."""
        manager, reader = LogManager(self.aggregate, using=using), EventReader()
        short: list[LogRow] = []
        for log_id in log_ids:
            last = by_log[log_id][-1]
            version = last.index + 1
            if version <= SHORT:
                short.append(LogRow(log_id, version, last.recorded_at, last.recorded_at))
                continue
            try:
                reduction = manager.reduce(log_id)
                if reduction.version != version:
                    reduction = manager.reduce(log_id, version=version)
            except (Exception, SystemExit) as error:
                raise Failed(by_log[log_id][0].position, error) from error
            yield log_id, reduction
        for log, events in scans.logs_with_events(using, short):
            stored = [each for each in events if each.index < log.version]
            try:
                start = nothing(self.aggregate, log.log_id)
                yield log.log_id, fold(start, reader.records(stored))
            except (Exception, SystemExit) as error:
                raise Failed(by_log[log.log_id][0].position, error) from error

    def _keep(self, reduction: Reduction[Any]) -> Reduction[Any]:
        self._reductions[reduction.log_id] = reduction
        if len(self._reductions) > MAX_REDUCTIONS:
            self._reductions.popitem(last=False)
        return reduction

    def _row(self, reduction: Reduction[Any], using: str) -> Any:
        row = self.to_row(reduction)
        if row is None:
            return None
        if isinstance(row, Mapping):
            row = self.model(**row)
        row.pk = reduction.log_id
        return fill(row, using)

    @classmethod
    def _types(cls) -> list[str] | None:
        return None

    @classmethod
    def _log_types(cls) -> list[str]:
        return [cls.aggregate.log_type]

    @classmethod
    def _check(cls) -> None:
        super()._check()
        if not hasattr(cls, "aggregate"):
            raise RegistrationError(f"{cls.__qualname__} needs aggregate = …, an Aggregate.")


class Reactor(BaseProjection):
    """
    Side effects of events: e-mails, webhooks, publishing. Methods ``(self, record)`` react.

    A handler is called **at least once** for each event, in the order of its log: again where
    its worker dies before the checkpoint is moved, or where it raised. Pass
    ``record.position`` on as the key by which the other side knows a repetition. It is called
    outside of a transaction. A reactor has no rows and is never rebuilt: what happened once
    does not happen again because somebody makes rows anew.

    ``start`` says where a reactor begins that has never run: ``Reactor.BEGINNING`` (the
    default) reacts to the whole history, ``Reactor.NOW`` only to what comes after its first run.
    """

    BEGINNING: Final = "beginning"
    NOW: Final = "now"
    start: ClassVar[str] = BEGINNING
    is_transactional = False

    @classmethod
    def pass_over(
        cls, *, dry_run: bool = False, by: str = "", using: str | None = None
    ) -> PassedOver:
        """
        Begin behind all that is settled now, and never react to what is before; say what that is.

        For after an import of old logs. Events that wait or are parked are passed over, too:
        they would let the events behind them in their logs go. A worker that runs goes on from
        there; it may be in the middle of one event. ``dry_run`` only says what it would be.
        ``by`` is who does it, for the reactor's history.

        Raise FeedUnavailable as the feed does.
        """
        return from_now.pass_over(cls, cls._using(using), dry_run=dry_run, by=by)

    apass_over = AsyncTwin(pass_over)

    def apply(self, records: Sequence[EventRecord], using: str) -> None:
        for record in records:
            name = self._handlers.get(type(record.event))
            if name is not None:
                self._call(name, record)

    @classmethod
    def _check(cls) -> None:
        super()._check()
        if cls.mode != cls.ASYNC:
            raise RegistrationError(f"{cls.__qualname__}: a reactor cannot be inline.")
        if cls.start not in (cls.BEGINNING, cls.NOW):
            raise RegistrationError(
                f"{cls.__qualname__}: start must be Reactor.BEGINNING or Reactor.NOW."
            )


def _log_id(value: LogId | str) -> LogId:
    return LogId.parse(value) if isinstance(value, str) else value


projections: dict[str, type[BaseProjection]] = {}


def projection(name: str, *, version: int = 1) -> Callable[[P], P]:
    """
    Name a projection or reactor; its checkpoint is kept under that name.

    The name has 1 to 100 characters. Raise ``version`` where rows must be made anew: a system
    check asks for a rebuild then.

    Raise RegistrationError for a name that another class has, and a class that cannot work.
    """

    def register(cls: P) -> P:
        known = projections.get(name)
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RegistrationError(f"Projection {name!r} is {known.__qualname__} already.")
        if not 1 <= len(name) <= MAX_PROJECTION_NAME_LENGTH:
            raise RegistrationError("A projection's name has 1 to 100 characters.")
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version < 2**31:
            raise RegistrationError(f"{name!r}: version must be an int from 1. Count it up by one.")
        cls.name, cls.version = name, version
        cls._check()
        projections[name] = cls
        appends.registered.pop(name, None)
        if issubclass(cls, RowProjection) and cls.mode == cls.INLINE:
            appends.registered[name] = appends.Participant(cls._log_types(), cls._follow)
        return cls

    return register


def handles(*events: type) -> Callable[[F], F]:
    """Let a method ``(self, row, record)`` change the row of a log for events of a class."""

    def mark(method: F) -> F:
        method._eventlogs_handles = events  # type: ignore[attr-defined]
        return method

    return mark
