"""Links from a row of a read model to the events of its log."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from django.contrib.admin import AdminSite, ModelAdmin, site
from django.urls import clear_url_caches, path, reverse

from eventlogs.admin import EventAdmin, EventLogAdminMixin, LogAdmin
from eventlogs.models import Event, EventLog
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


def test_the_page_of_a_row_shows_its_latest_events(admin_client, row):
    page = admin_client.get(reverse("admin:payments_paymentsummary_change", args=[row.pk]))
    text = page.content.decode()

    for part in ("payment.captured", "payment.requested", of(row.log_id), "Latest events"):
        assert part in text


def test_a_list_links_to_the_history(admin_client, row):
    page = admin_client.get(reverse("admin:payments_paymentsummary_changelist"))

    assert f'<a href="{of(row.log_id)}">Show events</a>' in page.content.decode()


def test_a_user_without_the_event_permission_sees_no_events(client, row):
    client.force_login(user("view_paymentsummary"))
    page = client.get(reverse("admin:payments_paymentsummary_change", args=[row.pk]))

    assert page.status_code == 200
    assert "payment.captured" not in page.content.decode()


# Sites without the logs, and with them elsewhere


class RowAdmin(EventLogAdminMixin, ModelAdmin):
    list_display = ("log_id", "history_link")
    readonly_fields = ("history_link",)


@pytest.fixture
def sites(settings):
    """A function that serves admin sites: names, and whether each of them has the logs."""

    def serve(**with_logs: bool) -> None:
        urls = ModuleType("tests.admin.urls_of_sites")
        urls.sites = []  # type: ignore[attr-defined]  # all_sites has weak references
        urls.urlpatterns = []  # type: ignore[attr-defined]
        for name, has_logs in with_logs.items():
            one = AdminSite(name)
            one.register(PaymentSummary, RowAdmin)
            if has_logs:
                one.register(EventLog, LogAdmin)
                one.register(Event, EventAdmin)
            urls.sites.append(one)
            urls.urlpatterns.append(path(f"{name}/", one.urls))
        sys.modules[urls.__name__] = urls
        settings.ROOT_URLCONF = urls.__name__
        clear_url_caches()

    yield serve
    sys.modules.pop("tests.admin.urls_of_sites", None)
    clear_url_caches()


def pages_of(row, site: str) -> tuple[str, str]:
    """Return the addresses of a row's page, and of the list of rows."""
    model = f"{site}:payments_paymentsummary"
    return reverse(f"{model}_change", args=[row.pk]), reverse(f"{model}_changelist")


def test_without_a_site_for_logs_the_page_of_a_row_has_no_links(admin_client, row, sites):
    sites(rows=False)
    for address in pages_of(row, "rows"):
        page = admin_client.get(address)
        assert page.status_code == 200
        assert f"eventlog/{row.log_id}" not in page.content.decode()
    page = admin_client.get(pages_of(row, "rows")[0]).content.decode()
    assert "payment.captured" in page  # the latest events are still shown


def test_links_lead_to_another_site_that_has_the_logs(admin_client, row, sites):
    sites(rows=False, history=True)
    there = f'href="/history/eventlogs/eventlog/{row.log_id}/change/'

    for address in pages_of(row, "rows"):
        assert there in admin_client.get(address).content.decode()
    page = admin_client.get(f"/history/eventlogs/eventlog/{row.log_id}/change/?event=0")
    assert 'href="/history/eventlogs/event/?log=' in page.content.decode()
    assert admin_client.get("/history/eventlogs/event/").status_code == 200


@pytest.mark.parametrize("first", [True, False])
def test_pages_of_a_custom_site_link_to_that_site(admin_client, row, sites, first):
    sites(**({"rows": True, "admin": True} if first else {"admin": True, "rows": True}))
    for address in (
        "eventlog/",
        "event/",
        f"eventlog/{row.log_id}/change/",
    ):
        page = admin_client.get(f"/rows/eventlogs/{address}").content.decode()
        assert f'"/rows/eventlogs/eventlog/{row.log_id}/' in page.replace("?", '"'), address
        assert 'href="/admin/' not in page, address


def test_a_site_with_the_logs_links_to_itself(admin_client, row, sites):
    sites(admin=True, rows=True)

    page = admin_client.get(pages_of(row, "rows")[0]).content.decode()

    assert f'href="/rows/eventlogs/eventlog/{row.log_id}/change/' in page
    assert 'href="/admin/' not in page


@pytest.mark.parametrize("permissions", [("view_event",), ()])
def test_a_user_without_the_log_permission_gets_no_links_to_logs(client, row, sites, permissions):
    sites(rows=True)
    client.force_login(user("view_paymentsummary", *permissions))
    for address in pages_of(row, "rows"):
        page = client.get(address)
        assert page.status_code == 200
        assert f"eventlog/{row.log_id}" not in page.content.decode()
    page = client.get(pages_of(row, "rows")[0]).content.decode()
    assert ("payment.captured" in page) == bool(permissions)


@pytest.mark.parametrize("value", [None, "x", 7])
def test_a_row_without_a_log_has_no_history(value):
    class Row:
        log_id = value

    class Admin(EventLogAdminMixin):
        admin_site = site

    assert Admin().get_log_id(Row()) is None
    assert Admin().history_link(Row()) == "—"
