"""The database's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models import DateTimeField
from django.db.models.functions import Now

from eventlogs.models import EventLog, IdempotencyKey
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.portable import PortableStore
from eventlogs.testing.contracts.stores import append, create, new_key


def read(expression) -> datetime:
    create(PortableStore("default"), 1)
    logs = EventLog.objects.annotate(now=expression(output_field=DateTimeField()))
    return logs.values_list("now", flat=True)[0]


def test_utc_now_is_in_utc(db):
    assert abs(read(UTCNow) - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.mariadb
def test_the_time_zone_of_the_session_is_not_utc_in_tests(db):
    """tests/mariadb.py sets one that is not UTC."""
    assert abs(read(Now) - datetime.now(UTC)) > timedelta(hours=1)


@pytest.mark.mariadb
@pytest.mark.parametrize("zone", ["-11:00", "+00:00", "+13:00"])
def test_recorded_times_do_not_depend_on_the_zone_of_the_session(db, zone):
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@time_zone")
        (before,) = cursor.fetchone()
        cursor.execute("SET time_zone = %s", [zone])
    store, key = PortableStore("default"), new_key()

    try:
        log_id = create(store, 1, key=key).log_id
        append(store, log_id, 2, expected=1)
        times = [row.recorded_at for row in store.events(log_id, start=0, limit=2)]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET time_zone = %s", [before])

    log = EventLog.objects.get(pk=log_id.uuid)
    times += [log.created_at, log.updated_at, IdempotencyKey.objects.get(key=key).created_at]
    assert all(abs(time - datetime.now(UTC)) < timedelta(minutes=1) for time in times)
    assert times[0] <= times[1]
    assert any(time.microsecond % 1_000 for time in times)
