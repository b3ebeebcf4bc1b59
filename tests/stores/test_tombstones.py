"""Imported tombstones: a log that was erased elsewhere cannot be created here, nor erased by it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone
from msgspec.structs import replace

from eventlogs import (
    ErasedElsewhere,
    EventLogError,
    LogAlreadyExists,
    LogErased,
    LogId,
    LogManager,
    LogState,
)
from eventlogs.models import ArchivedLog, ArchiveFile, ErasedLog, Event, EventLog
from eventlogs.operations import erasure
from eventlogs.operations.verification import Scope, verify
from eventlogs.stores import ExportedEvent, erasing, store_for, tombstones
from eventlogs.stores.tombstones import Buried, Tombstone
from tests.accounts import Account, Deposited, Opened, Parcel, Sent
from tests.locks import a_session_waits
from tests.processes import until

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


def tombstone(log_id: LogId | None = None, **members: Any) -> Tombstone:
    whole = {"events": 3, "digest": b"\x01" * 32, "erased_by": "grace", "reason": "an order"}
    erased_at = timezone.now() - timedelta(days=9)
    return Tombstone(log_id or Account.logs.new_id(), erased_at=erased_at, **{**whole, **members})


def restore(*stones: Tombstone) -> Buried:
    return tombstones.restore("default", stones)


def test_the_log_is_erased_here_too_and_all_that_the_tombstone_says_is_kept():
    stone = tombstone()

    assert restore(stone) == Buried(stored=1, differing=0)

    found = erasure.tombstone(stone.log_id)
    assert found == erasure.Tombstone(
        stone.log_id, 3, "01" * 32, "grace", "an order", stone.erased_at
    )
    with pytest.raises(LogErased):
        Account.logs.reduce(stone.log_id)
    with pytest.raises(LogErased):
        Account.logs.create(Opened("ada"), log_id=stone.log_id)
    with pytest.raises(LogErased):
        LogManager(Parcel).create(Sent("ada"), log_id=LogId("parcel", stone.log_id.uuid))
    assert not EventLog.objects.exists()
    assert list(verify(Scope("default"))) == []


def test_events_of_the_log_are_left_out_of_later_imports():
    state = Account.logs.create(Opened("ada"))
    [event] = store_for("default").events(state.log_id, start=0, limit=9)
    there = replace(event, log_id=Account.logs.new_id())
    restore(tombstone(there.log_id))

    done = store_for("default").restore([ExportedEvent(there)])

    assert (done.stored, done.erased) == (0, frozenset([there.log_id]))


def test_storing_it_again_changes_nothing():
    stone = tombstone()
    restore(stone, stone)
    before = ErasedLog.objects.values().get()

    assert restore(stone._replace(erased_by="eve", reason="another")) == Buried(0, 0)

    assert ErasedLog.objects.values().get() == before


def test_a_log_that_was_erased_here_keeps_its_tombstone_and_a_difference_is_counted():
    state = Account.logs.create(Opened("ada"))
    erasing.erase("default", state.log_id, by="hal", reason="asked for")
    before = ErasedLog.objects.values().get()

    assert restore(tombstone(state.log_id), tombstone()) == Buried(stored=1, differing=1)

    assert ErasedLog.objects.values().get(pk=state.log_id.uuid) == before


@pytest.mark.parametrize("log_type", ["account", "parcel"])
def test_a_log_that_is_here_is_not_erased_and_nothing_of_the_batch_is_stored(log_type):
    state = Account.logs.create(Opened("ada"))

    with pytest.raises(ErasedElsewhere) as caught:
        restore(tombstone(), tombstone(LogId(log_type, state.log_id.uuid)), tombstone())

    assert caught.value.log_ids == (LogId(log_type, state.log_id.uuid),)
    assert not ErasedLog.objects.exists()
    assert Account.logs.reduce(state.log_id).version == 1
    assert marks() == 0


def test_a_log_that_is_archived_here_is_not_erased_either():
    state = Account.logs.create(Opened("ada"))
    put_into_an_archive(state.log_id)

    with pytest.raises(ErasedElsewhere):
        restore(tombstone(state.log_id))

    assert not ErasedLog.objects.exists()


def put_into_an_archive(log_id: LogId) -> None:
    """Let the tables say that a log is archived."""
    now = timezone.now()
    file = ArchiveFile.objects.create(name="a", log_type="account", created_at=now)
    row = ArchivedLog(
        id=log_id.uuid,
        log_type=log_id.log_type,
        version=1,
        created_at=now,
        updated_at=now,
        digest=bytes(32),
        last_position=1,
        archive=file,
        frames=[],
        archived_at=now,
        archived_by="ada",
    )
    erasing._rows("ArchivedLog", "default").bulk_create([row])
    erasing._rows("EventLog", "default").filter(pk=log_id.uuid).update(log_type="")


def marks() -> int:
    return erasing._rows("EventLog", "default").filter(log_type="").count()


def test_pages_yield_what_was_stored_in_the_order_of_uuids(monkeypatch):
    monkeypatch.setattr(tombstones, "PAGE", 2)
    parcel = LogId.new("parcel")
    stones = [*(tombstone() for _ in range(4)), tombstone(parcel)]
    restore(*stones)

    def found(**options: Any) -> list[Tombstone]:
        pages = tombstones.pages("default", **options)
        return [each._replace(created_at=None) for page in pages for each in page]

    in_order = sorted(stones, key=lambda each: each.log_id.uuid.bytes)
    assert found() == in_order
    assert found(log_types=["parcel"]) == [stones[-1]]
    assert found(logs=[stones[1].log_id]) == [stones[1]]
    assert found(logs=[LogId("account", parcel.uuid)]) == []


def test_an_imported_tombstone_is_as_old_as_its_import_and_another_one_as_its_log():
    state = Account.logs.create(Opened("ada"))
    created_at = EventLog.objects.get().created_at
    erasing.erase("default", state.log_id, by="hal", reason="asked for")
    before = timezone.now() - timedelta(seconds=1)
    stone = tombstone()
    restore(stone)

    [page] = tombstones.pages("default")

    times = {each.log_id: each.created_at for each in page}
    assert times[state.log_id] == created_at
    assert times[stone.log_id] > before


# Races


def racing(*calls: Callable[[], Any]) -> list[Any]:
    """Call functions at the same time, each in a thread; return their answers and errors."""
    barrier = Barrier(len(calls))

    def call(function: Callable[[], Any]) -> Any:
        try:
            connections["default"].ensure_connection()
            barrier.wait(30)
            return function()
        except EventLogError as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_of_a_creator_and_an_import_of_its_tombstone_one_is_refused():
    for _ in range(3 if connection.vendor == "sqlite" else 10):
        stone = tombstone()
        create = partial(Account.logs.create, Opened("ada"), log_id=stone.log_id)

        created, stored = racing(create, partial(restore, stone))

        if isinstance(created, LogState):
            assert isinstance(stored, ErasedElsewhere)
            assert Account.logs.reduce(stone.log_id).version == 1
        else:
            assert isinstance(created, LogErased | LogAlreadyExists)
            assert stored == Buried(1, 0)
        is_erased = ErasedLog.objects.filter(pk=stone.log_id.uuid).exists()
        assert is_erased is not EventLog.objects.filter(pk=stone.log_id.uuid).exists()


@pytest.mark.postgresql
def test_a_creator_that_has_not_committed_is_waited_for():
    assert stored_beside_a_creator() == [True, False]


@pytest.mark.postgresql
def test_a_broken_version_that_looks_before_it_waits_stores_a_tombstone_of_a_log_that_is_here(
    monkeypatch,
):
    def looks_first(using: str, stones: Any) -> None:
        assert not alive(using, stones)
        insert_marks(using, stones)

    insert_marks, alive = tombstones._insert_marks, tombstones.alive
    monkeypatch.setattr(tombstones, "_insert_marks", looks_first)
    monkeypatch.setattr(tombstones, "alive", lambda *arguments, **options: [])

    assert stored_beside_a_creator() == [True, True]


def stored_beside_a_creator() -> list[bool]:
    """Import a tombstone while its log is created; return whether log and tombstone are there."""
    stone = tombstone()
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            Account.logs.create(Opened("ada"), log_id=stone.log_id)
            found = pool.submit(racing, partial(restore, stone))
            until(a_session_waits)
        found.result()
    return [
        Account.logs.exists(stone.log_id),
        ErasedLog.objects.filter(pk=stone.log_id.uuid).exists(),
    ]


def test_an_erasure_and_an_import_of_its_tombstone_leave_one_tombstone():
    for _ in range(2 if connection.vendor == "sqlite" else 5):
        state = Account.logs.create(Opened("ada"), Deposited(1))
        erase = partial(erasing.erase, "default", state.log_id, by="hal", reason="asked for")

        erased, stored = racing(erase, partial(restore, tombstone(state.log_id)))

        assert erased is True
        assert isinstance(stored, ErasedElsewhere) or stored == Buried(0, 1)
        assert ErasedLog.objects.get(pk=state.log_id.uuid).erased_by == "hal"
        assert not Event.objects.filter(log_id=state.log_id.uuid).exists()
