"""Adopting the rows of a live table: no row twice, none left out, no change lost."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from eventlogs import (
    AdoptionFailed,
    InvalidEvent,
    LogErased,
    LogId,
    Reactor,
    RegistrationError,
    handles,
)
from eventlogs.models import Checkpoint, Event, EventLog, IdempotencyKey
from eventlogs.operations.adoption import Adopted, Adoption, declarations
from eventlogs.operations.adoption.running import key_of
from eventlogs.operations.verification import Scope, verify
from eventlogs.projections.base import projections
from eventlogs.projections.kinds import projection
from eventlogs.stores import erasing
from tests.accounts import Account, Opened
from tests.locks import a_session_waits
from tests.operations.adoption import shop
from tests.operations.adoption.shop import (
    LONG_AGO,
    Document,
    Gift,
    Imported,
    Order,
    Orders,
    Repriced,
    ShopOrder,
    id_of,
)
from tests.processes import Processes, until

PLACES = {"postgresql": 8, "sqlite": 4, "mysql": 8}


@pytest.fixture(autouse=True)
def _tables(transactional_db, monkeypatch):
    monkeypatch.setattr(declarations, "declared", dict(declarations.declared))
    with shop.tables():
        yield


def test_each_row_becomes_a_log_of_one_event_with_its_own_time():
    orders = shop.place(7)

    found = Orders.adopt(batch_size=3)

    assert found == Adopted(logs=7, events=7)
    for number, order in enumerate(orders):
        [record] = ShopOrder.logs.load(id_of(order))
        assert record.event == Imported(f"customer {number}", number)
        assert record.recorded_at == LONG_AGO + timedelta(seconds=number)
        assert record.metadata == {
            "adopted_from": {"model": "tests_of_adoption.order", "pk": str(order.pk)},
            "user": f"customer {number}",
        }
        log = EventLog.objects.get(pk=id_of(order).uuid)
        assert log.created_at == log.updated_at == record.recorded_at
    assert list(verify(Scope("default"))) == []


def test_a_second_run_finds_what_is_there_and_adopts_what_has_come_since():
    shop.place(3)
    Orders.adopt()
    Order.objects.update(total=1_000)
    shop.place(2)

    assert Orders.adopt() == Adopted(logs=2, events=2, present=3)
    assert Orders.adopt() == Adopted(present=5)


def test_a_row_without_an_event_gets_no_log():
    shop.place(2)
    shop.place(1, customer="nobody")

    assert Orders.adopt() == Adopted(logs=2, events=2, passed_over=1)


def test_a_row_whose_log_was_begun_by_the_application_is_left_alone():
    [order] = shop.place(1)
    ShopOrder.logs.create(Imported("somebody", 5), log_id=id_of(order))

    assert Orders.adopt() == Adopted(present=1)
    assert ShopOrder.logs.version(id_of(order)) == 1


def test_rows_go_on_in_their_logs():
    [order] = shop.place(1)
    Orders.adopt()

    shop.reprice(order.pk, 7)

    reduction = ShopOrder.logs.reduce(id_of(order))
    assert (reduction.version, reduction.aggregate.total, reduction.aggregate.changes) == (2, 7, 1)


def test_the_key_of_a_row_keeps_it_from_being_adopted_under_another_id():
    class Anew(Orders):
        model = Order

        def log_id(self, row: Order) -> LogId:
            return LogId.new("shop_order", at=row.placed_at)

    shop.place(3)
    assert Anew.adopt().logs == 3

    assert Anew.adopt() == Adopted(present=3)
    assert IdempotencyKey.objects.count() == EventLog.objects.count() == 3
    assert {log.log_id.created_at for log in EventLog.objects.all()} == {
        (LONG_AGO + timedelta(seconds=number)).replace(microsecond=789_000) for number in range(3)
    }


def test_a_model_with_uuids_keeps_them_as_ids():
    class Documents(Adoption):
        model = Document
        aggregate = ShopOrder

        def event(self, row: Document) -> Imported:
            return Imported(row.title, 0)

    uuids = [uuid4(), UUID(int=7)]
    for each in uuids:
        Document.objects.create(id=each, title="a title")

    assert Documents.adopt().logs == 2

    logs = EventLog.objects.in_bulk(uuids)
    created = dict(Document.objects.values_list("pk", "created"))
    assert {pk: log.created_at for pk, log in logs.items()} == created
    assert [ShopOrder.logs.version(LogId.from_uuid("shop_order", each)) for each in uuids] == [1, 1]


def test_rows_of_a_model_with_a_parent_are_locked_with_those_of_the_parent():
    class Gifts(Orders):
        model = Gift

    gift = Gift.objects.create(customer="ada", total=3, wish="happy birthday")

    with CaptureQueriesContext(connection) as queries:
        assert Gifts.adopt() == Adopted(logs=1, events=1)

    assert ShopOrder.logs.reduce(id_of(gift)).aggregate.total == 3
    if connection.vendor == "postgresql":
        [locking] = [
            each["sql"]
            for each in queries
            if "tests_of_adoption_gift" in each["sql"] and "FOR NO KEY UPDATE" in each["sql"]
        ]
        assert 'OF "tests_of_adoption_gift", "tests_of_adoption_order" SKIP LOCKED' in locking


def test_reactors_do_not_react_to_adopted_events_and_do_to_later_ones(tables_of_reactors):
    orders = shop.place(5)
    Orders.adopt()
    shop.reprice(orders[0].pk, 1)

    Told.catch_up()

    assert told == [Repriced(1)]
    assert Checkpoint.objects.get().position == Event.objects.latest("position").position


told: list[object] = []


class Told(Reactor):
    log_types = ["shop_order"]

    @handles(Imported, Repriced)
    def tell(self, record):
        told.append(record.event)


@pytest.fixture
def tables_of_reactors():
    if connection.vendor == "mysql":
        pytest.skip("there is no feed")
    told.clear()
    projection("told")(Told)
    yield
    del projections["told"]


def test_nobody_can_mark_an_event_as_adopted_by_an_append():
    with pytest.raises(InvalidEvent, match="adopted_from"):
        ShopOrder.logs.create(Imported("x", 1), metadata={"adopted_from": {}})


# Rows that cannot be adopted


def fails(adoption: type[Adoption], **changes: object) -> AdoptionFailed:
    broken: Any = type("Broken", (adoption,), {"model": Order, **changes})
    with pytest.raises(AdoptionFailed) as caught:
        broken.adopt(batch_size=2)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event": lambda self, row: "x"}, "a str is given"),
        ({"event": lambda self, row: Imported(row.customer, 2**70_000)}, "bits"),
        ({"event": lambda self, row: {}[row.customer]}, "KeyError"),
        ({"recorded_at": lambda self, row: row.placed_at.date()}, "its time"),
        ({"recorded_at": lambda self, row: row.placed_at.replace(tzinfo=None)}, "its time"),
        ({"recorded_at": lambda self, row: timezone.now() + timedelta(hours=1)}, "future"),
        ({"metadata": lambda self, row: {"x": float("nan")}}, "NaN"),
        ({"metadata": lambda self, row: {"adopted_from": 1}}, "adopted_from"),
        ({"log_id": lambda self, row: LogId.from_key("other", row.pk)}, "shop_order"),
        ({"log_id": lambda self, row: LogId.from_key("shop_order", 1)}, "another row"),
    ],
)
def test_a_row_that_cannot_be_adopted_is_named_and_its_values_are_not_told(changes, reason):
    [order, *_] = shop.place(3, customer="4111-secret")

    error = fails(Orders, **changes)

    assert reason in str(error)
    assert error.model == "tests_of_adoption.order"
    assert f"row {error.key} " in str(error)
    assert "4111" not in str(error)
    assert not EventLog.objects.exists()
    if "log_id" not in changes:
        assert error.key == order.pk


def test_batches_before_the_one_that_fails_are_stored_and_the_next_run_goes_on():
    orders = shop.place(5)
    Order.objects.filter(pk=orders[3].pk).update(placed_at=timezone.now() + timedelta(days=1))

    assert fails(Orders).key == orders[3].pk
    assert EventLog.objects.count() == 2

    Order.objects.update(placed_at=LONG_AGO)
    assert Orders.adopt() == Adopted(logs=3, events=3, present=2)


def test_two_rows_of_different_batches_with_one_log_id_are_found_out():
    class Shared(Orders):
        model = Order

        def log_id(self, row: Order) -> LogId:
            return LogId.from_key("shop_order", row.customer)

    first = shop.place(1, customer="ada")
    Shared.adopt()
    shop.place(1, customer="ada")

    with pytest.raises(AdoptionFailed, match="another row has the same log id"):
        Shared.adopt(batch_size=1)
    assert ShopOrder.logs.version(LogId.from_key("shop_order", "ada")) == len(first)


def test_a_uuid_that_is_another_types_log_is_found_out(scratch_registry):
    uuid = uuid4()
    Document.objects.create(id=uuid, title="x")

    class Documents(Adoption):
        model = Document
        aggregate = ShopOrder

        def event(self, row: Document) -> Imported:
            return Imported(row.title, 0)

    Account.logs.create(Opened("ada"), log_id=LogId.from_uuid("account", uuid))

    with pytest.raises(AdoptionFailed, match=r"from_key\(\)"):
        Documents.adopt()


def test_a_dry_run_stores_nothing_and_tells_of_each_row_that_would_fail():
    orders = shop.place(5)
    Order.objects.filter(pk=orders[3].pk).update(placed_at=timezone.now() + timedelta(days=1))

    found = Orders.adopt(dry_run=True)

    assert (found.logs, found.events) == (4, 4)
    [problem] = found.problems
    assert f"row {orders[3].pk} " in problem
    assert not EventLog.objects.exists()


def test_a_batch_is_of_one_to_ten_thousand_rows():
    for size in (0, 10_001):
        with pytest.raises(ValueError, match="batch_size"):
            Orders.adopt(batch_size=size)


def test_it_can_be_awaited():
    shop.place(1)

    assert async_to_sync(Orders.aadopt)(batch_size=1) == Adopted(logs=1, events=1)


def test_keys_of_rows_fit_whatever_the_primary_key_is():
    assert key_of("shop.order", 42) == "adopt:shop.order:42"
    keys = {key_of("shop.order", each) for each in ("x" * 300, "y" * 300, "a\0b", "\ud800" * 300)}
    assert len(keys) == 4
    assert all(len(each) <= 255 and "\0" not in each for each in keys)


@pytest.mark.fence
def test_an_adoption_takes_few_statements(django_assert_max_num_queries):
    shop.place(100)

    with django_assert_max_num_queries(35):
        Orders.adopt(batch_size=50)
    with django_assert_max_num_queries(10):
        Orders.adopt(batch_size=50)


# Races and kills


def states() -> dict[int, tuple[int, int]]:
    """Return the total of each order by its row, and by its log."""
    return {
        order.pk: (order.total, ShopOrder.logs.reduce(id_of(order)).aggregate.total)
        for order in Order.objects.all()
    }


def test_an_adoption_that_is_killed_is_resumed_with_no_row_twice_and_none_left_out():
    orders = shop.place(300)
    kills, report = 0, None

    with Processes() as processes:
        while report is None:
            process = processes.start(shop.adopt, 10)
            for _ in range(6 * (kills + 1)):
                said = process.heard()
                if not isinstance(said, int):
                    report = said
                    break
            else:
                process.kill()
                kills += 1

    assert kills >= 3
    assert report.logs + report.present == 300
    counts = Counter(Event.objects.values_list("log_id", flat=True))
    assert counts == {id_of(order).uuid: 1 for order in orders}
    assert EventLog.objects.count() == IdempotencyKey.objects.count() == 300
    assert list(verify(Scope("default"))) == []


def test_adoptions_side_by_side_adopt_each_row_once():
    shop.place(200)

    with Processes() as processes:
        processes.line_up(3, shop.adopt_in_silence)
        processes.go()
        reports = processes.reports()

    assert sum(each.logs for each in reports) == 200
    assert [each.logs + each.present for each in reports] == [200] * 3
    assert Event.objects.count() == EventLog.objects.count() == 200


def race(runs: str) -> dict[int, tuple[int, int]]:
    """Change rows in some processes while another one adopts them; return what is different."""
    places, pks = PLACES[connection.vendor], [order.pk for order in shop.place(200, total=0)]
    with Processes() as processes:
        processes.line_up(places, shop.work, runs, pks)
        processes.go()
        processes.reports()
    assert Orders.adopt().present == 200  # rows that a writer had locked are adopted, too
    found = {pk: both for pk, both in states().items() if both[0] != both[1]}
    assert sum(row for row, _ in states().values()) == shop.CHANGES * (places - 1)
    return found


def test_no_change_of_a_row_is_lost_while_it_is_adopted():
    assert race("whole") == {}


@pytest.mark.locks
def test_a_broken_version_that_locks_no_row_loses_changes():
    def lost() -> bool:
        with transaction.atomic():
            Order.objects.all().delete()
        return bool(race("broken"))

    assert any(lost() for _ in range(10))


@pytest.mark.postgresql
def test_a_row_that_is_locked_is_adopted_when_its_writer_is_done():
    orders = shop.place(4)

    with Processes() as processes:
        with transaction.atomic():
            Order.objects.filter(pk=orders[1].pk).update(total=77)
            process = processes.start(shop.adopt, 10)
            until(a_session_waits, what="an adoption that waits for a row")
            assert EventLog.objects.count() == 3
        assert process.heard() == 4
        assert process.report().logs == 4

    assert ShopOrder.logs.reduce(id_of(orders[1])).aggregate.total == 77


def test_a_row_whose_log_was_erased_is_not_adopted_again():
    orders = shop.place(3)
    Orders.adopt()
    erasing.erase("default", id_of(orders[1]), by="grace", reason="order 7")

    adopted = Orders.adopt()

    assert (adopted.logs, adopted.events) == (0, 0)
    assert EventLog.objects.count() == 2
    with pytest.raises(LogErased):
        ShopOrder.logs.reduce(id_of(orders[1]))


def test_a_declaration_that_cannot_work_is_refused():
    class NoAggregate(Adoption):
        model = Order

    class NoModel(Adoption):
        model = "shop.Nothing"
        aggregate = ShopOrder

    class NoHistory(Orders):
        model = Order
        history = "memory"

    for each in (NoAggregate, NoModel, NoHistory):
        with pytest.raises(RegistrationError):
            each.adopt()
