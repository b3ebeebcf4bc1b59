"""Fields for read models."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import connection, models
from django.forms import modelform_factory

from eventlogs import InvalidLogId, LogId, LogIdField
from eventlogs.fields import (
    LOG_ID_LENGTH,
    MARIADB_COLLATION,
    MYSQL_COLLATION,
    ExactCharField,
    exact_collation,
)
from eventlogs.models import IdempotencyKey
from eventlogs.stores.claims import insert_missing
from tests.projections.conftest import tables
from tests.projections.readmodels import Balance

__all__ = ["tables"]  # a fixture


def test_a_log_id_field_holds_log_ids_and_takes_their_text(tables):
    log_id = LogId.new("account")
    Balance(pk=str(log_id), owner="ada").save()

    row = Balance.objects.get(pk=log_id)

    assert row.pk == log_id
    assert isinstance(row.pk, LogId)
    assert Balance.objects.get(pk=str(log_id)) == row
    assert list(Balance.objects.filter(pk__startswith="account_")) == [row]
    row.full_clean(validate_unique=False)


def test_text_that_is_no_log_id_is_not_valid():
    for text in ("account", "", "x" * 200):
        with pytest.raises((ValidationError, InvalidLogId)):
            LogIdField().clean(text, None)


def test_the_length_of_a_log_id_field_is_not_in_migrations():
    field = LogIdField(max_length=3)

    assert field.max_length == LOG_ID_LENGTH
    assert field.deconstruct()[1:] == ("eventlogs.fields.LogIdField", [], {})


def test_serializers_get_the_text_of_a_log_id():
    log_id = LogId.new("account")
    assert Balance._meta.pk.value_to_string(Balance(pk=log_id)) == str(log_id)
    assert LogIdField(null=True).to_python(None) is None  # type: ignore[misc]


def test_a_form_that_was_sent_back_unchanged_has_not_changed(tables):
    Form = modelform_factory(Balance, fields=["log_id"])
    log_id, other = LogId.new("account"), LogId.new("account")
    row = Balance(log_id=log_id)

    form = Form({"log_id": f" {log_id} "}, instance=row)
    assert not form.has_changed()
    assert f'value="{log_id}"' in str(Form(instance=row))
    assert form.fields["log_id"].clean(str(log_id)) == log_id

    assert Form({"log_id": str(other)}, instance=row).has_changed()
    bad = Form({"log_id": "account_1"}, instance=row)
    assert bad.has_changed()
    assert "This is not a log id" in bad.errors["log_id"][0]
    assert "log_id" in Form({"log_id": ""}, instance=row).errors


# Text that is compared byte for byte


class Database:
    """The attributes of a connection that a field reads."""

    def __init__(self, vendor, mysql_is_mariadb=False):
        self.vendor = vendor
        self.mysql_is_mariadb = mysql_is_mariadb


@pytest.mark.parametrize(
    ("database", "collation"),
    [
        (Database("mysql", mysql_is_mariadb=True), MARIADB_COLLATION),
        (Database("mysql"), MYSQL_COLLATION),
        (Database("postgresql"), None),
        (Database("sqlite"), None),
    ],
)
def test_each_database_has_its_own_collation(database, collation):
    assert exact_collation(database) == collation


@pytest.mark.parametrize("field", [ExactCharField(max_length=9), LogIdField()])
def test_the_collation_is_the_databases_and_not_in_migrations(field, db):
    assert field.db_parameters(connection)["collation"] == exact_collation(connection)
    assert "db_collation" not in field.deconstruct()[3]


@pytest.mark.parametrize(
    "field", [ExactCharField(max_length=9, db_collation="mine"), LogIdField(db_collation="mine")]
)
def test_a_custom_collation_is_used(field):
    assert field.db_parameters(connection)["collation"] == "mine"
    assert field.deconstruct()[3]["db_collation"] == "mine"


def test_all_text_of_our_tables_that_is_compared_is_compared_byte_for_byte():
    text = [
        field
        for model in apps.get_app_config("eventlogs").get_models()
        for field in model._meta.concrete_fields
        if isinstance(field, models.CharField)
    ]

    assert len(text) > 10
    assert [field for field in text if not isinstance(field, ExactCharField | LogIdField)] == []


def test_queries_compare_byte_for_byte(db):
    row = {"log_id": LogId.new("account").uuid, "first_index": 0, "count": 1, "fingerprint": b"f"}
    keys = ["é", "e", "E", "e ", "e\u0301"]
    insert_missing(
        "default",
        [
            IdempotencyKey(log_type="account", key=key, created_at=datetime.now(UTC), **row)
            for key in keys
        ],
    )

    for key in keys:
        assert IdempotencyKey.objects.get(key=key).key == key
        assert IdempotencyKey.objects.filter(key__in=[key]).count() == 1
        assert IdempotencyKey.objects.exclude(key=key).count() == len(keys) - 1
    assert IdempotencyKey.objects.values("key").distinct().count() == len(keys)
