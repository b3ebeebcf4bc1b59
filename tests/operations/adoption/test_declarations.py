"""How a project declares what its rows become."""

from __future__ import annotations

from uuid import UUID

import pytest

from eventlogs import LogId, RegistrationError
from eventlogs.operations.adoption import Adoption
from eventlogs.operations.adoption.declarations import (
    adoption_by,
    adoptions_of,
    declared,
    imported,
    model_of,
)
from eventlogs.utils.names import dotted
from tests.operations.adoption import shop
from tests.operations.adoption.shop import Document, Order, Orders, ShopOrder


def test_a_declared_adoption_is_found_by_its_model():
    assert adoptions_of(Order) == [Orders]
    assert declared[dotted(Orders)] is Orders


def test_the_log_of_a_row_is_that_of_its_primary_key():
    orders, uuid = Orders(), UUID(int=7)

    assert orders.log_id(Order(pk=42)) == LogId.from_key("shop_order", 42)
    assert orders.log_id(Document(pk=uuid)) == LogId.from_uuid("shop_order", uuid)
    with pytest.raises(RegistrationError, match=r"log_id\(self, row\)"):
        orders.log_id(Order(pk=1.5))


def test_the_time_of_a_row_is_that_of_its_auto_now_add_field():
    class Plain(Adoption):
        aggregate = ShopOrder

    document = Document(created=shop.LONG_AGO)

    assert Plain().recorded_at(document) == shop.LONG_AGO
    with pytest.raises(RegistrationError, match="0 fields with auto_now_add"):
        Plain().recorded_at(Order())
    for call in (Plain().event, Plain().change):
        with pytest.raises(NotImplementedError):
            call(None)


def test_a_path_leads_to_a_class_a_function_or_a_method():
    place = "tests.operations.adoption.shop"

    assert imported(f"{place}.Orders") is Orders
    assert imported(f"{place}.imported") is shop.imported
    assert imported(f"{place}.Order.__str__") is Order.__str__
    for path in ("", "x", "tests.nothing.here", f"{place}.Nothing", f"{place}.Order.nothing"):
        with pytest.raises(RegistrationError, match="There is nothing at"):
            imported(path)


def test_a_function_is_an_adoption_too():
    adoption = adoption_by(shop.imported, Order, aggregate=ShopOrder, time="placed_at")
    row = Order(pk=1, customer="ada", total=3, placed_at=shop.LONG_AGO)

    assert adoption().event(row) == shop.Imported("ada", 3)
    assert adoption().recorded_at(row) == shop.LONG_AGO
    with pytest.raises(RegistrationError, match="has no field 'x'"):
        adoption_by(shop.imported, Order, aggregate=ShopOrder, time="x")
    with pytest.raises(RegistrationError, match="--aggregate"):
        adoption_by(shop.imported, Order, aggregate=None, time=None)
    with pytest.raises(RegistrationError, match="no function"):
        adoption_by("x", Order, aggregate=ShopOrder, time=None)  # type: ignore[arg-type]


def test_a_label_leads_to_a_model():
    assert model_of("auth.User")._meta.label == "auth.User"
    for label in ("x", "auth.Nobody", "a.b.c"):
        with pytest.raises(RegistrationError, match=r"app_label\.ModelName"):
            model_of(label)
