"""Rows of a read model: loaded for a batch, written at once, and compared."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection, models

from eventlogs import LogId, LogIdField
from eventlogs.projections import rows as module
from eventlogs.projections.rows import Rows, chunks, differences, upsert
from tests.tables import Table


class Sum(Table):
    day = models.DateField(primary_key=True)
    code = models.CharField(max_length=20, unique=True)
    amount = models.DecimalField(max_digits=9, decimal_places=2, default=0)
    rate = models.FloatField(default=0)
    facts = models.JSONField(default=dict)
    at = models.DateTimeField(null=True)  # type: ignore[misc]
    doubled = models.GeneratedField(
        expression=models.F("rate") * 2, output_field=models.FloatField(), db_persist=True
    )
    added_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        app_label = "tests_of_rows"

    def __str__(self):
        return self.code


class Bare(Table):
    log_id = LogIdField(primary_key=True)

    class Meta:
        app_label = "tests_of_rows"

    def __str__(self):
        return str(self.log_id)


TODAY, TOMORROW = date(2024, 12, 31), date(2025, 1, 1)


@pytest.fixture
def _tables(transactional_db):
    with connection.schema_editor() as editor:
        editor.create_model(Sum)
        editor.create_model(Bare)
    yield
    with connection.schema_editor() as editor:
        editor.delete_model(Sum)
        editor.delete_model(Bare)


def stored():
    return dict(Sum.objects.values_list("day", "rate"))


def rows(*keys):
    return Rows(Sum, keys, "default")


def write(day, **values):
    batch = rows(day)
    for name, value in {"code": str(day), **values}.items():
        setattr(batch[day], name, value)
    batch.write()


@pytest.mark.usefixtures("_tables")
def test_a_missing_row_is_inserted_and_an_existing_one_is_updated():
    write(TODAY, rate=1)
    batch = rows(TODAY, TOMORROW)
    batch[TODAY].rate += 1
    batch[TOMORROW].code = "new"
    assert batch[TODAY] is batch[TODAY]
    batch.write()

    assert stored() == {TODAY: 2, TOMORROW: 0}


@pytest.mark.usefixtures("_tables")
def test_rows_that_were_only_read_are_not_written(django_assert_num_queries):
    write(TODAY, rate=1)
    batch = rows(TODAY)
    assert batch.get(TODAY).rate == 1
    assert batch.get(TOMORROW) is None
    with django_assert_num_queries(0):
        batch.write()


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize("key", ["2024-12-31", datetime(2024, 12, 31, 12, tzinfo=UTC)])
def test_a_key_of_another_type_finds_the_stored_row(key):
    write(TODAY, rate=1)
    batch = rows(key)
    batch[key].rate += 1
    assert batch.get(key) is batch[TODAY]
    batch.write()

    assert stored() == {TODAY: 2}


@pytest.mark.usefixtures("_tables")
def test_a_row_that_is_deleted_and_created_again_is_a_new_one():
    write(TODAY, rate=5)
    batch = rows(TODAY)
    batch.delete(batch[TODAY])
    assert batch.get(TODAY) is None
    assert batch[TODAY].rate == 0
    batch[TODAY].code = "again"
    batch.write()
    assert stored() == {TODAY: 0}

    batch = rows(TODAY)
    batch.delete(batch[TODAY])
    batch.write()
    assert stored() == {}


@pytest.mark.usefixtures("_tables")
def test_a_row_that_is_new_and_deleted_is_not_written():
    batch = rows(TODAY)
    batch.delete(batch[TODAY])
    batch.write()
    assert stored() == {}


@pytest.mark.usefixtures("_tables")
def test_many_rows_go_in_several_statements(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 7)
    days = [TODAY + timedelta(days=number) for number in range(20)]
    for _ in range(2):
        batch = rows(*days, *days)
        for day in days:
            batch[day].code = str(day)
            batch[day].rate += 1
        batch.write()
    assert stored() == dict.fromkeys(days, 2)

    batch = rows(*days)
    for day in days[:15]:
        batch.delete(batch[day])
    batch.write()
    assert list(stored()) == days[15:]


@pytest.mark.usefixtures("_tables")
def test_an_update_keeps_the_date_of_creation_and_sets_that_of_the_change():
    write(TODAY)
    first = Sum.objects.get()
    write(TODAY, rate=3)
    second = Sum.objects.get()

    assert second.added_at == first.added_at
    assert second.changed_at > first.changed_at
    assert second.doubled == 6


@pytest.mark.usefixtures("_tables")
def test_a_model_with_nothing_but_a_key_can_be_written_twice():
    key = LogId.new("account")
    for _ in range(2):
        upsert(Bare, [Bare(pk=key)], "default")
    assert list(Bare.objects.values_list("pk", flat=True)) == [key]


SAME = [
    ("amount", Decimal("1.50"), "1.5"),
    ("facts", {"a": (1, 2)}, {"a": [1, 2]}),
    ("facts", {1: 2}, {"1": 2}),
    ("facts", {"a": None}, {"a": None}),
    ("at", datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)),
    ("rate", 1, 1.0),
    ("code", 7, "7"),
]
OTHER = [
    ("amount", Decimal("1.50"), Decimal("1.51")),
    ("facts", {"a": [1]}, {"a": [2]}),
    ("facts", {}, None),
    ("at", datetime(2024, 1, 1, tzinfo=UTC), None),
    ("code", "a", "A"),
]


@pytest.mark.parametrize(("field", "one", "other"), SAME)
def test_values_that_are_the_same_to_the_database_are_the_same(field, one, other):
    assert differences(Sum, Sum(**{field: one}), Sum(**{field: other}), "default") == []


@pytest.mark.parametrize(("field", "one", "other"), OTHER)
def test_values_that_differ_are_named_by_their_fields(field, one, other):
    assert differences(Sum, Sum(**{field: one}), Sum(**{field: other}), "default") == [field]


def test_a_row_that_is_missing_is_one_difference():
    assert differences(Sum, None, None, "default") == []
    assert differences(Sum, Sum(), None, "default") == ["the row"]
    assert differences(Sum, None, Sum(), "default") == ["the row"]


@pytest.mark.usefixtures("_tables")
def test_values_of_the_clock_and_the_database_are_no_difference():
    write(TODAY)
    assert differences(Sum, Sum.objects.get(), Sum(day=TODAY, code=str(TODAY)), "default") == []


def test_chunks_are_lists_of_limited_length():
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunks([], 2)) == []


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize("places", [3, 4, 12])
def test_a_decimal_that_its_column_rounds_is_no_difference(places):
    smallest = Decimal(1).scaleb(-places)
    halves = [Decimal(f"0.{number:02}5") for number in range(20)]
    amounts = [each + near for each in halves for near in (-smallest, 0, smallest)]
    days = [TODAY + timedelta(days=number) for number in range(len(amounts))]
    for day, amount in zip(days, amounts, strict=True):
        write(day, amount=amount)

    for day, amount in zip(days, amounts, strict=True):
        row = Sum.objects.get(pk=day)
        wanted = Sum(day=day, code=str(day), amount=amount)
        assert differences(Sum, row, wanted, "default") == []
        wanted.amount += Decimal("0.02")
        assert differences(Sum, row, wanted, "default") == ["amount"]


def test_nan_is_equal_to_itself():
    row, wanted = Sum(day=TODAY, rate=float("nan")), Sum(day=TODAY, rate=float("nan"))

    assert differences(Sum, row, wanted, "default") == []
    wanted.rate = 0.0
    assert differences(Sum, row, wanted, "default") == ["rate"]
