"""Rows of plain models in PostgreSQL: stored and read with the same values as by the ORM."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from django.contrib.postgres.fields import ArrayField
from django.db import DataError, IntegrityError, connection, models, transaction
from django.db.models import F, Q, signals
from django.db.models.functions import Coalesce

from eventlogs import LogId, LogIdField
from eventlogs.projections import plain_rows
from eventlogs.projections.rows import Rows, upsert
from tests.projections.tables import made
from tests.tables import Table

pytestmark = pytest.mark.postgresql


class Colour(models.TextChoices):
    RED = "red"


class Reversed(models.CharField):
    """A field of a project's own: its text is stored backwards."""

    def get_prep_value(self, value):
        return None if value is None else value[::-1]

    def from_db_value(self, value, *_):
        return None if value is None else value[::-1]


class Everything(Table):
    log_id = LogIdField(primary_key=True)
    other = LogIdField(null=True)  # type: ignore[misc]
    text = models.TextField(default="")
    short = models.CharField(max_length=5, default="")
    backwards = Reversed(max_length=20, default="")
    colour = models.CharField(max_length=5, choices=Colour, default=Colour.RED)
    small = models.SmallIntegerField(default=0)
    number = models.IntegerField(null=True)  # type: ignore[misc]
    big = models.BigIntegerField(default=0)
    positive = models.PositiveIntegerField(default=0)
    yes = models.BooleanField(null=True)  # type: ignore[misc]
    real = models.FloatField(default=0)
    amount = models.DecimalField(max_digits=9, decimal_places=2, default=0)
    uuid = models.UUIDField(null=True)  # type: ignore[misc]
    facts = models.JSONField(null=True)
    day = models.DateField(null=True)  # type: ignore[misc]
    at = models.DateTimeField(null=True)  # type: ignore[misc]
    hour = models.TimeField(null=True)  # type: ignore[misc]
    took = models.DurationField(null=True)  # type: ignore[misc]
    at_first = models.IntegerField(db_default=7)
    doubled = models.GeneratedField(
        expression=F("big") * 2, output_field=models.BigIntegerField(), db_persist=True
    )
    added_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "tests_of_plain_rows"
        db_table = "odd Name"
        constraints = (
            models.UniqueConstraint(fields=["number"], name="one_number"),
            models.CheckConstraint(condition=Q(small__lt=100), name="small_is_small"),
        )


class Owner(Table):
    name = models.CharField(max_length=20, default="")

    class Meta:
        app_label = "tests_of_plain_rows"


class Owned(Table):
    log_id = LogIdField(primary_key=True)
    owner = models.ForeignKey(Owner, models.CASCADE, null=True)
    facts = models.JSONField(default=dict)
    copy_of_id = models.GeneratedField(
        expression=Coalesce("log_id", "log_id"), output_field=LogIdField(), db_persist=True
    )
    copy_of_facts = models.GeneratedField(
        expression=Coalesce("facts", "facts"), output_field=models.JSONField(), db_persist=True
    )

    class Meta:
        app_label = "tests_of_plain_rows"


class Shouted(models.TextField):
    """A field of a project's own, with SQL around its column when it is read."""

    def select_format(self, compiler, sql, params):
        return f"upper({sql})", params


class Whispered(models.TextField):
    """A field of a project's own, with SQL around its placeholder, as since Django 6.1."""

    def get_placeholder_sql(self, value, compiler, connection):
        return "lower(%s)", [value]


class WithShouted(Table):
    log_id = LogIdField(primary_key=True)
    text = Shouted(default="abc")

    class Meta:
        app_label = "tests_of_plain_rows"


class WithWhispered(Table):
    log_id = LogIdField(primary_key=True)
    text = Whispered(default="ABC")

    class Meta:
        app_label = "tests_of_plain_rows"


class WithArray(Table):
    log_id = LogIdField(primary_key=True)
    tags = ArrayField(models.TextField(), default=list)

    class Meta:
        app_label = "tests_of_plain_rows"


class Few(models.Manager):
    """A manager through which a project sees fewer rows."""


class WithManager(Table):
    log_id = LogIdField(primary_key=True)
    few = Few()

    class Meta:
        app_label = "tests_of_plain_rows"
        base_manager_name = "few"


class Daily(Table):
    day = models.DateField(primary_key=True)
    code = models.CharField(max_length=20, default="")

    class Meta:
        app_label = "tests_of_plain_rows"


class Loud(Table):
    """A model with custom code that runs when a row is read."""

    code = models.CharField(max_length=20, primary_key=True)
    loudness = 0

    class Meta:
        app_label = "tests_of_plain_rows"

    @classmethod
    def from_db(cls, *args: Any, **options: Any) -> Any:
        row = super().from_db(*args, **options)
        row.loudness = 11
        return row


@pytest.fixture
def _tables(transactional_db):
    with made(Everything, Owner, Owned, WithShouted, WithArray, WithManager, Daily, Loud):
        yield


