from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from django.core.management import CommandError

from eventlogs import Aggregate, EventRecord, LogId
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import Event
from eventlogs.stores import AppendRequest, store_for
from example_project.payments.events import Authorized, Captured, Payment, Requested
from tests.accounts import Account, Deposited, Opened


def test_the_timeline_and_the_state_are_shown(account, run):
    shown = run("show", account)

    assert str(account) in shown
    assert "version 3" in shown
    for part in ("account.opened", '{"owner": "Ada"}', "key pay-1", "grace", '{"till": 7}'):
        assert part in shown
    assert shown.index("account.opened") < shown.index("account.withdrawn")
    assert "balance  70" in shown


def test_json_has_the_same_content(account, run_json):
    shown = run_json("show", account)

    assert (shown["log_id"], shown["version"], shown["actual_version"]) == (str(account), 3, 3)
    assert shown["state"] == {"owner": "Ada", "balance": 70, "notes": 0}
    assert [each["index"] for each in shown["events"]] == [0, 1, 2]
    event = shown["events"][1]
    row = Event.objects.for_log(account).get(index=1)
    assert event == {
        "log_id": str(account),
        "index": 1,
        "position": row.position,
        "type": "account.deposited",
        "schema_version": 1,
        "data": {"amount": 100},
        "metadata": {},
        "idempotency_key": "pay-1",
        "is_erased": False,
        "recorded_at": row.recorded_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }


def test_a_log_as_of_a_version(account, run, run_json):
    shown = run_json("show", account, "--version", 2)

    assert (shown["version"], shown["actual_version"]) == (2, 3)
    assert [each["index"] for each in shown["events"]] == [0, 1]
    assert shown["state"]["balance"] == 100
    assert "version 2 of 3" in run("show", account, "--version", 2)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_log_as_of_a_moment_ends_with_the_last_event_of_that_time(account, run_json, index):
    recorded_at = Event.objects.for_log(account).get(index=index).recorded_at
    # Events of one moment are all there as of that moment.
    expected = Event.objects.for_log(account).filter(recorded_at__lte=recorded_at).count()

    assert run_json("show", account, "--at", recorded_at.isoformat())["version"] == expected


def test_a_moment_before_the_log_is_a_mistake(account, run):
    with pytest.raises(CommandError, match="did not exist at 2001"):
        run("show", account, "--at", "2001-01-01")


def test_the_last_events_are_shown_with_the_state_of_all(account, run, run_json):
    shown = run_json("show", account, "--last", 1)

    assert [each["index"] for each in shown["events"]] == [2]
    assert shown["state"]["balance"] == 70
    assert "2 earlier" in run("show", account, "--last", 1)
    assert run_json("show", account, "--last", 0)["events"] == []


def test_events_of_unknown_types_are_shown_raw(account, run, run_json):
    unknown = [EncodedEvent("account.teleported", 1, '{"to":"Mars"}')]
    store_for("default").append(AppendRequest(account, unknown, 3, None, "{}"))

    shown = run_json("show", account)

    assert shown["events"][3]["data"] == {"to": "Mars"}
    assert shown["state"] is None
    assert "account.teleported" in shown["state_error"]
    assert "No event class is registered" in run("show", account)
    assert run_json("show", account, "--version", 3)["state"]["balance"] == 70


def test_a_log_without_an_aggregate_is_shown_raw(run, db):
    log_id = LogId.new("stranger")
    event = [EncodedEvent("stranger.came", 1, "{}")]
    store_for("default").append(AppendRequest(log_id, event, 0, None, "{}"))

    shown = run("show", log_id)

    assert "stranger.came" in shown
    assert "No aggregate folds stranger logs" in shown


def test_with_several_aggregates_one_has_to_be_chosen(account, run_json, scratch_registry):
    @dataclass
    class Notes(Aggregate, log_type="account", events=[Opened]):
        seen: int = 0

        def apply(self, record: EventRecord) -> None:
            self.seen += 1

    shown = run_json("show", account)
    assert shown["state"] is None
    assert "Choose by --aggregate" in shown["state_error"]
    assert len(shown["events"]) == 3
    assert run_json("show", account, "--aggregate", "Account")["state"]["balance"] == 70
    assert run_json("show", account, "--aggregate", Notes.__qualname__)["state"] == {"seen": 3}
    with pytest.raises(CommandError, match="No aggregate 'Nothing'"):
        run_json("show", account, "--aggregate", "Nothing")


def test_terminal_control_characters_are_escaped(account, run):
    Account.logs.append(
        account,
        Deposited(amount=1),
        expected_version=3,
        idempotency_key="\x1b]0;pwned\x07\u202e",
        metadata={"note": "\x9b2J\u202e"},
    )

    shown = run("show", account)

    assert "\\x1b]0;pwned\\x07\\u202e" in shown
    assert {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown) == set()


