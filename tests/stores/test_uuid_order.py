"""The order of UUIDs is that of the database."""

from __future__ import annotations

from random import Random
from uuid import UUID

import pytest

from eventlogs import LogId, LogManager
from eventlogs.models import EventLog
from eventlogs.stores.uuid_order import order_of
from tests.accounts import Account, Opened

pytestmark = pytest.mark.django_db

accounts = LogManager(Account)


def uuid_of(version: int, random: Random) -> UUID:
    """Return a random UUID of a version."""
    number = random.getrandbits(128) & ~(0xF << 76 | 0x3 << 62)
    return UUID(int=number | version << 76 | 0x2 << 62)


def test_uuids_are_in_the_order_of_the_database():
    random = Random(7)
    uuids = [uuid_of(version, random) for version in range(1, 8) for _ in range(30)]
    for each in uuids:
        accounts.create(Opened("Ada"), log_id=LogId("account", each))

    in_order = list(EventLog.objects.order_by("pk").values_list("pk", flat=True))

    assert in_order == sorted(uuids, key=order_of("default"))
    for number, each in enumerate(in_order):
        assert EventLog.objects.filter(pk__gt=each).count() == len(uuids) - number - 1