TEXTS = [
    *("", "NULL", "null", "a,b", "{x}", '"', "\\", '\\"', "'", "''", "%s", "a\nb\tc\r", " x "),
    *("\u00e4\u4e2d\U0001f600", "\\N", "\\x41", "$1", "{}", "\x7f\x01"),
]
FACTS: list[Any] = [{"a": [1, None, "\u00e4"]}, [], "text", 1.5, True]
VALUES: list[dict[str, Any]] = [
    *({"text": text} for text in TEXTS),
    {"backwards": "abc"},
    {"other": LogId.new("account")},
    {"small": -32768, "number": 2**31 - 1, "big": -(2**62), "positive": 2**31 - 1},
    {"big": True, "small": False},
    {"big": "12", "small": Decimal(3)},
    {"yes": True},
    {"yes": False},
    *({"real": each} for each in (0.1, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), 3)),
    {"amount": Decimal("1234567.891")},
    {"amount": "1.005"},
    {"uuid": UUID(int=5)},
    *({"facts": each} for each in FACTS),
    {"day": date(2024, 2, 29), "at": datetime(2024, 1, 1, 1, tzinfo=UTC), "hour": time(23, 59)},
    {"took": timedelta(days=-1, microseconds=1)},
    {"text": Colour.RED, "short": "12345"},
    {"at_first": 8},
]


def stored(model=Everything):
    names = [field.attname for field in model._meta.concrete_fields if field.attname != "added_at"]
    return {row[0]: row for row in model.objects.values_list(*names)}


def made_of(values: list[dict[str, Any]]) -> list[Everything]:
    return [
        Everything(**{"log_id": LogId.new("account"), "number": number, "at_first": 7, **fields})
        for number, fields in enumerate(values)
    ]


@pytest.mark.usefixtures("_tables")
def test_stored_rows_equal_those_of_the_orm():
    rows = made_of(VALUES)

    Everything.objects.bulk_create(rows)
    by_orm = stored()
    Everything.objects.all().delete()
    for row in rows:  # one by one: a column of several kinds of values is converted as a whole
        assert plain_rows.upsert(Everything, [row], "default")
    one_by_one = stored()
    Everything.objects.all().delete()
    assert plain_rows.upsert(Everything, rows, "default")

    assert one_by_one == by_orm
    assert stored() == by_orm
    assert plain_rows.upsert(Everything, rows, "default")
    assert stored() == by_orm


@pytest.mark.usefixtures("_tables")
def test_rows_that_are_read_equal_those_of_the_orm():
    rows = made_of(VALUES)
    Everything.objects.bulk_create(rows)
    keys = [row.log_id for row in rows]

    found = plain_rows.find(Everything, [*keys, LogId.new("account")], "default")

    by_orm = {row.pk: row for row in Everything.objects.all()}
    assert found is not None
    assert found.keys() == by_orm.keys()
    for key, row in by_orm.items():
        mine, theirs = dict(vars(found[key])), dict(vars(row))
        state, other = mine.pop("_state"), theirs.pop("_state")
        assert (vars(state), type(found[key])) == (vars(other), type(row))
        assert mine == theirs
        assert list(map(type, mine.values())) == list(map(type, theirs.values()))
    assert found[keys[0]].log_id is keys[0]
    assert plain_rows.find(Everything, [], "default") == {}


@pytest.mark.usefixtures("_tables")
def test_a_batch_is_one_statement_for_reading_and_one_for_writing(django_assert_num_queries):
    ids = [LogId.new("account") for _ in range(1_500)]
    with transaction.atomic(), django_assert_num_queries(2):
        batch = Rows(Daily, [date(2024, 1, 1), date(2024, 1, 2)], "default")
        batch["2024-01-01"].code = "x"
        batch.write()
    batch = Rows(Everything, ids, "default")
    for number, each in enumerate(ids):
        batch[each].number = number

    with (
        transaction.atomic(),
        django_assert_num_queries(1),
    ):
        batch.write()

    assert Everything.objects.count() == 1_500
    assert stored(Daily) == {date(2024, 1, 1): (date(2024, 1, 1), "x")}


@pytest.mark.usefixtures("_tables")
def test_defaults_of_the_database_and_generated_fields_are_right_in_new_and_changed_rows():
    log_id = LogId.new("account")
    for big in (1, 2):
        batch = Rows(Everything, [log_id], "default")
        batch[log_id].big = big
        batch[log_id].at_first += 1
        batch.write()

    [row] = Everything.objects.all()
    assert (row.big, row.doubled, row.at_first) == (2, 4, 9)


@pytest.mark.usefixtures("_tables")
def test_an_existing_row_keeps_fields_that_are_filled_on_insert():
    log_id = LogId.new("account")
    upsert(Everything, [Everything(log_id=log_id, at_first=7)], "default")
    before = Everything.objects.get().added_at
    upsert(Everything, [Everything(log_id=log_id, at_first=7, big=5)], "default")

    row = Everything.objects.get()
    assert (row.added_at, row.big) == (before, 5)


