"""Projections in the admin: pages, actions and permissions."""

from __future__ import annotations

import threading
from datetime import timedelta
from urllib.parse import parse_qsl

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection, transaction
from django.urls import reverse
from django.utils import timezone

from eventlogs.models import ParkedEvent, ProjectionAction, ProjectionState, SkippedEvent
from eventlogs.operations.health import health
from eventlogs.projections import actions
from eventlogs.projections import rebuild as rebuilding
from eventlogs.projections.base import projections
from eventlogs.projections.workers import run
from example_project.payments.events import Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.operations.health.wrong import lock_table
from tests.parked import parked_payment
from tests.problems import MANY, create_problems
from tests.projections.readmodels import Letters

pytestmark = pytest.mark.django_db

ALL = reverse("admin:eventlogs_projectionstate_changelist")


CAUSE = (
    "state=parked&error=ZeroDivisionError&handler=captured&type=payment.captured&schema_version=1"
)


def address(what: str, name: str = "payment-summary") -> str:
    return reverse(f"admin:eventlogs_projectionstate_{what}", args=[name])


def user(*permissions: str, name: str = "ada") -> User:
    made = User.objects.create_user(name, password="x", is_staff=True)
    made.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return made


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("table", ["eventlogs_event", "eventlogs_parkedevent"])
def test_the_pages_answer_while_a_table_is_locked(viewer, monkeypatch, table):
    run()
    monkeypatch.setattr("eventlogs.operations.health.look.PATIENCE", 0.2)
    with lock_table(table):
        page = viewer.get(ALL).content.decode()
        answer = viewer.get(address("change"), follow=True)

    for text in (page, answer.content.decode()):
        assert "took longer than" in text
        assert "The status of the projections cannot be read now." in text
    assert answer.redirect_chain == [(ALL, 302)]


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
    """A payment whose second event is parked; the text of the error is markup."""
    return parked_payment(monkeypatch, "<script>alert(4111)</script>")


@pytest.mark.feed
def test_all_projections_are_listed_with_their_status(viewer, parked):
    page = viewer.get(ALL).content.decode()

    assert "payment-summary" in page
    assert "fine-balance" in page
    assert '<span class="el-badge el-parked">1 parked</span>' in page
    assert "up to date, except for 1 held log" in page
    assert "rows are up to date" not in page


@pytest.mark.feed
def test_a_projection_is_shown_with_its_held_events(viewer, parked):
    page = viewer.get(address("change")).content.decode()

    for part in (str(parked.log_id), "payment.captured", "ValueError", "1 attempt,"):
        assert part in page
    # Without the permissions: no data, no buttons.
    assert "4111" not in page
    assert "<button" not in page.partition('id="content-main"')[2].partition("</main>")[0]


@pytest.mark.feed
def test_error_texts_are_escaped_and_need_the_view_payload_permission(operator, parked):
    page = operator.get(address("change")).content.decode()

    assert "&lt;script&gt;alert(4111)" in page
    assert "<script>alert" not in page


@pytest.mark.feed
def test_an_event_is_retried(operator, parked):
    response = operator.post(address("retry"), {"log_id": parked.log_id}, follow=True)
    assert "A worker will retry 1 event." in response.content.decode()
    PaymentSummaries.catch_up()

    assert PaymentSummary.objects.get().captured == 3
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_id) == ("grace", "payment-summary")
    assert entry.change_message == f"Retried {parked.log_id} (1)."


@pytest.mark.feed
def test_an_event_is_skipped_after_a_confirmation(operator, parked):
    asked = operator.get(address("skip"), {"log_id": parked.log_id})
    assert "Skip this event permanently?" in asked.content.decode()
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
    assert "No event holds this log any more." in again


@pytest.mark.feed
@pytest.mark.django_db(transaction=True)  # MariaDB makes tables outside of one
def test_a_requested_rebuild_is_done_by_a_worker(operator, parked):
    assert "Rebuild all rows?" in operator.get(address("rebuild")).content.decode()
    assert ProjectionState.objects.get().rebuild_requested_at is None

    page = operator.post(address("rebuild"), follow=True).content.decode()
    assert "A rebuild was requested" in page
    PaymentSummary.objects.update(requested=99)
    run(["payment-summary"])

    assert ProjectionState.objects.get().rebuild_requested_at is None
    assert PaymentSummary.objects.get().requested == 7
    assert not ParkedEvent.objects.exists()


