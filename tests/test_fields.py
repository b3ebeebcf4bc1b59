"""Fields for read models."""

from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError

from eventlogs import InvalidLogId, LogId, LogIdField
from eventlogs.fields import LOG_ID_LENGTH
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


def test_its_length_is_not_in_migrations():
    field = LogIdField(max_length=3)

    assert field.max_length == LOG_ID_LENGTH
    assert field.deconstruct()[1:] == ("eventlogs.fields.LogIdField", [], {})


def test_serializers_get_its_text():
    log_id = LogId.new("account")
    assert Balance._meta.pk.value_to_string(Balance(pk=log_id)) == str(log_id)
    assert LogIdField(null=True).to_python(None) is None