def test_diff_shows_the_changes_of_each_event(account, run, run_json):
    shown = run_json("show", account, "--diff")
    assert [each["changes"] for each in shown["events"]] == [
        [{"path": "owner", "old": "", "new": "Ada"}],
        [{"path": "balance", "old": 0, "new": 100}],
        [{"path": "balance", "old": 100, "new": 70}],
    ]
    text = run("show", account, "--diff")
    for line in ('owner: "" → "Ada"', "balance: 0 → 100", "balance: 100 → 70"):
        assert line in text
    assert "changes" not in run_json("show", account)["events"][0]
    assert "→" not in run("show", account)


def test_diff_of_the_last_events_compares_with_the_state_before_them(account, run_json):
    shown = run_json("show", account, "--diff", "--last", 1)

    assert [each["changes"] for each in shown["events"]] == [
        [{"path": "balance", "old": 100, "new": 70}]
    ]


def test_diff_shows_added_and_removed_items(run, run_json, db, scratch_registry):
    @dataclass
    class Names(Aggregate, log_type="account", events=[Opened, Deposited]):
        names: list[str] = field(default_factory=list)

        def apply(self, record: EventRecord) -> None:
            if isinstance(record.event, Opened):
                self.names.append(record.event.owner)
            elif record.event.amount:
                self.names.pop()

    log_id = Names.logs.create(Opened("Ada"), Deposited(1), Deposited(0)).log_id
    ways = ("show", log_id, "--diff", "--aggregate", Names.__qualname__)

    assert [each["changes"] for each in run_json(*ways)["events"]] == [
        [{"path": "names[0]", "new": "Ada"}],
        [{"path": "names[0]", "old": "Ada"}],
        [],
    ]
    shown = run(*ways)
    for line in ('names[0]: + "Ada"', 'names[0]: - "Ada"', "changed nothing"):
        assert line in shown
    several = run_json("show", log_id, "--diff")
    assert [each["changes"] for each in several["events"]] == [None] * 3


def test_diff_of_an_unknown_event_is_unknown(account, run, run_json):
    unknown = [EncodedEvent("account.teleported", 1, '{"to":"Mars"}')]
    store_for("default").append(AppendRequest(account, unknown, 3, None, "{}"))

    assert run_json("show", account, "--diff")["events"][3]["changes"] is None
    assert "changes unknown" in run("show", account, "--diff")


@pytest.fixture
def payment(db) -> LogId:
    """The log of a payment, whose amount_outstanding is a property."""
    state = Payment.logs.create(Requested(amount=100))
    return Payment.logs.append(state, Authorized(amount=80, approval_code="x"), Captured(30)).log_id


def test_properties_are_shown_beside_the_fields(payment, run, run_json):
    shown = run_json("show", payment)

    assert "amount_outstanding" not in shown["state"]
    assert shown["computed"]["amount_outstanding"] == 50
    text = run("show", payment)
    assert "amount_outstanding  50" in text
    assert text.index("amount_captured") < text.index("Computed") < text.index("amount_outstanding")
    assert run_json("show", payment, "--version", 2)["computed"]["amount_outstanding"] == 80


def test_diff_marks_the_changes_of_properties(payment, run, run_json):
    changes = run_json("show", payment, "--diff")["events"][2]["changes"]

    assert {"path": "amount_captured", "old": 0, "new": 30} in changes
    outstanding = {"path": "amount_outstanding", "computed": True, "old": 80, "new": 50}
    assert outstanding in changes
    assert "amount_outstanding: 80 → 50 (computed)" in run("show", payment, "--diff")


def test_a_property_that_raises_has_the_name_of_its_error(run_json, db, scratch_registry):
    @dataclass
    class Ratios(Aggregate, log_type="account", events=[Opened, Deposited]):
        total: int = 0

        def apply(self, record: EventRecord) -> None:
            self.total += getattr(record.event, "amount", 0)

        @property
        def inverse(self) -> float:
            return 1 / self.total

    log_id = Ratios.logs.create(Opened("Ada")).log_id

    shown = run_json("show", log_id, "--aggregate", Ratios.__qualname__)

    assert shown["computed"] == {"inverse": "<ZeroDivisionError>"}


def test_a_log_without_an_aggregate_has_no_computed_values(run_json, db):
    log_id = LogId.new("stranger")
    event = [EncodedEvent("stranger.came", 1, "{}")]
    store_for("default").append(AppendRequest(log_id, event, 0, None, "{}"))

    shown = run_json("show", log_id)

    assert (shown["state"], shown["computed"]) == (None, None)


@pytest.mark.django_db
def test_the_time_of_an_id_is_shown_if_it_holds_one(run):
    made = Account.logs.create(Opened("ada")).log_id
    of_a_key = Account.logs.create(Opened("bob"), log_id=LogId.from_key("account", 42)).log_id

    assert "id made " in run("show", made)
    shown = run("show", f"{of_a_key}".upper())
    assert "id made" not in shown
    assert f"uuid {of_a_key.uuid}" in shown