@pytest.mark.feed
@pytest.mark.django_db(transaction=True)  # MariaDB makes tables outside of one
def test_a_rebuild_that_fails_says_why(operator, parked, monkeypatch):
    def fail(*_):
        raise ValueError("4111")

    monkeypatch.setattr(PaymentSummaries, "requested", fail)
    operator.post(address("rebuild"))
    run(["payment-summary"])

    page = operator.get(address("change")).content.decode()
    assert "could not apply the event at position" in page
    assert "Started" in page  # it can be resumed


@pytest.mark.feed
@pytest.mark.parametrize("what", ["retry", "skip", "rebuild"])
def test_a_user_with_only_the_view_permission_cannot_act(viewer, parked, what):
    data = {"log_id": parked.log_id, "index": 1}

    assert viewer.post(address(what), data).status_code == 403
    assert ParkedEvent.objects.get().retry_at is None
    assert not LogEntry.objects.exists()


@pytest.mark.feed
@pytest.mark.parametrize("what", ["changelist", "change", "retry", "skip", "rebuild"])
def test_a_user_without_the_view_permission_gets_403(client, what):
    client.force_login(user("operate_projections"))
    where = ALL if what == "changelist" else address(what)

    assert client.post(where).status_code == 403


@pytest.mark.parametrize(
    ("what", "data"),
    [("retry", {"log_id": "x"}), ("skip", {"log_id": "x"}), ("skip", {})],
)
@pytest.mark.feed
def test_an_action_on_an_invalid_log_id_is_404(operator, what, data):
    assert operator.post(address(what), data).status_code == 404


@pytest.mark.feed
def test_an_unknown_projection_and_the_rebuild_of_a_reactor_are_404(operator, monkeypatch):
    where = reverse("admin:eventlogs_projectionstate_change", args=["x"])
    assert operator.get(where).status_code == 404

    monkeypatch.setitem(projections, "letters", Letters)
    rebuild = reverse("admin:eventlogs_projectionstate_rebuild", args=["letters"])
    assert operator.get(rebuild).status_code == 404


@pytest.mark.feed
def test_projections_cannot_be_added_changed_or_deleted(admin_client):
    for what in ("add/", "payment-summary/delete/", "x/history/", "x/held/"):
        assert admin_client.get(f"{ALL}{what}").status_code == 404
    assert admin_client.get(reverse("admin:index")).status_code == 200


@pytest.mark.feed
def test_actions_require_post(operator, parked):
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
@pytest.mark.fence
def test_without_a_feed_the_pages_say_so_and_a_rebuild_is_refused(operator):
    assert "settled at an unknown time" in operator.get(ALL).content.decode()
    assert operator.get(address("change")).status_code == 200
    page = operator.post(address("rebuild"), follow=True).content.decode()

    assert "This database has no workers" in page
    assert not ProjectionState.objects.exists()


@pytest.mark.mariadb
def test_without_a_feed_held_events_and_past_actions_are_shown(operator, monkeypatch):
    create_problems(monkeypatch)
    page = operator.get(f"{address('held')}?{CAUSE}")
    assert page.context_data["total"] == "1,804"
    assert len(page.context_data["page"].rows) == 50
    assert "A rebuild was interrupted" in operator.get(address("change", "fine-balance")).text

    operator.post(address("retry"), dict(parse_qsl(CAUSE)))

    assert ProjectionAction.objects.latest("id").count == MANY
    for where in (ALL, address("change"), address("history")):
        assert operator.get(where).status_code == 200


def test_an_event_that_waits_for_a_release_has_not_failed(operator, monkeypatch):
    create_problems(monkeypatch)
    cause = "state=release&error=&handler=&type=payment.disputed&schema_version=2"

    page = operator.get(f"{address('held')}?{cause}").text

    assert "7 waiting for a release: payment.disputed version 2" in page
    assert "first failed" not in page
    assert "0 attempts" not in page


