"""``manage.py eventlogs adopt``."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from eventlogs.management.subcommands import adopt
from eventlogs.models import EventLog
from tests.operations.adoption import shop
from tests.operations.adoption.shop import Order, Orders, ShopOrder

SHOP = "tests.operations.adoption.shop"


@pytest.fixture(autouse=True)
def _tables(transactional_db, monkeypatch):
    monkeypatch.setattr(adopt, "model_of", lambda label: {"shop.Order": Order}[label])
    with shop.tables():
        yield


def command(*arguments: str) -> str:
    out = StringIO()
    call_command("eventlogs", "adopt", "shop.Order", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def test_the_declared_adoption_of_the_model_is_used():
    shop.place(3)

    assert "3 logs made of 3 events; 0 rows had a log, 0 passed over." in command()
    assert "0 logs made of 0 events; 3 rows had a log" in command("--batch-size", "2")


def test_a_path_may_name_an_adoption_or_a_function():
    shop.place(2)

    assert "2 logs" in command("--with", f"{SHOP}.Orders", "--dry-run")
    said = command(
        *("--with", f"{SHOP}.imported", "--aggregate", "ShopOrder", "--time", "placed_at", "--json")
    )

    assert json.loads(said)["logs"] == 2
    assert ShopOrder.logs.reduce(shop.id_of(Order.objects.first())).aggregate.total == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--with", "x.y"], "There is nothing at"),
        (["--with", f"{SHOP}.imported", "--aggregate", "Nobody"], "Aggregates: "),
        (["--with", f"{SHOP}.imported", "--aggregate", "ShopOrder", "--time", "x"], "no field"),
        (["--with", f"{SHOP}.Orders", "--time", "placed_at"], "an Adoption declares both"),
        (["--time", "placed_at"], "--with"),
        (["--batch-size", "20000"], "batch_size"),
    ],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(CommandError, match=message) as caught:
        command(*arguments)
    assert caught.value.returncode == 2


def test_a_row_that_cannot_be_adopted_ends_it_and_is_a_finding_of_a_dry_run(monkeypatch):
    [_, order] = shop.place(2)
    Order.objects.filter(pk=order.pk).update(total=-(2**31))
    with monkeypatch.context() as broken:
        broken.setattr(Orders, "event", lambda self, row: {}[row.total])
        with pytest.raises(CommandError, match="KeyError"):
            command()
        with pytest.raises(CommandError, match="2 rows cannot be adopted") as caught:
            command("--dry-run")

    assert caught.value.returncode == 1
    assert not EventLog.objects.exists()
    assert Orders.adopt().logs == 2
