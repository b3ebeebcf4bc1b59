"""Rows that are inserted unless they exist."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.db import DataError, IntegrityError, transaction
from django.db.models import QuerySet

from eventlogs.models import EventLog, IdempotencyKey
from eventlogs.stores.claims import insert_missing

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def log(**values) -> EventLog:
    row = {"id": uuid4(), "log_type": "account", "version": 1, "created_at": NOW, "updated_at": NOW}
    return EventLog(**{**row, **values})


def key(text: str, **values) -> IdempotencyKey:
    row = {"log_type": "account", "log_id": uuid4(), "first_index": 0, "count": 1}
    return IdempotencyKey(key=text, fingerprint=b"f", created_at=NOW, **{**row, **values})


def test_an_existing_row_stays_unchanged(db):
    first = log()
    insert_missing("default", [first])

    insert_missing("default", [log(id=first.id, log_type="parcel", version=7), log()])

    assert EventLog.objects.count() == 2
    assert (EventLog.objects.get(id=first.id).log_type, first.version) == ("account", 1)


def test_rows_go_in_several_statements(db):
    insert_missing("default", [key(f"key {number}") for number in range(1_001)])
    insert_missing("default", [key(f"key {number}", count=9) for number in range(1_003)])
    insert_missing("default", [])

    assert IdempotencyKey.objects.filter(count=1).count() == 1_001
    assert IdempotencyKey.objects.filter(count=9).count() == 2


@pytest.mark.locks
def test_text_that_is_too_long_is_an_error_and_is_not_cut(db):
    with pytest.raises(DataError), transaction.atomic():
        insert_missing("default", [key("k" * 256)])

    assert not IdempotencyKey.objects.exists()


@pytest.mark.locks
def test_a_null_in_a_column_without_nulls_is_an_error(db):
    with pytest.raises(IntegrityError), transaction.atomic():
        insert_missing("default", [key("k", count=None)])

    assert not IdempotencyKey.objects.exists()


@pytest.mark.mariadb
def test_ignore_conflicts_stores_a_truncated_key_on_mariadb(db, recwarn):
    """The reason for this module."""
    QuerySet(IdempotencyKey).bulk_create([key("k" * 256)], ignore_conflicts=True)  # type: ignore[arg-type]

    assert IdempotencyKey.objects.get().key == "k" * 255