# Held events in groups: error, handler and number


@pytest.mark.feed
def test_1804_parked_events_of_one_bug_are_one_line_with_their_number(operator, monkeypatch):
    Payment.logs.create(Requested(amount=1))
    PaymentSummaries.catch_up()
    create_problems(monkeypatch)
    page = operator.get(address("change")).content.decode()

    assert "1,804 parked: ZeroDivisionError in captured()" in page
    assert "up to date, except for 1,816 held logs" in page
    assert "rows are up to date" not in page
    assert page.count("<article") == 3 + 2  # of the small groups
    listed = operator.get(ALL).content.decode()
    assert "Somebody must act" in listed
    assert "1,804 parked: ZeroDivisionError in captured()" in listed


@pytest.mark.feed
def test_a_projection_that_is_behind_is_not_up_to_date(viewer, db):
    PaymentSummaries.catch_up()
    for _ in range(3):
        Payment.logs.create(Requested(amount=1))
    shown = viewer.get(ALL).text
    assert "behind by 3 events" in shown

    Payment.logs.create(Requested(amount=1))
    ProjectionState.objects.all().delete()
    assert "has never run, behind by 4 events" in viewer.get(ALL).text
    PaymentSummaries.catch_up()
    row = next(each for each in viewer.get(ALL).context_data["rows"] if "pay" in each["name"])
    assert [each.text for each in row["conditions"]] == ["up to date"]


@pytest.mark.feed
def test_the_list_agrees_with_the_health_command(viewer, parked):
    page = viewer.get(ALL)

    said = [each["finding"].message for each in page.context_data["acts"]]
    assert said == [each.message for each in health().findings if each.must_act]
    assert said != []
    ParkedEvent.objects.all().delete()
    assert "All is well" in viewer.get(ALL).content.decode()


@pytest.mark.feed
def test_held_events_of_one_cause_are_paged(operator, monkeypatch, django_assert_max_num_queries):
    create_problems(monkeypatch)
    with django_assert_max_num_queries(12):
        page = operator.get(f"{address('held')}?{CAUSE}")
    seen = [each.position for each in page.context_data["page"].rows]
    while (older := page.context_data["page"].older) is not None:
        page = operator.get(address("held") + older)
        seen += [each.position for each in page.context_data["page"].rows]

    assert seen == list(range(1_000 + MANY - 1, 999, -1))
    assert page.context_data["total"] == "1,804"


@pytest.mark.feed
def test_events_of_one_cause_are_retried_and_others_are_not(operator, monkeypatch):
    create_problems(monkeypatch)
    page = operator.post(address("retry"), dict(parse_qsl(CAUSE)), follow=True).content.decode()

    assert "A worker will retry 1,804 events." in page
    left = ParkedEvent.objects.filter(projection="payment-summary", retry_at=None, awaits="")
    assert set(left.values_list("error", flat=True)) == {"ConnectionRefusedError"}
    entry = ProjectionAction.objects.latest("id")
    assert (entry.action, entry.by, entry.count) == ("retried", "grace", MANY)
    assert "ZeroDivisionError in captured()" in entry.note


@pytest.mark.feed
@pytest.mark.parametrize(
    "cause", ["state=x", "state=parked", "state=parked&schema_version=99999999999"]
)
def test_an_invalid_cause_is_404(operator, parked, cause):
    assert operator.get(f"{address('held')}?{cause}").status_code == 404
    assert operator.post(address("retry"), dict(parse_qsl(cause))).status_code == 404
    assert ParkedEvent.objects.get().retry_at is None


@pytest.mark.feed
def test_pages_of_held_events_hide_data_without_view_payload(viewer, parked):
    page = viewer.get(address("held")).content.decode()

    assert str(parked.log_id) in page
    assert "4111" not in page
    assert "<button" not in page.partition('id="content-main"')[2].partition("</main>")[0]


