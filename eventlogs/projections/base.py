"""
Declarations of projections: name, version, events to read, handlers; and the registry of them.

The classes here hold declarations only. The modules that run projections import this one, never
the other way round. The methods that users call are in ``operations.py``, the
classes that users subclass are in ``kinds.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from django.db import models, router
from django.db.models import QuerySet

from eventlogs.events.registry import registry
from eventlogs.exceptions import KeyUnavailable, ProjectionUnavailable, RegistrationError
from eventlogs.ids import LogId
from eventlogs.models import Event, EventLog, ProjectionState
from eventlogs.projections.databases import has_table
from eventlogs.routing import databases_of, write_alias
from eventlogs.values import EventRecord

BATCH: Final = 1_000  # events that are applied in one transaction
TIMEOUT: Final = 30.0  # seconds that a transaction, or a reactor's handler, may take
MAX_ATTEMPTS: Final = 5
BACKOFF: Final = 1.0  # seconds before the second attempt, doubled for each further one
MAX_PARTITIONS: Final = 256
MAX_BATCH: Final = 10_000

F = TypeVar("F", bound=Callable[..., Any])


class Failed(Exception):
    """
    An event could not be applied.

    ``position`` is None where it is not known which event it was. ``is_lost`` says that the
    database connection was lost during the attempt, and that a new one works.
    """

    def __init__(
        self, position: int | None, error: BaseException, *, is_lost: bool = False
    ) -> None:
        super().__init__(position)
        self.position = position
        self.error = error
        self.is_lost = is_lost


class BaseProjection:
    """
    Base of projections and reactors; each reads the feed of the events' database.

    Class attributes: ``log_types`` are the types of the logs to read (None: all).
    ``partitions`` is how many workers can share the work, by parts of the logs. ``batch_size``
    is how many events are applied in one transaction. ``timeout`` is how many seconds that
    transaction, or a reactor's handler, may take before it is interrupted; a lease lasts 2 seconds
    longer. An event that fails is tried ``max_attempts`` times, the second time after ``backoff``
    seconds, doubled each time up to five minutes. Then it is parked.

    ``databases`` are the aliases of the databases whose logs it reads, each for itself: rows and
    checkpoints are in the database of the logs. By default (None) these are all databases over
    which a router spreads logs and that have its table; without such a router, the one that logs
    are written to. An inline projection also takes part in the appends of other databases that
    have its table, unless ``databases`` leaves them out.

    Methods take ``using``, the alias of the database that is meant. By default it is that of the
    log, where the call is about one, and otherwise all of them.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    ASYNC: Final = "async"
    INLINE: Final = "inline"
    mode: ClassVar[str] = ASYNC
    log_types: ClassVar[Iterable[str] | None] = None
    databases: ClassVar[Iterable[str] | None] = None
    partitions: ClassVar[int] = 1
    batch_size: ClassVar[int] = BATCH
    timeout: ClassVar[float] = TIMEOUT
    max_attempts: ClassVar[int] = MAX_ATTEMPTS
    backoff: ClassVar[float] = BACKOFF
    is_transactional: ClassVar[bool] = True
    publishes: ClassVar[bool] = False  # whole batches, outside of the transaction
    reads_from: ClassVar[Mapping[str, str]] = {}  # replicas, by database: see Publisher
    with_personal_data: ClassVar[bool] = True  # its records have them; otherwise stand-ins
    event_handlers: ClassVar[Mapping[type, str]] = {}  # event classes and names of methods

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
        cls.event_handlers = handlers

    @property
    def is_inline(self) -> bool:
        """Whether its rows change in the appends' own transactions."""
        return self.mode == self.INLINE

    def apply(self, records: Sequence[EventRecord], using: str) -> None:
        """Apply records; raise Failed with the position of one that cannot be applied."""
        raise NotImplementedError

    def call_handler(self, name: str, record: EventRecord, *args: Any) -> Any:
        """Call a method of the user's with a record; raise Failed where it raises."""
        try:
            return getattr(self, name)(*args, record)
        except KeyUnavailable:  # of this process' settings: no event has caused it
            raise
        except (Exception, SystemExit) as error:
            raise Failed(record.position, error) from error

    @classmethod
    def event_types_read(cls) -> list[str] | None:
        """Return the names of the event types that it handles; None for all."""
        return registry.names_of(cls.event_handlers)

    @classmethod
    def log_types_read(cls) -> list[str] | None:
        """Return the types of the logs that it reads; None for all."""
        if cls.log_types is None:
            return None
        return [cls.log_types] if isinstance(cls.log_types, str) else list(cls.log_types)

    @classmethod
    def logs_read(cls, using: str) -> QuerySet[EventLog]:
        """Return the logs that it reads, in a database."""
        logs: QuerySet[EventLog] = EventLog.objects.using(using)
        log_types = cls.log_types_read()
        return logs if log_types is None else logs.filter(log_type__in=log_types)

    @classmethod
    def starts_now(cls) -> bool:
        """Return whether its first run begins after all events that are settled by then."""
        return False

    @classmethod
    def database_alias(cls, *, using: str | None = None) -> str:
        """
        Return the alias of the database to work on, by default the one that logs are written to.

        Raise RegistrationError for a class without ``@projection()``, and for rows that are
        routed to another database; ProjectionUnavailable for a database without its table, and
        for one that its ``databases`` leave out.
        """
        if not cls.name:
            raise RegistrationError(
                f"{cls.__qualname__} has no name. Put @projection('…') above it."
            )
        if using is None:
            using = router.db_for_write(Event)
            named = cls.databases_named()
            return using if named is None or using in named else named[0]
        if not cls.runs_in(using):
            raise ProjectionUnavailable("database", projection=cls.name)
        return using

    @classmethod
    def databases_named(cls) -> tuple[str, ...] | None:
        """Return the aliases that ``databases`` names, or None where it names none."""
        if cls.databases is None:
            return None
        return (cls.databases,) if isinstance(cls.databases, str) else tuple(cls.databases)

    @classmethod
    def runs_in(cls, using: str) -> bool:
        """Return whether its ``databases`` allow this one."""
        named = cls.databases_named()
        return named is None or using in named

    @classmethod
    def has_tables_in(cls, using: str) -> bool:
        """Return whether what it keeps has a table in a database."""
        return True

    @classmethod
    def database_aliases(cls, *, using: str | None = None) -> list[str]:
        """
        Return the aliases of the databases that it runs on, or the one given.

        Databases over which a router spreads logs are left out while they lack its table: each of
        the others is worked on meanwhile. Raise what ``database_alias`` raises.
        """
        if using is not None:
            return [cls.database_alias(using=using)]
        named = cls.databases_named()
        if named is not None:
            return [cls.database_alias(using=each) for each in named]
        spread = [each for each in databases_of() if cls.has_tables_in(each)]
        return [cls.database_alias(using=each) for each in spread] or [cls.database_alias()]

    @classmethod
    def alias_of_log(cls, log_id: LogId, *, using: str | None = None) -> str:
        """Return the alias of the database of a log: the one given, or the one it is written to."""
        if using is None:
            named = cls.databases_named()
            using = named[0] if named is not None and len(named) == 1 else write_alias(log_id)
        return cls.database_alias(using=using)

    @classmethod
    def check_declaration(cls) -> None:
        """Raise RegistrationError for a class that cannot work as it is written."""
        if cls.mode not in (cls.ASYNC, cls.INLINE):
            raise RegistrationError(
                f"{cls.__qualname__}: mode must be Projection.ASYNC or Projection.INLINE."
            )
        if not (isinstance(cls.partitions, int) and 1 <= cls.partitions <= MAX_PARTITIONS):
            raise RegistrationError(
                f"{cls.__qualname__}: partitions is {cls.partitions!r}. It must be an int from 1 "
                f"to {MAX_PARTITIONS}."
            )
        if not (isinstance(cls.batch_size, int) and 1 <= cls.batch_size <= MAX_BATCH):
            raise RegistrationError(
                f"{cls.__qualname__}: batch_size is {cls.batch_size!r}. It must be an int from 1 "
                f"to {MAX_BATCH:,}."
            )
        if cls.timeout <= 0 or cls.max_attempts < 1 or cls.backoff < 0:
            raise RegistrationError(
                f"{cls.__qualname__}: timeout must be positive, max_attempts from 1, and "
                f"backoff not negative."
            )
        if cls.reads_from and not cls.publishes:
            raise RegistrationError(
                f"{cls.__qualname__} is no Publisher, so it has no reads_from: its events are read "
                f"where its rows and checkpoints are. Leave it out."
            )
        if cls.databases_named() == ():
            raise RegistrationError(
                f"{cls.__qualname__}: databases is empty. Name the aliases of databases, or leave "
                f"it out."
            )
        for each in cls.event_handlers:
            if registry.by_class(each) is None:
                raise RegistrationError(
                    f"{cls.__qualname__} handles {each!r}, which is no event: put @event('…') "
                    f"above its @dataclass."
                )


