"""Unique values and the events that declare them: verified, claimed, imported, erased."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from eventlogs import LogId, LogManager
from eventlogs.events.unique import unique_value
from eventlogs.models import EventLog, UniqueValue
from eventlogs.operations.erasure import forget_copies
from eventlogs.operations.unique_values import claim
from eventlogs.operations.verification import Scope, UniqueVerifier, verify
from tests.members import EMAIL, EmailChanged, Greeted, Joined, Member
from tests.operations.test_verification import spoil as spoil

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])

members = Member.logs


def found() -> list[tuple[str, str]]:
    """Return the log and the text of each finding."""
    return [(each.subject, each.message) for each in UniqueVerifier().verify(Scope("default"))]


def lose(*scopes: str) -> None:
    """Delete the rows, as if the events were stored before their class declared Unique."""
    rows = UniqueValue.objects.all()
    (rows.filter(scope__in=scopes) if scopes else rows)._raw_delete("default")


def owners() -> dict[str, LogId | None]:
    return {name: members.find("member.email", name) for name in ("a", "b", "c")}


@pytest.fixture
def three(transactional_db: None) -> list[LogId]:
    """Three members: one has an address, one has changed it, and one has released it."""
    states = [
        members.create(Joined("a", card=1)),
        members.create(Joined("x"), EmailChanged("b"), Greeted()),
        members.create(Joined("c"), EmailChanged(None)),
    ]
    return sorted(each.log_id for each in states)


def test_what_is_right_is_no_finding(three):
    assert found() == []
    assert list(verify(Scope("default"))) == []


def test_values_that_are_not_claimed_are_found_and_claimed(three):
    before = owners()
    lose()

    assert {text for _, text in found()} == {
        f"{scope}: its value is not claimed: run manage.py eventlogs claim"
        for scope in ("member.email", "member.card")
    }
    claimed = claim()

    assert (claimed.logs, claimed.changed, claimed.taken, claimed.unread) == (3, 2, [], [])
    assert (owners(), found()) == (before, [])
    assert members.find("member.card", 1) == before["a"]
    assert claim().changed == 0


def test_a_value_that_no_event_holds_is_found_and_released(three):
    [third] = {*three} - {*owners().values()}
    digest = unique_value(EMAIL, "z").digest
    insert(UniqueValue(scope=EMAIL.scope, digest=digest, log_type="member", log_id=third.uuid))

    assert found() == [
        (
            str(third),
            "member.email: it has a value that its events do not hold: "
            "run manage.py eventlogs claim",
        )
    ]
    assert claim().changed == 1
    assert (found(), members.find("member.email", "z")) == ([], None)


def insert(row: UniqueValue) -> None:
    """Insert a row behind the back of the model."""
    QuerySet(UniqueValue).bulk_create([row])  # type: ignore[arg-type]


def test_a_value_of_two_logs_is_found_and_stays_with_the_first(three):
    [owner] = [log_id for name, log_id in owners().items() if name == "a"]
    lose()
    second = members.create(Joined("a"))  # claims what the old log has not claimed

    [(subject, text)] = [each for each in found() if "belongs" in each[1]]
    claimed = claim()

    assert subject == str(owner)
    assert text.startswith(f"member.email: its value belongs to {second.log_id} as well")
    assert [(each.log_id, each.owner) for each in claimed.taken] == [(owner, second.log_id)]
    members.append(second, EmailChanged("d"))
    assert claim().taken == []
    assert (owners()["a"], found()) == (owner, [])


def test_rows_of_no_log_and_of_no_scope_are_found(three):
    gone = LogId.new("member")
    insert(UniqueValue(scope="member.email", digest=gone.uuid, log_type="member", log_id=gone.uuid))
    insert(
        UniqueValue(scope="member.old", digest=gone.uuid, log_type="member", log_id=three[0].uuid)
    )

    assert {*found()} == {
        (str(gone), "member.email: the log does not exist, and still has a value"),
        (str(three[0]), "member.old: it has a value, and no event class here has this scope"),
    }


def test_an_event_that_cannot_be_read_is_no_reason_to_release(three, spoil):
    lose("member.card")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE eventlogs_event SET schema_version = 9 WHERE type = 'member.joined'")

    claimed = claim()

    assert {*claimed.unread} >= {each for each in owners().values() if each is not None}
    assert owners()["a"] is not None
    assert all("cannot be read" in text for _, text in found())
    assert list(UniqueVerifier().verify(Scope("default", decode=False))) == []


def test_claim_resumes_and_chooses_log_types(three):
    lose()

    assert claim(after=three[-1]).logs == claim(log_types=["parcel"]).logs == 0
    assert claim(log_types=["member"], after=three[0]).logs == 2
    assert claim().reached == three[-1]


def test_verifying_locks_nothing(three):
    lose()

    with CaptureQueriesContext(connection) as queries:
        found()

    assert not [each for each in queries if "FOR " in each["sql"].upper().split("--")[0][-60:]]


def test_the_command_claims_and_names_what_two_logs_hold(three):
    lose()
    call_command("eventlogs", "claim", verbosity=0)
    assert found() == []
    lose()
    second = members.create(Joined("a"))

    with pytest.raises(
        CommandError, match="1 log with a value that could not be claimed"
    ) as caught:
        call_command("eventlogs", "claim")

    assert caught.value.returncode == 1
    assert owners()["a"] == second.log_id


def test_an_import_brings_the_values_along(three, second_database, tmp_path):
    there = LogManager(Member, using=second_database)
    call_command("eventlogs", "export", tmp_path / "all.jsonl")

    call_command("eventlogs", "import", tmp_path / "all.jsonl", database=second_database)

    assert {name: there.find("member.email", name) for name in "abc"} == owners()
    assert list(UniqueVerifier().verify(Scope(second_database))) == []


def test_an_import_reports_values_that_other_logs_have_and_keeps_the_history(
    three, second_database, tmp_path
):
    there = LogManager(Member, using=second_database)
    owner = there.create(Joined("a"))
    passing = there.create(Joined("x"))  # an address that a member has had for a time
    call_command("eventlogs", "export", tmp_path / "all.jsonl")

    with pytest.raises(CommandError, match="1 unique value belongs to another log") as caught:
        call_command("eventlogs", "import", tmp_path / "all.jsonl", database=second_database)

    assert caught.value.returncode == 1
    assert str(owner.log_id) in str(caught.value)
    assert str(passing.log_id) not in str(caught.value)
    assert there.find("member.email", "a") == owner.log_id
    assert there.find("member.email", "b") == owners()["b"]
    assert EventLog.objects.using(second_database).count() == 5


def test_forget_copies_releases_what_is_erased(three, spoil):
    log_id = owners()["a"]
    assert log_id is not None
    uuid = log_id.uuid.hex if connection.vendor == "sqlite" else log_id.uuid
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM eventlogs_event WHERE log_id = %s", [uuid])
        cursor.execute("DELETE FROM eventlogs_eventlog WHERE id = %s", [uuid])

    forget_copies(log_id)

    assert (owners()["a"], members.find("member.card", 1)) == (None, None)
    assert found() == []


def test_forget_copies_releases_what_is_redacted(three, spoil):
    log_id = owners()["b"]
    assert log_id is not None
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE eventlogs_event SET data = '{\"email\": null}'"
            " WHERE type = 'member.email_changed'"
        )

    forget_copies(log_id)

    assert (owners()["b"], found()) == (None, [])
