"""
The read models of the campaigns: each ledger becomes a row, and letters.

A row depends on every entry of its ledger, and on their order, as the aggregate does. A handler
passes *steps* (see ``steps.py``), and entries with a special text make it fail.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from django.db import connection, models

from eventlogs import (
    EventRecord,
    LogId,
    LogIdField,
    LogManager,
    NeverCache,
    Projection,
    Reactor,
    handles,
    projection,
)
from eventlogs.models import Event, EventLog, ParkedEvent
from eventlogs.projections import checkpoints
from eventlogs.projections.base import projections
from eventlogs.stores.participants import Participant, registered
from tests.processes.stops import passing
from tests.reliability.ledgers import Entered, Ledger
from tests.sessions import end_session, own_session, sleep_in_the_database
from tests.tables import Table

FLAKY = "flaky"  # fails randomly, two times of three
POISON = "poison "  # fails each time until it is fixed; the kind of failure follows
LARGE = 64 * 2**20  # bytes


class LedgerRow(Table):
    """A row for each ledger."""

    log_id = LogIdField(primary_key=True)
    chain = models.CharField(max_length=16, default="", db_index=True)
    entries = models.IntegerField(default=0)
    total = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_reliability"

    def __str__(self):
        return str(self.log_id)


class Letter(Table):
    """One for each time that the reactor was called, in order."""

    log_id = LogIdField()
    index = models.IntegerField()

    class Meta:
        app_label = "tests_of_reliability"

    def __str__(self):
        return f"{self.log_id}/{self.index}"


MODELS: list[type[models.Model]] = [LedgerRow, Letter]

# The file that exists once the handlers are fixed.
fixed: list[Path] = []


class Quick:
    """Shorter times, so that campaigns do not wait; some processes have another time-out."""

    log_types: ClassVar[Iterable[str] | None] = ["ledger"]
    timeout = 1.0
    backoff = 0.02
    max_attempts = 3
    batch_size = 20


class Rows(Quick, Projection):
    model = LedgerRow

    @handles(Entered)
    def entered(self, row, record):
        passing("before the handler")
        misbehave(record)
        total, row.total = row.total, 0
        passing("in the handler")
        row.total = total
        Ledger.apply(row, record)
        passing("after the handler")


@projection("ledger-rows")
class LedgerRows(Rows):
    pass


@projection("shared-ledger-rows")
class SharedLedgerRows(Rows):
    """Its work is shared by up to four workers."""

    partitions = 4


@projection("inline-ledger-rows")
class InlineLedgerRows(Rows):
    mode = Projection.INLINE


class Writes(Quick, Reactor):
    """Writes its letters in autocommit mode: like real letters, they cannot be undone."""

    @handles(Entered)
    def write(self, record):
        passing("before the reaction")
        misbehave(record)
        Letter.objects.create(log_id=record.log_id, index=record.index)
        passing("after the reaction")


@projection("letters-of-ledgers")
class Letters(Writes):
    pass


@projection("shared-letters-of-ledgers")
class SharedLetters(Writes):
    partitions = 4


# Declared only on request: an inline projection takes part in every append to a ledger.
DECLARED = {
    each.name: each
    for each in (LedgerRows, SharedLedgerRows, InlineLedgerRows, Letters, SharedLetters)
}
PARTICIPANTS: dict[str, Participant] = {
    InlineLedgerRows.name: registered.pop(InlineLedgerRows.name)
}
for name in DECLARED:
    del projections[name]


def declare(names: list[str]) -> None:
    """Declare projections in this process."""
    projections.clear()
    for each in names:
        projections[each] = DECLARED[each]
        if each in PARTICIPANTS:
            registered[each] = PARTICIPANTS[each]


# Failures of handlers.


def misbehave(record: EventRecord) -> None:
    """Fail as the entry's text says."""
    text = record.event.text
    if text.startswith(FLAKY) and random.random() < 0.67:
        raise ValueError("this time it fails")
    if text.startswith(POISON) and not any(path.exists() for path in fixed):
        POISONS[text.removeprefix(POISON)]()


def raises() -> None:
    raise ValueError("it never works")


def sleeps() -> None:
    time.sleep(3_600)


def spins() -> None:
    while True:
        pass


def sleeps_in_the_database() -> None:
    sleep_in_the_database(3_600)


def loses_the_connection() -> None:
    end_session(own_session())


def breaks_the_transaction() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM a_table_that_is_missing")


def exits() -> None:
    os._exit(3)


def leaves() -> None:
    sys.exit("it leaves")


def eats_memory() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(LARGE))


POISONS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        raises,
        sleeps,
        spins,
        sleeps_in_the_database,
        loses_the_connection,
        breaks_the_transaction,
        exits,
        leaves,
        eats_memory,
    )
}


# Conditions at the end.


def ledgers() -> LogManager[Ledger]:
    """Return the ledgers by a replay of the events, without any cache."""
    return LogManager(Ledger, caching_policy=NeverCache())


def logs() -> Iterator[LogId]:
    for log in EventLog.objects.filter(log_type="ledger"):
        yield log.log_id


def wrong_rows() -> list[str]:
    """Return the differences between the rows and a replay."""
    rows = {row.log_id: (row.entries, row.total, row.chain) for row in LedgerRow.objects.all()}
    found = []
    for log_id in logs():
        truth = ledgers().reduce(log_id).aggregate
        row, wanted = rows.pop(log_id, None), (truth.entries, truth.total, truth.chain)
        if row != wanted:
            found.append(f"{log_id} is {row} in place of {wanted}")
    return found + [f"{log_id} has a row, and no log" for log_id in rows]


def wrong_letters() -> list[str]:
    """Return which letters are missing, or were first written out of order."""
    found = []
    for log_id in logs():
        written = Letter.objects.filter(log_id=log_id).order_by("pk")
        first_times = list(dict.fromkeys(written.values_list("index", flat=True)))
        if first_times != list(range(ledgers().version(log_id))):
            found.append(f"the letters of {log_id} are {first_times}")
    return found


def are_up_to_date(*names: str) -> bool:
    """Return whether all events are applied; retry parked events."""
    last = Event.objects.order_by("-position").values_list("position", flat=True).first() or 0
    done = True
    for name in names:
        each = DECLARED[name]
        if ParkedEvent.objects.filter(projection=name).exists():
            done = False
            for parked in each.parked():
                each.retry(parked.log_id)
        elif checkpoints.position(name, "default") < last:
            # Not wait_for(): an inline row may have the last event, and another one lack its own.
            done = False
    return done
