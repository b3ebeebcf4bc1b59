"""Projections in the admin: seen by who may see them, operated by who may do that."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from eventlogs.models import ParkedEvent, ProjectionState, SkippedEvent
from eventlogs.projections.declarations import projections
from eventlogs.projections.running import run
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.parked import parked_payment
from tests.projections.readmodels import Letters

pytestmark = pytest.mark.django_db

ALL = reverse("admin:eventlogs_projectionstate_changelist")


def address(what: str) -> str:
    return reverse(f"admin:eventlogs_projectionstate_{what}", args=["payment-summary"])


def user(*permissions: str, name: str = "ada") -> User:
    made = User.objects.create_user(name, password="x", is_staff=True)
    made.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return made


@pytest.fixture
def viewer(client):
    client.force_login(user("view_projectionstate"))
    return client


@pytest.fixture
def operator(client):
    client.force_login(
        user("view_projectionstate", "operate_projections", "view_payload", name="grace")
    )
    return client


@pytest.fixture
def parked(monkeypatch):
    """A payment whose second event is parked; what was raised is markup."""
    return parked_payment(monkeypatch, "<script>alert(4111)</script>")


@pytest.mark.feed
def test_all_projections_are_shown_with_how_they_stand(viewer, parked):
    page = viewer.get(ALL).content.decode()

    assert "payment-summary" in page
    assert "fine-balance" in page
    assert '<span class="el-badge el-parked">1 parked</span>' in page
    assert "up to date, but for 1 log that is held" in page
    assert "rows are up to date" not in page


@pytest.mark.feed
def test_one_projection_is_shown_with_what_waits(viewer, parked):
    page = viewer.get(address("change")).content.decode()

    for part in (str(parked.log_id), "payment.captured", "ValueError", "1 attempt,"):
        assert part in page
    # Without the permissions: no data, no buttons.
    assert "4111" not in page
    assert "<button" not in page.partition('id="content-main"')[2].partition("</main>")[0]


@pytest.mark.feed
def test_what_was_raised_is_for_who_may_see_payloads_and_escaped(operator, parked):
    page = operator.get(address("change")).content.decode()

    assert "&lt;script&gt;alert(4111)" in page
    assert "<script>alert" not in page


@pytest.mark.feed
def test_an_event_is_tried_again(operator, parked):
    response = operator.post(address("retry"), {"log_id": parked.log_id}, follow=True)
    assert "1 event is tried again" in response.content.decode()
    PaymentSummaries.catch_up()

    assert PaymentSummary.objects.get().captured == 3
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_id) == ("grace", "payment-summary")
    assert entry.change_message == f"Retried {parked.log_id} (1)."


@pytest.mark.feed
def test_an_event_is_skipped_after_a_confirmation(operator, parked):
    asked = operator.get(address("skip"), {"log_id": parked.log_id})
    assert "Skip an event for good?" in asked.content.decode()
    assert not SkippedEvent.objects.exists()
    # The event may be another one by the time of the answer.
    operator.post(address("skip"), {"log_id": parked.log_id, "index": 0})
    assert not SkippedEvent.objects.exists()

    operator.post(address("skip"), {"log_id": parked.log_id, "index": 1})
    PaymentSummaries.catch_up()

    assert SkippedEvent.objects.get().index == 1
    assert PaymentSummary.objects.get().requested == 7
    assert "Skipped event 1" in LogEntry.objects.get().change_message
    again = operator.post(
        address("skip"), {"log_id": parked.log_id, "index": 1}, follow=True
    ).content.decode()
    assert "No event of this log waits any more." in again


@pytest.mark.feed
def test_a_rebuild_is_asked_for_and_done_by_a_worker(operator, parked):
    assert "Rebuild all rows?" in operator.get(address("rebuild")).content.decode()
    assert ProjectionState.objects.get().rebuild_requested_at is None

    page = operator.post(address("rebuild"), follow=True).content.decode()
    assert "A rebuild was asked for" in page
    PaymentSummary.objects.update(requested=99)
    run(["payment-summary"])

    assert ProjectionState.objects.get().rebuild_requested_at is None
    assert PaymentSummary.objects.get().requested == 7
    assert not ParkedEvent.objects.exists()


@pytest.mark.feed
def test_a_rebuild_that_comes_to_nothing_says_why(operator, parked, monkeypatch):
    def fail(*_):
        raise ValueError("4111")

    monkeypatch.setattr(PaymentSummaries, "requested", fail)
    operator.post(address("rebuild"))
    run(["payment-summary"])

    page = operator.get(address("change")).content.decode()
    assert "could not apply the event at position" in page
    assert "Begun" in page  # it can be resumed


@pytest.mark.feed
@pytest.mark.parametrize("what", ["retry", "skip", "rebuild"])
def test_who_may_only_look_may_do_nothing(viewer, parked, what):
    data = {"log_id": parked.log_id, "index": 1}

    assert viewer.post(address(what), data).status_code == 403
    assert ParkedEvent.objects.get().retry_at is None
    assert not LogEntry.objects.exists()


@pytest.mark.feed
@pytest.mark.parametrize("what", ["changelist", "change", "retry", "skip", "rebuild"])
def test_who_may_not_look_sees_nothing(client, what):
    client.force_login(user("operate_projections"))
    where = ALL if what == "changelist" else address(what)

    assert client.post(where).status_code == 403


@pytest.mark.parametrize(
    ("what", "data"),
    [("retry", {"log_id": "x"}), ("skip", {"log_id": "x"}), ("skip", {})],
)
@pytest.mark.feed
def test_a_log_that_is_none_is_404(operator, what, data):
    assert operator.post(address(what), data).status_code == 404


@pytest.mark.feed
def test_a_projection_that_is_none_is_404_and_a_reactor_has_no_rows(operator, monkeypatch):
    where = reverse("admin:eventlogs_projectionstate_change", args=["x"])
    assert operator.get(where).status_code == 404

    monkeypatch.setitem(projections, "letters", Letters)
    rebuild = reverse("admin:eventlogs_projectionstate_rebuild", args=["letters"])
    assert operator.get(rebuild).status_code == 404


@pytest.mark.feed
def test_nobody_adds_changes_or_deletes(admin_client):
    for what in ("add/", "payment-summary/delete/", "x/history/", "x/held/"):
        assert admin_client.get(f"{ALL}{what}").status_code == 404
    assert admin_client.get(reverse("admin:index")).status_code == 200


@pytest.mark.feed
def test_deeds_need_a_post(operator, parked):
    assert operator.get(address("retry")).status_code == 405


@pytest.mark.feed
def test_pages_have_no_inline_script_or_style(operator, parked):
    for where in (ALL, address("change"), address("rebuild")):
        page = operator.get(where).content.decode()
        main = page.partition('id="content-main"')[2].partition("</main>")[0]
        assert "style=" not in main
        assert "<script" not in main
        assert " onclick" not in main


@pytest.mark.mariadb
def test_without_a_feed_the_pages_say_so_and_no_rebuild_is_asked_for(operator):
    assert "only on PostgreSQL and SQLite" in operator.get(ALL).content.decode()
    assert operator.get(address("change")).status_code == 200
    page = operator.post(address("rebuild"), follow=True).content.decode()

    assert "No worker runs in this database" in page
    assert not ProjectionState.objects.exists()
