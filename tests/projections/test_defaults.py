"""Defaults of the database: a new row has them before it is stored, the same ones each time."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import pytest
from django.db import models
from django.db.models.functions import Concat, Lower, Now, Pi
from django.utils import timezone

from eventlogs import LogIdField, Projection, ReductionProjection, handles, projection
from eventlogs.projections.defaults import fill, is_filled_once, is_unsteady
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.projections.tables import Known, made
from tests.tables import Table

pytestmark = pytest.mark.django_db(transaction=True)

SINCE = datetime(2024, 2, 29, 12, 30, 0, 123456, tzinfo=timezone.get_current_timezone())


class Stock(Table):
    log_id = LogIdField(primary_key=True)
    state = models.CharField(max_length=20, db_default="new")
    low = models.IntegerField(db_default=5)
    price = models.DecimalField(max_digits=9, decimal_places=2, db_default=Decimal("1.50"))
    facts = models.JSONField(db_default={"seen": []})
    since = models.DateTimeField(db_default=SINCE)
    open = models.BooleanField(db_default=True)
    code = models.CharField(
        max_length=20, db_default=Concat(Lower(models.Value("AB")), models.Value("-1"))
    )
    ratio = models.FloatField(db_default=Pi())
    was_new = models.BooleanField(default=False)

    class Meta:
        app_label = "tests_of_defaults"

    def __str__(self):
        return self.code


class Clocked(Table):
    log_id = LogIdField(primary_key=True)
    at = models.DateTimeField(db_default=Now())
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_defaults"

    def __str__(self):
        return str(self.log_id)


class Reduced(Table):
    log_id = LogIdField(primary_key=True)
    owner = models.CharField(max_length=50, default="")
    level = models.IntegerField(db_default=3)

    class Meta:
        app_label = "tests_of_defaults"

    def __str__(self):
        return self.owner


class Stocks(Projection):
    log_types = ["account"]
    model = Stock
    max_attempts = 1

    @handles(Opened)
    def opened(self, row, record):
        row.low += 1

    @handles(Deposited)
    def deposited(self, row, record):
        row.was_new = row.state == "new" and row.code == "ab-1" and row.since == SINCE
        row.price += record.event.amount
        row.facts["seen"].append(record.index)
        row.low += 1


@projection("stocks")
class AsyncStocks(Stocks):
    pass


@projection("inline-stocks")
class InlineStocks(Stocks):
    mode = Projection.INLINE


@projection("clocked")
class Clockeds(Projection):
    log_types = ["account"]
    model = Clocked

    @handles(Deposited)
    def deposited(self, row, record):
        assert isinstance(row.at, datetime)
        row.balance += record.event.amount


@projection("reduced-with-default")
class ReducedOnes(ReductionProjection):
    aggregate = Account
    model = Reduced


KNOWN = Known(AsyncStocks, InlineStocks, Clockeds, ReducedOnes)
EVENTS = [Opened("Ada"), Deposited(2), Deposited(3)]


@pytest.fixture(autouse=True)
def _tables(transactional_db):
    with made(Stock, Clocked, Reduced):
        yield


def values():
    fields = [field.attname for field in Stock._meta.concrete_fields if not field.primary_key]
    return Stock.objects.values(*fields).get()


def all_at_once():
    return Account.logs.create(*EVENTS)


def in_batches_of_one():
    state = Account.logs.create(EVENTS[0])
    AsyncStocks.catch_up()
    for event in EVENTS[1:]:
        state = Account.logs.append(state, event)
        AsyncStocks.catch_up()
    return state


@pytest.mark.parametrize("write", [all_at_once, in_batches_of_one])
def test_a_row_does_not_depend_on_the_batches_of_its_events(write):
    write()
    AsyncStocks.catch_up()

    live = values()
    assert live == {
        "state": "new",
        "low": 8,
        "price": Decimal("6.50"),
        "facts": {"seen": [1, 2]},
        "since": SINCE,
        "open": True,
        "code": "ab-1",
        "ratio": pytest.approx(3.141592653589793),
        "was_new": True,
    }
    assert not AsyncStocks.parked()
    assert AsyncStocks.verify(sample=None).differences == ()

    AsyncStocks.rebuild()
    assert values() == live


def test_an_inline_row_has_the_same_values():
    with KNOWN.declared("inline-stocks"):
        state = Account.logs.create(EVENTS[0])
        for event in EVENTS[1:]:
            state = Account.logs.append(state, event)
        live = values()

        assert (live["low"], live["was_new"], live["price"]) == (8, True, Decimal("6.50"))
        assert InlineStocks.verify(sample=None).differences == ()
        InlineStocks.rebuild()
        assert values() == live
        InlineStocks.rebuild(state.log_id)
        assert values() == live


def test_a_mutable_default_is_not_shared_between_rows():
    one, other = fill(Stock(), "default"), fill(Stock(), "default")

    one.facts["seen"].append(1)

    assert other.facts == {"seen": []}


def test_an_expression_is_evaluated_by_the_database_once(django_assert_num_queries):
    fill(Stock(), "default")

    with django_assert_num_queries(0):
        assert fill(Stock(), "default").code == "ab-1"


def test_a_value_of_the_caller_stays():
    assert fill(Stock(state="old"), "default").state == "old"


def test_a_reduction_as_a_row_has_the_defaults_of_fields_that_it_does_not_set():
    state = Account.logs.create(Opened("Ada"))
    ReducedOnes.catch_up()
    Account.logs.append(state, Withdrawn(1))
    ReducedOnes.catch_up()

    assert Reduced.objects.get().level == 3
    assert ReducedOnes.verify(sample=None).differences == ()


def test_a_default_of_the_clock_is_kept_and_not_compared():
    state = Account.logs.create(Deposited(1))
    Clockeds.catch_up()
    first = Clocked.objects.get().at
    Account.logs.append(state, Deposited(2))
    Clockeds.catch_up()

    row = Clocked.objects.get()
    assert (row.at, row.balance) == (first, 3)
    assert Clockeds.verify(sample=None).differences == ()


def default(expression):
    return models.FloatField(db_default=expression)


@pytest.mark.parametrize(
    ("expression", "unsteady"),
    [
        (5, False),
        (Pi() + 1, False),
        (Lower(models.Value("A")), False),
        (Now(), True),
        (models.functions.Random(), True),
        (Lower(models.functions.Cast(Now(), models.TextField())), True),
        (models.Func(function="nextval"), True),
        (models.expressions.RawSQL("now()", []), True),
    ],
)
def test_is_unsteady_finds_defaults_that_may_differ_each_time(expression, unsteady):
    assert is_unsteady(default(expression)) is unsteady


def test_is_filled_once_finds_fields_that_are_filled_on_insert():
    assert is_filled_once(models.DateTimeField(auto_now_add=True))
    assert is_filled_once(default(Now()))
    assert not is_filled_once(default(5))
    assert not is_filled_once(models.IntegerField())