@pytest.mark.feed
@pytest.mark.django_db(transaction=True)  # MariaDB makes tables outside of one
def test_actions_are_listed_with_their_user_time_and_duration(operator, parked):
    operator.post(address("retry"), {"log_id": parked.log_id})
    operator.post(address("skip"), {"log_id": parked.log_id, "index": 1})
    operator.post(address("rebuild"))
    run(["payment-summary"])

    for where in (
        address("history"),
        reverse("admin:eventlogs_projectionstate_all_actions"),
        address("change"),
    ):
        page = operator.get(where).content.decode()
        for part in ("retried", "skipped permanently", "requested a rebuild", "rebuilt", "grace"):
            assert part in page, (where, part)
        assert str(parked.log_id) in page
        assert "UTC" in page
    assert [each.by for each in ProjectionAction.objects.all()] == ["grace"] * 4


@pytest.mark.feed
def test_the_history_is_paged_and_includes_removed_projections(viewer):
    for number in range(120):
        actions.add("gone", ProjectionAction.RETRIED, using="default", count=number)

    page = viewer.get(address("history", "gone"))
    seen = [each["entry"].count for each in page.context_data["entries"]]
    while (older := page.context_data["page"].older) is not None:
        page = viewer.get(address("history", "gone") + older)
        seen += [each["entry"].count for each in page.context_data["entries"]]

    assert seen == list(range(119, -1, -1))
    assert viewer.get(address("history", "x")).status_code == 404


@pytest.mark.feed
@pytest.mark.fence
def test_an_interrupted_rebuild_is_shown_with_its_progress_and_how_to_resume_it(operator, parked):
    ParkedEvent.objects.all().delete()
    steps = rebuilding.rebuild_steps(PaymentSummaries)
    next(steps)
    under_way = operator.get(address("change")).content.decode()
    steps.close()
    page = operator.get(address("change")).content.decode()

    assert "A rebuild is running" in under_way
    assert "was interrupted" not in under_way
    assert "A rebuild was interrupted" in page
    at = f"{parked.position:,}"
    assert f"{at} of {at} positions; events applied: 3." in " ".join(page.split())
    assert "To resume it: manage.py eventlogs rebuild payment-summary" in page


@pytest.mark.feed
def test_the_rebuild_of_inline_rows_says_how_many_logs_are_done(viewer, parked, monkeypatch):
    monkeypatch.setattr(PaymentSummaries, "mode", PaymentSummaries.INLINE)
    ProjectionState.objects.update(
        rebuild_version=1,
        rebuild_started_at=timezone.now(),
        rebuild_done=1_250,
        rebuild_total=5_000,
        rebuild_applied=9_000,
    )
    page = " ".join(viewer.get(address("change")).content.decode().split())

    assert "1,250 of 5,000 logs; events applied: 9,000." in page
    assert "25 %" in page


@pytest.fixture
def an_open_append():
    """An append of another connection, whose transaction is open."""
    begun, may_end = threading.Event(), threading.Event()

    def work():
        with transaction.atomic():
            Payment.logs.create(Requested(amount=1))
            begun.set()
            may_end.wait(30)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(30)
    yield
    may_end.set()
    thread.join()


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_an_append_in_progress_is_reported_only_after_a_while(
    viewer, an_open_append, settings, monkeypatch
):
    def page():
        return viewer.get(ALL).content.decode()

    monkeypatch.setattr("eventlogs.admin.projections.QUIET", timedelta(days=1))
    shown = page()
    assert "Appends are in progress" not in shown
    assert "The feed is held back" not in shown

    monkeypatch.setattr("eventlogs.admin.projections.QUIET", timedelta())
    settings.EVENTLOGS = {**settings.EVENTLOGS, "HEALTH": {"MAX_HELD": 86_400}}
    shown = page()
    assert "Appends are in progress" in shown
    assert "The feed is held back" not in shown

    settings.EVENTLOGS = {**settings.EVENTLOGS, "HEALTH": {"MAX_HELD": 0}}
    assert "The feed is held back" not in page()  # nothing waits for it
    Payment.logs.create(Requested(amount=2))
    shown = page()
    assert "The feed is held back" in shown
    assert "Somebody must act" in shown