REFUSED = [
    ({"number": 1}, IntegrityError, "one_number"),
    ({"small": 100}, IntegrityError, "small_is_small"),
    ({"text": None}, IntegrityError, None),
    ({"positive": -1}, IntegrityError, None),
    ({"short": "123456"}, DataError, None),
    ({"short": "12345 "}, DataError, None),
    ({"text": "a\0b"}, (DataError, ValueError), None),
    ({"small": 40_000}, DataError, None),
    ({"big": 2**63}, DataError, None),
]


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize(("values", "error", "constraint"), REFUSED)
def test_a_refused_row_raises_an_error_that_names_the_constraint(values, error, constraint):
    upsert(Everything, [Everything(log_id=LogId.new("account"), at_first=7, number=1)], "default")
    refused = Everything(**{"log_id": LogId.new("account"), "at_first": 7, "number": 2, **values})
    fine = Everything(log_id=LogId.new("account"), at_first=7, number=3)

    with pytest.raises(error) as caught:
        upsert(Everything, [fine, refused], "default")

    if constraint is not None:
        assert caught.value.__cause__.diag.constraint_name == constraint
    assert list(Everything.objects.values_list("number", flat=True)) == [1]


@pytest.mark.usefixtures("_tables")
def test_a_model_or_a_value_that_is_not_plain_is_left_to_the_orm():
    log_id = LogId.new("account")
    expression = Everything(log_id=log_id, at_first=7, text=models.Value("x"))

    for row in (WithArray(log_id=log_id, tags=["a", "b"]), WithManager(log_id=log_id), expression):
        assert not plain_rows.upsert(type(row), [row], "default")
        upsert(type(row), [row], "default")
    assert plain_rows.find(WithArray, [log_id], "default") is None
    assert plain_rows.find(WithManager, [log_id], "default") is None

    assert Rows(WithArray, [log_id], "default").get(log_id).tags == ["a", "b"]
    assert Rows(WithManager, [log_id], "default").get(log_id) is not None
    assert Everything.objects.get().text == "x"


@pytest.mark.usefixtures("_tables")
def test_a_field_with_sql_of_its_own_is_left_to_the_orm():
    log_id = LogId.new("account")
    upsert(WithShouted, [WithShouted(log_id=log_id)], "default")

    assert Rows(WithShouted, [log_id], "default").get(log_id).text == "ABC"
    assert not plain_rows.upsert(WithWhispered, [WithWhispered(log_id=log_id)], "default")


@pytest.mark.usefixtures("_tables")
def test_generated_fields_are_read_as_their_output_fields_read_them():
    log_id = LogId.new("account")
    upsert(Owned, [Owned(log_id=log_id, facts={"a": 1})], "default")

    row = Rows(Owned, [log_id], "default").get(log_id)

    assert (row.copy_of_facts, row.copy_of_id, type(row.copy_of_id)) == ({"a": 1}, log_id, LogId)


@pytest.mark.usefixtures("_tables")
def test_a_related_object_is_stored_or_an_error_as_with_the_orm():
    owner = Owner()
    row = Owned(log_id=LogId.new("account"), owner=owner)
    owner.save()

    assert plain_rows.upsert(Owned, [row], "default")

    assert Owned.objects.get().owner == owner
    with pytest.raises(ValueError, match="unsaved related object"):
        plain_rows.upsert(Owned, [Owned(log_id=row.log_id, owner=Owner())], "default")


@pytest.mark.usefixtures("_tables")
def test_custom_code_of_a_model_runs_when_a_row_is_read():
    upsert(Loud, [Loud(code="a")], "default")
    upsert(Daily, [Daily(day=date(2024, 1, 1))], "default")
    assert Rows(Loud, ["a"], "default")["a"].loudness == 11

    seen: list[Any] = []

    def see(**arguments):
        seen.append(arguments["instance"])

    signals.post_init.connect(see, sender=Daily)
    try:
        row = Rows(Daily, ["2024-01-01"], "default").get("2024-01-01")
    finally:
        signals.post_init.disconnect(see, sender=Daily)
    assert seen == [row]


@pytest.mark.usefixtures("_tables")
def test_ids_of_rows_are_those_that_were_asked_for_and_are_not_parsed():
    log_id = LogId.new("account")
    upsert(Everything, [Everything(log_id=log_id, at_first=7)], "default")

    with mock.patch.object(LogId, "parse", side_effect=AssertionError):
        assert Rows(Everything, [log_id], "default").get(log_id).log_id is log_id


@pytest.mark.usefixtures("_tables")
def test_statements_are_seen_by_wrappers_of_the_connection():
    seen: list[Any] = []

    def see(execute, sql, *rest):
        seen.append(sql.split()[0])
        return execute(sql, *rest)

    with connection.execute_wrapper(see):
        batch = Rows(Daily, [date(2024, 1, 1)], "default")
        batch[date(2024, 1, 1)].code = "x"
        batch.write()

    assert [each for each in seen if each in ("SELECT", "INSERT")] == ["SELECT", "INSERT"]
