"""Given, when, then: without the mark ``django_db``, any query would be an error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from eventlogs import Aggregate, EventRecord, InvalidEvent, InvalidLogId, LogId, event
from eventlogs.testing import given
from tests.accounts import Account, Deposited, Noted, Opened, Overdrawn, Sent, Withdrawn, withdraw

MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)


def transfer(account: Account, amount: int, *, note: str = "") -> Iterator[object]:
    """Withdraw, and note it."""
    yield from withdraw(account, amount)
    yield Noted({"note": note, "parts": [amount]})


def failure_of(check, *args, **kwargs) -> str:
    with pytest.raises(AssertionError) as caught:
        check(*args, **kwargs)
    return str(caught.value)


def test_a_decision_is_compared_with_the_events_expected():
    granted = given(Account, Opened("ada"), Deposited(100))

    decision = granted.when(withdraw, 30).then(Withdrawn(30))

    assert granted.state == Account("ada", 100)
    assert decision.state == Account("ada", 70)
    assert decision.decided == [Withdrawn(30)]
    granted.when(withdraw, 0).then()
    granted.when(transfer, 100, note="all").then(
        Withdrawn(100), Noted({"note": "all", "parts": [100]})
    )


def test_a_decision_goes_on_as_a_story():
    story = given(Account).when(lambda account: Opened("ada")).then(Opened("ada"))
    story = story.and_given(Deposited(5)).when(withdraw, 2).then(Withdrawn(2))

    story.when(withdraw, 4).raises(Overdrawn)

    assert [record.index for record in story.records] == [0, 1, 2]
    assert story.reduction.version == 3
    assert story.log_id.log_type == "account"


def test_the_failure_shows_what_was_expected_and_what_came():
    decision = given(Account, Opened("ada"), Deposited(100)).when(transfer, 30, note="cash")

    text = failure_of(
        decision.then, Withdrawn(40), Noted({"note": "card", "parts": [30]}), Opened("eve")
    )

    assert (
        text
        == """\
transfer(30, note='cash') decided other events than expected (- expected, + decided):

  - Withdrawn(amount=40)
  + Withdrawn(amount=30)
  - Noted(note={'note': 'card', 'parts': [30]})
  + Noted(note={'note': 'cash', 'parts': [30]})
  - Opened(owner='eve')

Given:

    Opened(owner='ada')
    Deposited(amount=100)

so that the state was:

    Account(owner='ada', balance=100, notes=0)
