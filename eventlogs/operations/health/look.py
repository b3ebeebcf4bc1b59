"""
One look at a database: the state that its parts share, and errors of a part as findings.

In PostgreSQL each part reads in a transaction of its own, READ ONLY and with a statement_timeout:
a look changes nothing, and a locked table delays it by a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from shlex import quote
from typing import Any, Final

from django.db import DatabaseError, ProgrammingError, connections, transaction

from eventlogs.exceptions import EventLogError
from eventlogs.operations.commands import command
from eventlogs.operations.health.findings import ACT, Finding
from eventlogs.projections.base import BaseProjection, declared

PATIENCE: Final = 5.0  # seconds that one part may take, in PostgreSQL
CANCELLED: Final = "57014"  # PostgreSQL's code of a statement that took too long
INSUFFICIENT_PRIVILEGE: Final = "42501"  # likewise

# Sessions with a lock that excludes readers of our tables; none if the database is slow.
LOCKS: Final = (
    "SELECT relation::regclass, pid, usename, application_name, state, xact_start FROM pg_locks "
    "LEFT JOIN pg_stat_activity USING (pid) WHERE granted AND mode = 'AccessExclusiveLock' "
    r"AND relation::regclass::text ~ '\meventlogs_';"
)

READ_ONLY: Final = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY"

# For this transaction; a shorter limit of the session stays.
LIMIT: Final = """
SELECT set_config('statement_timeout', CASE
    WHEN current_setting('statement_timeout')::interval
         BETWEEN interval '1 ms' AND %(interval)s::interval
    THEN current_setting('statement_timeout') ELSE %(limit)s END, true)
"""


@dataclass(slots=True)
class Unknown:
    """An event type that this release does not know, and its events."""

    since: datetime
    events: int = 0  # of the newest ones
    logs: int = 0  # that projections hold for it
    held_by: set[str] = field(default_factory=set)
    is_ours: bool = False  # in logs whose type an aggregate here has


@dataclass(slots=True)
class Look:
    """
    The state that the parts of a look share: database, time, limits, and results so far.

    ``settled`` and ``newest`` are positions, None where they cannot be known. ``is_held`` says
    that an event has waited long for a transaction that holds the feed back.
    """

    using: str
    now: datetime
    limits: Mapping[str, float]
    settled: int | None = None
    newest: int | None = None
    is_there: bool = False  # the database answers, and has its tables
    is_held: bool = False
    unknown: dict[tuple[str, int], Unknown] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    by_projection: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def connection(self) -> Any:
        """The database's connection."""
        return connections[self.using]

    @property
    def is_postgresql(self) -> bool:
        """Whether the database is PostgreSQL."""
        return bool(self.connection.vendor == "postgresql")

    @property
    def role(self) -> str:
        """The database role of this process, as a shell reads it."""
        return quote(str(self.connection.settings_dict.get("USER") or "ROLE"))

    @property
    def max_deploy(self) -> timedelta:
        """How long a deployment may take."""
        return timedelta(seconds=self.limits["MAX_DEPLOY"])

    def finding(
        self,
        code: str,
        level: str,
        message: str,
        action: str = "",
        command: str = "",
        *,
        subject: str = "",
        since: datetime | None = None,
        **figures: float,
    ) -> Finding:
        """Return a finding, by default about the database itself."""
        return Finding(code, level, subject or self.using, message, since, action, command, figures)

    def command(self, text: str) -> str:
        """Return a subcommand that can be pasted, for this database."""
        return command(text, using=self.using)

    def projections(self) -> dict[str, type[BaseProjection]]:
        """Return the projections that can run on this database, by name."""
        return {each.name: each for each in declared(BaseProjection, using=self.using)}


Part = Callable[[Look], Iterable[Finding]]


def ask(look: Look, what: str, part: Part) -> Iterator[Finding]:
    """Yield the findings of a part; if it fails, a finding about that."""
    if not look.is_there:
        return
    found: list[Finding] = []
    try:
        with reading(look):
            found.extend(part(look))
    except Exception as error:
        found.append(unknown(look, what, error))
        connection = look.connection
        if not connection.in_atomic_block and not connection.is_usable():
            connection.close()
            look.is_there = False  # the connection was lost meanwhile
    yield from found


@contextmanager
def reading(look: Look) -> Iterator[None]:
    """Read in a new transaction, or in a savepoint of the caller's: an error leaves it usable."""
    connection = look.connection
    if connection.in_atomic_block:
        with transaction.atomic(using=look.using):
            yield
    elif look.is_postgresql:
        with transaction.atomic(using=look.using):
            with connection.cursor() as cursor:
                cursor.execute(READ_ONLY)
                limit = str(round(PATIENCE * 1000))
                cursor.execute(LIMIT, {"limit": limit, "interval": f"{limit} ms"})
            yield
    else:
        # No transaction: SQLite would take its write lock.
        yield


def unknown(look: Look, what: str, error: Exception) -> Finding:
    """Return the finding about a part that failed."""
    cause: Any = error.__cause__
    state = getattr(cause, "sqlstate", None)
    if state == INSUFFICIENT_PRIVILEGE:
        return look.finding(
            "permission",
            ACT,
            f"{what} cannot be checked: the database role may not read the tables.",
            "Table owner: run the SQL that this command prints:",
            look.command(f"grants {look.role}"),
        )
    if state == CANCELLED:
        return look.finding(
            "unknown",
            ACT,
            f"{what} cannot be checked: the database took longer than {PATIENCE:.0f} seconds.",
            "Database administrator: find the session that locks tables of eventlogs, or the "
            "reason why the database is slow:",
            LOCKS,
        )
    if isinstance(error, ProgrammingError):
        return look.finding(
            "tables",
            ACT,
            f"{what} cannot be checked: the tables are not those of this release "
            f"({type(error).__name__}).",
            "Deployer: migrate the database:",
            f"manage.py migrate eventlogs --database {look.using}",
        )
    # The text of another error may quote payload data.
    why = f" {error}" if isinstance(error, EventLogError) else ""
    kind = (
        "the database gave an error" if isinstance(error, DatabaseError) else "there was an error"
    )
    return look.finding(
        "unknown",
        ACT,
        f"{what} cannot be checked: {kind} ({type(error).__name__}).{why}",
        "Developer: read the log of this process.",
    )