class RowProjection(BaseProjection):
    """A projection that keeps rows."""

    model: ClassVar[type[models.Model]]
    folds_whole_logs: ClassVar[bool] = False  # also the events that a person has said to skip

    def __init__(self, *, model: type[models.Model] | None = None) -> None:
        """Keep the rows in another table than the model's, where ``model`` says so."""
        if model is not None:
            self.model = model  # type: ignore[misc]

    def change(self, records: Sequence[EventRecord], using: str, *, blank: bool = False) -> None:
        """Apply records inside of a transaction; ``blank`` begins with blank rows."""
        raise NotImplementedError

    def apply(self, records: Sequence[EventRecord], using: str) -> None:
        self.change(records, using)

    def row_of(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        """Return the row that a log should have, made of all of its records; None for none."""
        raise NotImplementedError

    def row_in_memory(self, log_id: LogId, records: Iterable[EventRecord], using: str) -> Any:
        """Do the same as ``row_of``, for records that are all in memory: nothing is read."""
        return self.row_of(log_id, records, using)

    @classmethod
    def has_shared_rows(cls) -> bool:
        """Return whether events of several logs change one row."""
        return False

    @classmethod
    def needs_rebuild(cls, state: ProjectionState | None) -> bool:
        """Return whether the rows of this state were made by another version, or mode."""
        return state is not None and (state.version != cls.version or state.mode != cls.mode)

    @classmethod
    def keeps_rows_in(cls, using: str) -> bool:
        """
        Return whether there can be rows for the logs of a database.

        Raise RegistrationError where the rows of the default one are routed elsewhere.
        """
        if not cls.runs_in(using):
            return False
        if using == router.db_for_write(Event):
            return cls.database_alias(using=using) == using
        return has_table(cls.model, using)

    @classmethod
    def has_tables_in(cls, using: str) -> bool:
        return has_table(cls.model, using)

    @classmethod
    def database_alias(cls, *, using: str | None = None) -> str:
        using, home = super().database_alias(using=using), router.db_for_write(Event)
        if using != home:
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
    def check_declaration(cls) -> None:
        super().check_declaration()
        if not hasattr(cls, "model"):
            raise RegistrationError(f"{cls.__qualname__} needs model = …, the class of its rows.")


P = TypeVar("P", bound=BaseProjection)

projections: Final[dict[str, type[BaseProjection]]] = {}
"""The projections and reactors that are declared, by name."""


def declared(kind: type[P], *, using: str | None = None) -> list[type[P]]:
    """Return the declared projections of a kind, by name; with ``using``, those that run there."""
    return [
        each
        for _, each in sorted(projections.items())
        if issubclass(each, kind) and (using is None or _can_run(each, using))
    ]


def _can_run(projection: type[BaseProjection], using: str) -> bool:
    if issubclass(projection, RowProjection):
        return projection.keeps_rows_in(using)
    return projection.runs_in(using)


def handles(*events: type) -> Callable[[F], F]:
    """
    Mark a method as the handler of events of these classes.

    A Projection calls it as ``(self, row, record)`` to change the row, a Reactor as
    ``(self, record)``. A class that handles an event twice raises RegistrationError.
    """

    def mark(method: F) -> F:
        method._eventlogs_handles = events  # type: ignore[attr-defined]
        return method

    return mark
