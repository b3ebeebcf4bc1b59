"""Read models of accounts for the tests, and the projections that keep them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from django.db import models
from django.db.models import F

from eventlogs import (
    EventRecord,
    LogIdField,
    Projection,
    Reactor,
    ReductionProjection,
    handles,
    projection,
)
from eventlogs.models import ParkedEvent
from eventlogs.projections.base import BaseProjection, projections
from eventlogs.stores.participants import registered
from tests import processes
from tests.accounts import Account, Deposited, Noted, Opened, Withdrawn
from tests.tables import Table


class Balance(Table):
    """A row for each account."""

    log_id = LogIdField(primary_key=True)
    owner = models.CharField(max_length=50, default="", db_index=True)
    balance = models.IntegerField(default=0)
    seen = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_projections"
        indexes = [models.Index(fields=["balance", "owner"], name="balance_and_owner")]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(seen__gte=0), name="balance_is_seen_from_zero_on"
            )
        ]

    def __str__(self):
        return str(self.log_id)

    def see(self, record):
        """Count an event, and check that each is applied once and in order."""
        behaviour["before"](record)
        self.seen += 1


class Reduced(Table):
    """The aggregate as a row."""

    log_id = LogIdField(primary_key=True)
    owner = models.CharField(max_length=50, default="")
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_projections"

    def __str__(self):
        return str(self.log_id)


class Day(Table):
    """A row for all accounts of an owner."""

    owner = models.CharField(max_length=50, primary_key=True)
    deposits = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_projections"

    def __str__(self):
        return self.owner


class Inlined(Table):
    """A row for each account, changed with each append."""

    log_id = LogIdField(primary_key=True)
    balance = models.IntegerField(default=0)
    seen = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_projections"

    def __str__(self):
        return str(self.log_id)


MODELS: list[type[models.Model]] = [Balance, Reduced, Day, Inlined]

# Hook of the tests: a function that is called before each event is handled.
behaviour: dict[str, Callable[[EventRecord], None]] = {}


def nothing(record: EventRecord) -> None:
    """Do nothing."""


def reset() -> None:
    """Reset the handlers to their normal behaviour."""
    behaviour["before"] = nothing


reset()


class Fast:
    """Shorter times, so that tests do not wait."""

    timeout = 5.0
    backoff = 60.0  # long: tests that need an early retry shorten it
    max_attempts = 3
    log_types: ClassVar[Iterable[str] | None] = ["account"]


@projection("balances", version=1)
class Balances(Fast, Projection):
    model = Balance
    mode = Projection.ASYNC

    @handles(Opened)
    def opened(self, row, record):
        row.see(record)
        row.owner = record.event.owner

    @handles(Deposited)
    def deposited(self, row, record):
        row.see(record)
        row.balance += record.event.amount

    @handles(Withdrawn)
    def withdrawn(self, row, record):
        row.see(record)
        row.balance -= record.event.amount

    @handles(Noted)
    def noted(self, row, record):
        row.see(record)
        if record.event.note == "close":
            self.delete(row)


@projection("reduced-balances")
class ReducedBalances(ReductionProjection):
    timeout = 5.0
    backoff = 60.0  # long: tests that need an early retry shorten it
    aggregate = Account
    model = Reduced


@projection("deposits-by-owner")
class DepositsByOwner(Fast, Projection):
    model = Day

    def key(self, record):
        return record.metadata.get("owner")

    @handles(Deposited)
    def deposited(self, row, record):
        behaviour["before"](record)
        row.deposits += record.event.amount


@projection("inlined-balances")
class InlinedBalances(Fast, Projection):
    model = Inlined
    mode = Projection.INLINE

    @handles(Deposited)
    def deposited(self, row, record):
        behaviour["before"](record)
        row.seen += 1
        row.balance += record.event.amount

    @handles(Withdrawn)
    def withdrawn(self, row, record):
        behaviour["before"](record)
        row.seen += 1
        row.balance -= record.event.amount


# The calls of the reactor's handlers: event types and positions.
reactions: list[tuple[str, int]] = []


@projection("letters")
class Letters(Fast, Reactor):
    @handles(Deposited, Withdrawn)
    def write(self, record):
        behaviour["before"](record)
        reactions.append((record.type, record.position))


@contextmanager
def declaring(known: Mapping[str, type[BaseProjection]]) -> Iterator[None]:
    """Declare these projections, and no others."""
    before = dict(projections)
    projections.clear()
    projections.update(known)
    try:
        yield
    finally:
        projections.clear()
        projections.update(before)


def balances(model=Balance):
    """Return the balances in the rows, by log."""
    return dict(model.objects.values_list("log_id", "balance"))


def replayed(*states):
    """Return the balances by a replay of the logs."""
    return {state.log_id: Account.logs.reduce(state.log_id).aggregate.balance for state in states}


def fail_on(*classes, error=ValueError):
    """Let handlers raise on events of these classes."""

    def before(record):
        if isinstance(record.event, classes):
            raise error("4111-1111")

    behaviour["before"] = before


def until(condition, seconds=processes.PATIENCE):
    """Make held events due, repeatedly, until a condition holds."""

    def comes() -> bool:
        if condition():
            return True
        ParkedEvent.objects.exclude(retry_at=None).update(retry_at=F("first_failed_at"))
        return False

    processes.until(comes, seconds=seconds)


# Declared only by a fixture: an inline projection takes part in every append to an account.
DECLARED = {
    each.name: each
    for each in (Balances, ReducedBalances, DepositsByOwner, InlinedBalances, Letters)
}
PARTICIPANT = registered.pop("inlined-balances")
for name in DECLARED:
    del projections[name]
