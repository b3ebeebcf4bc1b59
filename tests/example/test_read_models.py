"""The read models of the example: payments listed and summed up, and the balances of fines."""

from __future__ import annotations

from decimal import Decimal
from io import StringIO

import pytest
from django.core.management import call_command
from django.db.models import Sum

from example_project.fines.events import Fine
from example_project.fines.models import FineBalance
from example_project.fines.projections import FineBalances
from example_project.payments.events import Authorized, Captured, Payment, Refunded, Requested
from example_project.payments.projections import PaymentSummaries
from tests.example import test_fines
from tests.example.test_fines import fine, paid

pytestmark = pytest.mark.django_db
write = test_fines.write  # a fixture


@pytest.fixture
def ids():
    """A payment of each status, by its name."""
    begin, set_aside = Requested(amount=100), Authorized(amount=100, approval_code=None)
    taken = Captured(amount=100)
    histories = {
        "requested": [],
        "authorized": [set_aside, Captured(amount=30)],
        "captured": [set_aside, taken, Refunded(amount=40)],
        "refunded": [set_aside, taken, Refunded(amount=60), Refunded(amount=40)],
    }
    found = {
        status: str(Payment.logs.create(begin, *events).log_id)
        for status, events in histories.items()
    }
    PaymentSummaries.catch_up()
    return found


def listed(client, query: str = "") -> list[str]:
    return [each["id"] for each in client.get(f"/payments/{query}").json()["payments"]]


def test_payments_are_listed_the_newest_first(client, ids):
    assert listed(client) == sorted(ids.values(), reverse=True)


@pytest.mark.parametrize("status", ["requested", "authorized", "captured", "refunded"])
def test_payments_are_found_by_status(client, ids, status):
    assert listed(client, f"?status={status}") == [ids[status]]


def test_payments_are_found_by_their_outstanding_amount(client, ids):
    assert listed(client, "?outstanding=true") == [ids["authorized"]]


def test_a_page_links_to_the_next_one(client, ids):
    found, address = [], "/payments/?limit=1"
    while address:
        page = client.get(address).json()
        found += [each["id"] for each in page["payments"]]
        address = page["next"]

    assert found == sorted(ids.values(), reverse=True)


def test_a_row_has_the_values_of_its_payment(client, ids):
    [row] = client.get("/payments/?status=captured").json()["payments"]
    payment = client.get(f"/payments/{ids['captured']}/").json()

    assert {name: row[name] for name in payment if name != "version"} == {
        name: value for name, value in payment.items() if name != "version"
    }


def test_totals_are_summed_up_by_status(client, ids):
    totals = {each["status"]: each for each in client.get("/payments/totals/").json()["totals"]}

    assert {status: each["payments"] for status, each in totals.items()} == dict.fromkeys(ids, 1)
    assert totals["authorized"]["amount_outstanding"] == 70
    assert totals["captured"]["amount_outstanding"] == 0


@pytest.mark.parametrize("query", ["?status=lost", "?limit=0", "?before=x", "?outstanding=1"])
def test_an_invalid_query_is_400(client, query):
    assert client.get(f"/payments/{query}").status_code == 400


def test_an_import_of_fines_brings_their_balances_up_to_date(write):
    file = write([fine("A1", "30.0"), paid("A1", "30.0", "30.0"), fine("A2", "20.0")])
    out = StringIO()

    call_command("import_fines", file, stdout=out)

    assert dict(FineBalance.objects.values_list("case", "status")) == {
        "A1": "paid",
        "A2": "created",
    }
    assert FineBalance.objects.aggregate(owed=Sum("outstanding")) == {"owed": Decimal("20.00")}
    for balance in FineBalance.objects.all():
        assert balance.total == Fine.logs.reduce(balance.log_id).aggregate.total
    assert out.getvalue().splitlines()[-1].split() == ["paid", "1", "0.00"]
    call_command("import_fines", file, stdout=out)
    assert FineBalances.verify(sample=None)
