"""
Import the road traffic fines: a log for each case, an event for each row.

You can run it repeatedly. The idempotency key of a row is its case and its number within the case,
so a row that was imported before is not appended again, and a run continues where an interrupted
one has stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, router, transaction

from eventlogs import (
    EventLogError,
    IdempotencyKeyReused,
    LogManager,
    LogState,
    event_context,
)
from eventlogs.models import Event
from example_project.fines.events import Fine
from example_project.fines.models import FineBalance
from example_project.fines.projections import FineBalances
from example_project.fines.rows import BadRow, Row, read

BATCH = 500  # rows of one transaction: an interrupted run loses at most these

T = TypeVar("T")


@dataclass(slots=True)
class Case:
    """The progress of a case while the file is read."""

    state: LogState
    rows: int
    total_paid: Decimal  # of the last row that has it
    line: int  # of that row


class Command(BaseCommand):
    """Import road traffic fines."""

    help = "Imports road traffic fines from a CSV file. Running it again appends nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="The CSV file.")
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help='The alias in DATABASES to import into. Defaults to "default".',
        )

    def handle(self, *args: Any, file: Path, database: str, **options: Any) -> None:
        check_database(database)
        self.using = database
        self.fines = LogManager(Fine, using=database)
        self.cases: dict[str, Case] = {}
        self.appended = 0
        try:
            # utf-8-sig: spreadsheet programs write a byte order mark
            with file.open(encoding="utf-8-sig", newline="") as rows:
                self.import_rows(rows)
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror or error}.") from error
        except BadRow as error:
            raise CommandError(f"{file}, {error} Nothing was imported.") from error
        self.report(self.check_totals())
        # The routers place the read model in one database. It has no rows for logs of another.
        if database == router.db_for_write(FineBalance):
            self.report_balances()

    # Who did it, in the metadata of each event. For requests, the middleware adds it.
    @event_context(user="import_fines")
    def import_rows(self, file: TextIO) -> None:
        """Append the rows that were not imported before, or none if a line is invalid."""
        for _ in read(file):
            pass
        file.seek(0)
        for batch in batches(read(file), BATCH):
            with transaction.atomic(using=self.using):
                for row in batch:
                    self.import_row(row)

    def import_row(self, row: Row) -> None:
        """Append a row, unless it was imported before."""
        case = self.cases.get(row.case)
        number = case.rows + 1 if case else 1
        key = f"{row.case}:{number}"
        try:
            if case is None:
                state, appended = self.fines.get_or_create(row.event, idempotency_key=key)
                case = self.cases[row.case] = Case(state, 0, Decimal(0), row.line)
            else:
                state, appended = self.fines.get_or_append(
                    case.state, row.event, idempotency_key=key
                )
        except IdempotencyKeyReused:
            raise CommandError(
                f"line {row.line}: row {number} of case {row.case} was imported before with other "
                f"values. Stored events are never changed: restore the row, and add a correction "
                f"at the end of the case. (If no row was changed, SECRET_KEY was: add the old one "
                f"to SECRET_KEY_FALLBACKS.)"
            ) from None
        except EventLogError as error:
            raise CommandError(f"line {row.line}: case {row.case}: {error}") from error
        case.state, case.rows = state, number
        if row.total_paid is not None:
            case.total_paid, case.line = row.total_paid, row.line
        self.appended += appended

    def check_totals(self) -> Decimal:
        """Compare each log with the file's own sums, and return the sum of all payments."""
        total = Decimal(0)
        for name, case in self.cases.items():
            fine = self.fines.reduce(case.state.log_id)
            if fine.version != case.rows:
                raise CommandError(
                    f"case {name}: its log has {fine.version} events, but the file has "
                    f"{case.rows} rows. Import the file with all rows of the case."
                )
            if fine.aggregate.paid != case.total_paid:
                raise CommandError(
                    f"case {name}: its payments do not add up to the totalPaymentAmount in line "
                    f"{case.line}. The log has the events of the rows: the file contradicts itself."
                )
            total += fine.aggregate.paid
        return total

    def report(self, total: Decimal) -> None:
        """Print the figures of the import."""
        there = sum(case.rows for case in self.cases.values()) - self.appended
        for label, figure in (
            ("cases", f"{len(self.cases):,}"),
            ("events appended", f"{self.appended:,}"),
            ("already there", f"{there:,}"),
            ("paid in total", f"{total:,}"),
        ):
            self.stdout.write(f"{label:<16}{figure:>16}")
        if self.appended:
            done = "Imported. The payments of each log add up to the total in the file."
        else:
            done = "Nothing to import. The payments of each log add up to the total in the file."
        self.stdout.write(done, self.style.SUCCESS)

    def report_balances(self) -> None:
        """Bring the read model up to date, and print its balances."""
        FineBalances.catch_up()
        owed: dict[str, list[Decimal]] = {}
        # Summed up in Python, because SQLite would use binary floats.
        for status, outstanding in FineBalance.objects.values_list("status", "outstanding"):
            owed.setdefault(status, []).append(outstanding)
        self.stdout.write("")
        self.stdout.write(f"{'balances':<21}{'fines':>11}{'outstanding':>16}")
        for status, amounts in sorted(owed.items()):
            self.stdout.write(f"{status:<21}{len(amounts):>11,}{sum(amounts):>16,}")


def check_database(alias: str) -> None:
    """Raise CommandError if a database does not answer or is not migrated."""
    try:
        tables = connections[alias].introspection.table_names()
    except DatabaseError as error:
        raise CommandError(f"The database {alias!r} does not answer: {error}") from error
    if Event._meta.db_table not in tables:
        raise CommandError(
            f"The database {alias!r} has no tables. Run: manage.py migrate --database {alias}"
        )


def batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield lists of at most ``size`` items."""
    while batch := list(islice(items, size)):
        yield batch
