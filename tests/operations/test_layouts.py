"""Changing the layout of a database, also beside writers, and processes of the other layout."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from eventlogs import Feed, FeedUnavailable, LogManager
from eventlogs.exceptions import CannotChangeLayout, LayoutDiffers
from eventlogs.feed.sources import has_feed
from eventlogs.models import Bucket, Event, IdempotencyKey
from eventlogs.operations import layouts, partitioning
from eventlogs.operations.layouts import change_layout
from eventlogs.operations.verification import Scope
from eventlogs.operations.verification import verify as verify_all
from eventlogs.stores import layouts as stored
from eventlogs.stores.layouts import is_complete, keep_layout, layout_of
from eventlogs.stores.portable import PortableStore
from tests.accounts import Account, Deposited, Opened

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])

accounts = Account.logs
OTHER = {"fence": "buckets", "buckets": "fence"}


@pytest.fixture
def home() -> Iterator[str]:
    """The layout of the tables; they have it again afterwards."""
    layout = layout_of(connection)
    yield layout
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("RESET ALL")
    change_layout(layout, using="default")


@contextmanager
def configured(settings: Any, layout: str) -> Iterator[None]:
    before = settings.EVENTLOGS
    settings.EVENTLOGS = {**before, "LAYOUT": layout}
    try:
        yield
    finally:
        settings.EVENTLOGS = before


def test_positions_go_on_in_the_other_layout_and_back(home, settings):
    other = OTHER[home]
    state = accounts.create(Opened("ada"), Deposited(1), idempotency_key="first")
    seen = [each.position for each in Feed().read()] if has_feed("default") else []

    assert change_layout(other, using="default")
    assert layout_of(connection) == other
    assert not change_layout(other, using="default")
    with configured(settings, other):
        state = accounts.append(state, Deposited(2), Deposited(3), idempotency_key="second")
        states = [accounts.create(Opened("eve")) for _ in range(5)]
        if has_feed("default"):
            after = seen[-1] if seen else 0
            found = [each.position for each in Feed().read(after=after)]
            assert found[-7:] == sorted(found)[-7:]
            assert len(found) == (7 if seen else 9)
    assert change_layout(home, using="default")
    state = accounts.append(state, Deposited(4))

    assert state.position > states[-1].position > seen[-1] if seen else True
    positions = Event.objects.order_by("log_id", "index").values_list("log_id", "position")
    assert list(positions) == sorted(positions)
    assert list(verify_all(Scope("default"))) == []
    assert accounts.reduce(state.log_id).aggregate == Account("ada", 10)


@pytest.mark.parametrize("store", [None, PortableStore], ids=["own", "portable"])
def test_a_process_of_the_other_layout_cannot_append(home, settings, store):
    other = OTHER[home]
    state = accounts.create(Opened("ada"))
    manager = accounts if store is None else LogManager(Account, store=store("default"))
    change_layout(other, using="default")

    with pytest.raises(LayoutDiffers, match=other) as caught:
        manager.append(state, Deposited(1), idempotency_key="key")
    assert (caught.value.layout, caught.value.using) == (other, "default")
    with pytest.raises(LayoutDiffers):
        manager.create(Opened("eve"), Deposited(1))
    with pytest.raises(LayoutDiffers), transaction.atomic():
        manager.create(Opened("eve"))
    if connection.vendor != "sqlite":  # there, both read the same
        with pytest.raises(FeedUnavailable):
            Feed().read()

    with configured(settings, other):
        assert manager.version(state.log_id) == 1
        assert manager.append(state, Deposited(1), idempotency_key="key").version == 2


@pytest.mark.parametrize("store", [None, PortableStore], ids=["own", "portable"])
@pytest.mark.parametrize("layout", ["buckets", "fence"])
def test_a_refused_append_leaves_nothing_though_the_caller_commits(home, settings, layout, store):
    """The log's version is raised before the database refuses the events."""
    change_layout(OTHER[layout], using="default")
    with configured(settings, OTHER[layout]):
        state = accounts.create(Opened("ada"))
    change_layout(layout, using="default")
    manager = accounts if store is None else LogManager(Account, store=store("default"))

    with configured(settings, OTHER[layout]):
        with transaction.atomic(), suppress(LayoutDiffers):
            manager.append(state, Deposited(1), idempotency_key="key")
        transaction.set_autocommit(False)
        try:
            with suppress(LayoutDiffers):
                manager.append(state, Deposited(1), idempotency_key="key")
            transaction.commit()
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    assert accounts.version(state.log_id) == Event.objects.count() == 1
    assert not IdempotencyKey.objects.exists()


