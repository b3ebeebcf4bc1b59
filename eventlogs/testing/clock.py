"""
The clock of ``recorded_at``, stopped for a test.

Stores take the time from the database, which no library that freezes Python's clock can reach. So
the statements that append are changed on their way, by Django's own means
(https://docs.djangoproject.com/en/stable/topics/db/instrumentation/): the time is written in the
place of the database's clock. Nothing else of a statement changes, and no other statement does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from django.apps import apps
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.sql import Query
from django.utils import timezone

from eventlogs.stores.clock import UTCNow
from eventlogs.utils.twins import AsyncBlock

TABLES: Final = ("eventlogs_eventlog", "eventlogs_idempotencykey")  # whose times are the clock's
WRITES: Final = ("INSERT", "REPLACE", "UPDATE", "WITH")
LITERALS: Final = {"postgresql": "TIMESTAMPTZ '{}'", "mysql": "TIMESTAMP'{}'"}
FORMAT: Final = "%Y-%m-%d %H:%M:%S.%f"  # in UTC; the text that SQLite's columns hold

_stopped: list[freeze_recorded_at] = []


def now() -> datetime:
    """Return the moment at which the clock is stopped, or the time where it is not."""
    return _stopped[-1].moment if _stopped else timezone.now()


class freeze_recorded_at(AsyncBlock):
    """
    Stop the clock of ``recorded_at`` at ``moment``, an aware datetime, within a ``with`` block.

    All appends of the block have that time, in the database and in a MemoryStore; ``given`` takes
    it, too. An event that follows a later one of its log gets the later one's time: time does not
    run backwards within a log. ``using`` is the alias of one database; without it, all are meant.
    ``forward(delta)`` moves the clock on, ``move_to(moment)`` anywhere::

        with freeze_recorded_at(MONDAY) as clock:
            state = Loan.logs.create(Granted(100))
            clock.forward(timedelta(days=1))
            Loan.logs.append(state, Repaid(30))

    It is an async context manager, too. Times of a log's row and of idempotency keys are stopped,
    the time inside of a new log id is not. The connections of the current thread are meant, or, in
    async code, those of its database thread: other threads and processes keep their clock. Raise
    ValueError for a naive datetime.
    """

    def __init__(self, moment: datetime, *, using: str | None = None) -> None:
        self.moment = _aware(moment)
        self._using = using
        self._stack = ExitStack()

    def forward(self, by: timedelta) -> None:
        """Move the clock on by a timedelta."""
        self.moment += by

    def move_to(self, moment: datetime) -> None:
        """Set the clock to an aware datetime. Raise ValueError for a naive one."""
        self.moment = _aware(moment)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for alias in connections if self._using is None else (self._using,):
                connection = connections[alias]
                stack.enter_context(connection.execute_wrapper(_Rewriter(self, connection)))
            _stopped.append(self)
            stack.callback(_stopped.remove, self)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


class _Rewriter:
    """Writes the stopped time into statements of one connection."""

    def __init__(self, clock: freeze_recorded_at, connection: BaseDatabaseWrapper) -> None:
        self._clock = clock
        self._connection = connection
        self._clocks: tuple[str, ...] = ()

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        if isinstance(sql, str) and _is_append(sql):
            for each in self._clocks or self._look_up():
                sql = sql.replace(each, self._literal())
        return execute(sql, params, many, context)

    def _look_up(self) -> tuple[str, ...]:
        """Return how statements of this database ask for the time."""
        # By name, so that this module can be imported before models can be.
        query = Query(apps.get_model("eventlogs", "EventLog"))
        compiler = query.get_compiler(self._connection.alias)
        portable, _ = compiler.compile(UTCNow())
        self._clocks = (portable, "clock_timestamp()")
        return self._clocks

    def _literal(self) -> str:
        moment = self._clock.moment.astimezone(UTC)
        if self._connection.vendor == "postgresql":
            return LITERALS["postgresql"].format(moment.isoformat())
        return LITERALS.get(self._connection.vendor, "'{}'").format(moment.strftime(FORMAT))


def _is_append(sql: str) -> bool:
    """Return whether a statement may write a log's row or a key, and so ask for the time."""
    return sql.lstrip()[:7].upper().startswith(WRITES) and any(table in sql for table in TABLES)


def _aware(moment: datetime) -> datetime:
    if not isinstance(moment, datetime) or timezone.is_naive(moment):
        raise ValueError(f"moment is {moment!r}. It must be a datetime with a time zone.")
    return moment