"""
    )


def test_events_that_are_missing_or_too_many_are_named():
    story = given(Account, Deposited(9))

    assert "decided nothing (- expected" in failure_of(story.when(withdraw, 0).then, Withdrawn(1))
    assert "and none was expected" in failure_of(story.when(withdraw, 1).then)
    assert "  + Withdrawn(amount=1)\n" in failure_of(story.when(withdraw, 1).then)


def test_an_error_is_expected_by_its_class_and_text():
    def refuse(account: Account) -> None:
        raise ValueError(f"{account.owner} may not")

    error = given(Account, Opened("ada")).when(refuse).raises(ValueError, match="^ada may")

    assert str(error) == "ada may not"
    assert "should have raised KeyError. It raised ValueError: ada may not" in failure_of(
        given(Account, Opened("ada")).when(refuse).raises, KeyError
    )
    assert "  - eve\n  + ada may not\n" in failure_of(
        given(Account, Opened("ada")).when(refuse).raises, (ValueError, KeyError), match="eve"
    )


def test_an_error_that_does_not_come_or_was_not_expected_fails():
    story = given(Account, Deposited(5))

    assert "should have raised Overdrawn. It decided:\n\n    Withdrawn(amount=3)" in failure_of(
        story.when(withdraw, 3).raises, Overdrawn
    )
    with pytest.raises(AssertionError, match=r"withdraw\(7\) raised Overdrawn\.") as caught:
        story.when(withdraw, 7).then(Withdrawn(7))
    assert isinstance(caught.value.__cause__, Overdrawn)
    assert caught.value.__cause__.__traceback__.tb_frame.f_code.co_name == "withdraw"
    with pytest.raises(Overdrawn):
        _ = story.when(withdraw, 7).state


def test_an_error_that_nobody_asks_for_is_a_warning():
    story = given(Account)

    with pytest.warns(RuntimeWarning, match=r"withdraw\(7\) raised Overdrawn, and the test"):
        story.when(withdraw, 7)  # freed at once: no cycle of references keeps it


def test_metadata_and_times_are_those_of_the_events():
    later = MONDAY + timedelta(days=4)
    story = given(Account, Opened("ada"), at=MONDAY, metadata={"user": "ann"})

    story = story.and_given(Deposited(5)).at(later).with_metadata(user="bob").when(withdraw, 5)

    assert [record.recorded_at for record in story.records] == [MONDAY, MONDAY, later]
    assert [record.metadata for record in story.records] == [{"user": "ann"}, {}, {"user": "bob"}]
    with pytest.raises(ValueError, match="Time does not run backwards"):
        story.at(MONDAY)
    with pytest.raises(ValueError, match="It must be a datetime with a time zone"):
        given(Account, at=datetime(2026, 1, 1))


def test_a_story_does_not_change():
    log_id = LogId.new("account")
    story = given(Account, Deposited(5), log_id=str(log_id))

    one, other = story.when(withdraw, 1), story.when(withdraw, 2)

    assert (one.state.balance, other.state.balance, story.state.balance) == (4, 3, 5)
    assert story.log_id == one.log_id == log_id
    assert repr(other.then(Withdrawn(2))) == "<withdraw(2) decided: Withdrawn(amount=2)>"
    assert repr(story) == "<given Account: Deposited(amount=5)>"


def test_events_go_through_the_codec():
    def note(account: Account) -> Noted:
        return Noted((1, 2))

    with pytest.raises(InvalidEvent, match=r"\$\.note"):
        given(Account, Noted((1, 2)))
    given(Account).when(note).raises(InvalidEvent, match="a tuple would be read back as a list")
    with pytest.raises(InvalidEvent, match="the class Withdrawn"):
        given(Account, Deposited(1)).when(withdraw, 1).then(Withdrawn)


@pytest.mark.usefixtures("scratch_registry")
def test_a_value_that_does_not_survive_storing_is_missing():
    @event("parcel.weighed")
    @dataclass
    class Weighed:
        grams: int

        def __post_init__(self) -> None:
            self.by = "ada"  # no field: it is not stored

    @dataclass
    class Scale(Aggregate, log_type="scale", events=[Weighed]):
        grams: int = 0

        def apply(self, record: EventRecord) -> None:
            self.grams = record.event.grams

    weighed = Weighed(5)
    weighed.by = "eve"

    [read] = given(Scale, weighed).events
    assert (read, read.by) == (Weighed(5), "ada")


@pytest.mark.usefixtures("scratch_registry")
def test_an_apply_that_refuses_an_event_is_an_error_at_once():
    @dataclass
    class Strict(Aggregate, log_type="strict", events=[Deposited]):
        def apply(self, record: EventRecord) -> None:
            if record.event.amount > 9:
                raise KeyError("too much")

    with pytest.raises(KeyError):
        given(Strict, Deposited(10))
    with pytest.raises(KeyError):
        given(Strict).when(lambda strict: Deposited(10))


def test_a_call_is_shown_as_it_would_be_written():
    class Limit:
        def __call__(self, account: Account, amount: int) -> None:
            raise Overdrawn("limit")

    assert "partial" not in failure_of(given(Account).when(partial(withdraw, amount=3)).then)
    assert failure_of(given(Account).when(partial(withdraw, amount=3)).then).startswith(
        "withdraw(amount=3) raised Overdrawn.\n\nIt should have decided:\n\n    nothing\n"
    )
    assert failure_of(given(Account).when(Limit(), 3).then).startswith(
        "Limit(3) raised Overdrawn: limit"
    )


def test_what_is_no_aggregate_event_or_decider_is_refused():
    async def decide(account: Account) -> None: ...

    with pytest.raises(TypeError, match="An aggregate class comes first"):
        given(Account())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no log type"):
        given(Aggregate)
    with pytest.raises(InvalidEvent, match="not an event of Account"):
        given(Account, Sent("ada"))
    with pytest.raises(InvalidLogId):
        given(Account, log_id=LogId.new("parcel"))
    with pytest.raises(TypeError, match="decide is async"):
        given(Account).when(decide)
    with pytest.raises(TypeError, match="To append an event"):
        given(Account).when(Deposited)