def test_what_flush_removes_comes_back(home, settings):
    change_layout("buckets", using="default")
    with configured(settings, "buckets"):
        state = accounts.create(Opened("ada"))
        Bucket.objects.all().delete()

        keep_layout("default")

        assert is_complete(connection, "buckets")
        assert min(Bucket.objects.values_list("number", flat=True)) == state.position // 64


def test_a_database_without_events_gets_the_layout_of_the_settings(home, settings):
    change_layout("fence", using="default")
    with configured(settings, "fence"):
        keep_layout("default")
        assert not Bucket.objects.exists()
        accounts.create(Opened("ada"))
    with configured(settings, "buckets"):
        keep_layout("default")
        assert layout_of(connection) == "fence"
        call_command("flush", interactive=False, verbosity=0)
        assert is_complete(connection, "buckets")
        accounts.create(Opened("ada"))


@pytest.mark.parametrize("layout", ["buckets", "fence"])
def test_interrupted_anywhere_it_is_finished_by_the_next_call(home, settings, layout, monkeypatch):
    """On MariaDB each statement about a table commits by itself."""
    change_layout(OTHER[layout], using="default")
    with configured(settings, OTHER[layout]):
        state = accounts.create(Opened("ada"))
    run, steps = stored._run, 0

    def dies(after: int) -> Any:
        def attempt(connection: Any, statements: tuple[str, ...], **values: int) -> None:
            nonlocal steps
            for statement in statements:
                if steps == after:
                    raise KeyboardInterrupt
                steps += 1
                run(connection, (statement,), **values)

        return attempt

    for after in range(4):
        steps = 0
        with monkeypatch.context() as dying:
            dying.setattr(stored, "_run", dies(after))
            try:
                change_layout(layout, using="default")
            except KeyboardInterrupt:
                assert not is_complete(connection, layout)
                continue
        break

    change_layout(layout, using="default")
    assert is_complete(connection, layout)
    with configured(settings, layout):
        assert accounts.append(state, Deposited(1)).position > state.position


def test_it_is_not_changed_in_a_transaction(home):
    with transaction.atomic(), pytest.raises(RuntimeError, match="outside of a transaction"):
        change_layout(OTHER[home], using="default")
    with pytest.raises(ValueError, match="fence, buckets"):
        change_layout("heap", using="default")


@pytest.mark.locks
def test_others_that_hold_the_table_are_waited_for_and_named_at_last(home, monkeypatch):
    monkeypatch.setattr(layouts, "ATTEMPTS", 2)
    monkeypatch.setattr(layouts, "PAUSE", 0)
    told = []
    with ThreadPoolExecutor(1) as thread:
        thread.submit(transaction.set_autocommit, False).result()
        thread.submit(accounts.create, Opened("open")).result()
        try:
            with pytest.raises(CannotChangeLayout, match="locked for minutes") as caught:
                change_layout(OTHER[home], using="default", tell=lambda: told.append(1))
        finally:
            thread.submit(connection_of_thread_ends).result()
    assert pickle.loads(pickle.dumps(caught.value)).using == "default"
    assert told == [1]
    assert layout_of(connection) == home
    assert change_layout(OTHER[home], using="default")


def connection_of_thread_ends() -> None:
    connection.rollback()
    connection.close()


@pytest.mark.postgresql
def test_a_table_that_is_being_copied_keeps_its_layout(home, monkeypatch):
    monkeypatch.setattr(partitioning, "is_begun", lambda cursor: True)
    with pytest.raises(CannotChangeLayout, match="--abandon"):
        change_layout(OTHER[home], using="default")


@pytest.mark.postgresql
def test_positions_above_those_of_a_fence_stay_with_their_counters(home):
    change_layout("buckets", using="default")
    Bucket.objects.filter(pk=1).update(number=2**42)
    try:
        with pytest.raises(CannotChangeLayout, match="a fence goes up to"):
            change_layout("fence", using="default")
    finally:
        Bucket.objects.filter(pk=1).update(number=2**39)
