"""The way from a row of a read model to the history behind it."""

from __future__ import annotations

import pytest
from django.contrib.admin import site
from django.urls import reverse

from eventlogs.admin import EventLogAdminMixin
from example_project.payments.events import Captured, Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.admin.test_logs import of, user

pytestmark = [pytest.mark.django_db, pytest.mark.feed]


@pytest.fixture
def row():
    Payment.logs.create(Requested(amount=5), Captured(amount=3))
    PaymentSummaries.catch_up()
    return PaymentSummary.objects.get()


def test_the_page_of_a_row_shows_what_happened_last(admin_client, row):
    page = admin_client.get(reverse("admin:payments_paymentsummary_change", args=[row.pk]))
    text = page.content.decode()

    for part in ("payment.captured", "payment.requested", of(row.log_id), "What happened last"):
        assert part in text


def test_a_list_leads_to_the_history(admin_client, row):
    page = admin_client.get(reverse("admin:payments_paymentsummary_changelist"))

    assert f'<a href="{of(row.log_id)}">History</a>' in page.content.decode()


def test_who_may_not_see_events_sees_none(client, row):
    client.force_login(user("view_paymentsummary"))
    page = client.get(reverse("admin:payments_paymentsummary_change", args=[row.pk]))

    assert page.status_code == 200
    assert "payment.captured" not in page.content.decode()


@pytest.mark.parametrize("value", [None, "x", 7])
def test_a_row_without_a_log_has_no_history(value):
    class Row:
        log_id = value

    class Admin(EventLogAdminMixin):
        admin_site = site

    assert Admin().get_log_id(Row()) is None
    assert Admin().history_link(Row()) == "—"
