"""A table of orders that is live before there are logs, the logs that it gets, and its writers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import QuerySet

from eventlogs import ANY, Aggregate, EventRecord, LogId, LogNotFound, event
from eventlogs.operations.adoption import Adopted, Adoption
from eventlogs.operations.adoption.running import Run
from tests.processes import Place
from tests.projections.tables import made
from tests.tables import Table

LONG_AGO = datetime(2019, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)


class Order(Table):
    """An order, in cents."""

    customer = models.CharField(max_length=50)
    total = models.IntegerField(default=0)
    placed_at = models.DateTimeField(default=LONG_AGO)

    class Meta:
        app_label = "tests_of_adoption"


class Gift(Order):
    """An order with a table of its own, beside that of orders."""

    wish = models.CharField(max_length=50)

    class Meta:
        app_label = "tests_of_adoption"


class Document(Table):
    """Its keys are UUIDs, and it knows when a row began."""

    id = models.UUIDField(primary_key=True)
    title = models.CharField(max_length=50)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "tests_of_adoption"


@event("shop.adopted")
@dataclass(frozen=True, slots=True)
class Imported:
    customer: str
    total: int


@event("shop.repriced")
@dataclass(frozen=True, slots=True)
class Repriced:
    total: int


@dataclass
class ShopOrder(Aggregate, log_type="shop_order", events=[Imported, Repriced]):
    customer: str = ""
    total: int = 0
    changes: int = 0

    def apply(self, record: EventRecord) -> None:
        self.total = record.event.total
        match record.event:
            case Imported(customer=customer):
                self.customer = customer
            case Repriced():
                self.changes += 1


class Orders(Adoption):
    model = Order
    aggregate = ShopOrder

    def event(self, row: Order) -> Imported | None:
        return None if row.customer == "nobody" else Imported(row.customer, row.total)

    def recorded_at(self, row: Order) -> datetime:
        return row.placed_at

    def metadata(self, row: Order) -> dict[str, Any]:
        return {"user": row.customer}


def imported(row: Any) -> Imported:
    return Imported(getattr(row, "customer", "somebody"), getattr(row, "total", 0))


def id_of(order: Order) -> LogId:
    return LogId.from_key("shop_order", order.pk)


def place(count: int, **fields: Any) -> list[Order]:
    """Place orders, a second after each other."""
    return [
        Order.objects.create(
            **{
                "customer": f"customer {number}",
                "total": number,
                "placed_at": LONG_AGO + timedelta(seconds=number),
                **fields,
            }
        )
        for number in range(count)
    ]


@contextmanager
def tables() -> Iterator[None]:
    with made(Order, Gift, Document):
        yield


# What processes do


def adopt(place: Place, batch_size: int) -> Adopted:
    """Adopt all orders, and say how many are done."""
    return Orders.adopt(batch_size=batch_size, tell=place.say)


class WithoutLocks(Run):
    """A broken version: it reads rows without locking them."""

    def locked(self, rows: QuerySet[Any], *, skip_locked: bool) -> QuerySet[Any]:
        return rows


def adopt_in_silence(place: Place) -> Adopted:
    return Orders.adopt(batch_size=7)


def reprice(pk: int, total: int) -> None:
    """Change a row and its log, as the docs say: the row first, and its log if there is one."""
    with transaction.atomic():
        Order.objects.filter(pk=pk).update(total=models.F("total") + total)
        now = Order.objects.get(pk=pk)
        with suppress(LogNotFound):  # not adopted yet: the adoption will find the row as it is
            ShopOrder.logs.append(id_of(now), Repriced(now.total), expected_version=ANY)


CHANGES = 60  # of each process


def work(place: Place, runs: str, pks: list[int]) -> Adopted | None:
    """Adopt in the first process of a race, and change rows in the others."""
    if place.number == 0:
        run = {"whole": Run, "broken": WithoutLocks}[runs]
        return run(Orders(), Order, ShopOrder, None, using="default", batch_size=40).run()
    for _ in range(CHANGES):
        reprice(place.random.choice(pks), 1)
    return None
