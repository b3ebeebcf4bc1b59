"""Aggregates, folding, states and reductions."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventlogs import (
    ANY,
    Aggregate,
    EventRecord,
    LogCorrupted,
    LogId,
    LogManager,
    LogState,
    Reduction,
    RegistrationError,
    fold,
)
from eventlogs.aggregates import aggregates
from eventlogs.events.registry import registry
from tests.accounts import Account, Deposited, Opened, Parcel, Sent, Withdrawn

LOG_ID = LogId.new("account")


@dataclass(slots=True)
class Slotted(Aggregate, log_type="slotted", events=[Sent]):
    to: str = ""
    tags: list[str] = field(default_factory=list)

    def apply(self, record: EventRecord) -> None:
        self.to = record.event.to


def records(*events: Any, start: int = 0) -> list[EventRecord]:
    """Return events as records of one log, at positions 10, 20, 30 …"""
    return [
        EventRecord(
            log_id=LOG_ID,
            index=index,
            position=10 * (index + 1),
            type="account.event",
            schema_version=1,
            event=event,
            metadata={},
            idempotency_key=None,
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        for index, event in enumerate(events, start)
    ]


# Folding


def test_folding_applies_the_events_in_order():
    before = datetime.now(UTC)

    start = Account.without_events(LOG_ID)
    reduction = fold(start, records(Opened("ada"), Deposited(5), Withdrawn(2)))

    assert reduction.aggregate == Account(owner="ada", balance=3)
    assert (reduction.log_id, reduction.version, reduction.position) == (LOG_ID, 3, 30)
    assert before <= reduction.reduced_at <= datetime.now(UTC)


def test_folding_no_events_returns_the_start():
    start = Account.without_events(LOG_ID)

    assert fold(start, []) is start
    assert (start.version, start.position, start.aggregate) == (0, 0, Account())


def test_folding_continues_from_the_start():
    start = fold(Account.without_events(LOG_ID), records(Opened("ada"), Deposited(5)))

    reduction = fold(start, records(Deposited(7), start=2))

    assert reduction.aggregate.balance == 12
    assert (reduction.version, reduction.position) == (3, 30)
    assert reduction.aggregate is start.aggregate


def test_folding_in_two_steps_is_folding_in_one():
    history = records(Opened("ada"), Deposited(5), Withdrawn(2), Deposited(1))

    for cut in range(len(history) + 1):
        halfway = fold(Account.without_events(LOG_ID), history[:cut])
        whole = fold(halfway, history[cut:])
        assert (whole.version, whole.aggregate) == (4, Account(owner="ada", balance=4))


@pytest.mark.parametrize(
    ("history", "expected", "actual"),
    [
        (records(Deposited(1), start=1), 0, 1),
        ([*records(Deposited(1), Deposited(2)), *records(Deposited(3), start=3)], 2, 3),
        ([*records(Deposited(1), Deposited(2)), *records(Deposited(3), start=1)], 2, 1),
    ],
)
def test_a_hole_or_a_repeat_is_not_folded(history, expected, actual):
    with pytest.raises(LogCorrupted) as caught:
        fold(Account.without_events(LOG_ID), history)

    assert caught.value.log_id == LOG_ID
    assert (caught.value.expected_index, caught.value.actual_index) == (expected, actual)


def test_an_error_of_apply_is_not_caught():
    class Careful(Account):
        def apply(self, record: EventRecord) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fold(Careful.without_events(LOG_ID), records(Deposited(1)))


def test_folding_takes_any_iterable():
    assert fold(Account.without_events(LOG_ID), iter(records(Deposited(1)))).version == 1


# Values


def test_the_etag_is_strong_quoted_and_of_log_version_and_position():
    state = LogState(LOG_ID, 3, 30)
    reduction = Reduction(LOG_ID, 3, Account(), datetime.now(UTC), 30)

    assert state.etag == reduction.etag == f'"{LOG_ID}-3-30"'
    assert LogState(LOG_ID, 4, 31).etag != state.etag
    assert LogState(LOG_ID, 3, 31).etag != state.etag
    assert LogState(LogId.new("account"), 3, 30).etag != state.etag


@pytest.mark.parametrize(
    ("if_match", "matches"),
    [
        (None, True),
        ("*", True),
        (" * ", True),
        ("{etag}", True),
        ('"other", {etag}', True),
        ('"other",{etag}, W/"weak"', True),
        ("", False),
        ("W/{etag}", False),
        ('"{id}-3"', False),
        ("{id}-3-30", False),
        ('"{id}-3-31"', False),
        ('"{id}-2-30"', False),
        ('"*"', False),
        ('"other"', False),
        ("\0", False),
    ],
)
def test_an_if_match_header_is_compared_with_a_state(if_match, matches):
    state = LogState(LOG_ID, 3, 30)
    header = if_match and if_match.format(id=LOG_ID, etag=state.etag)

    assert state.matches(header) is matches
    assert Reduction(LOG_ID, 3, Account(), datetime.now(UTC), 30).matches(header) is matches


def test_the_state_of_a_reduction_equals_that_of_an_append():
    reduction = Reduction(LOG_ID, 3, Account(), datetime.now(UTC), 30)

    assert reduction.state == LogState(LOG_ID, 3, 30)


def test_states_and_reductions_are_frozen_values():
    state = LogState(LOG_ID, 3, 30)
    reduction = Reduction(LOG_ID, 3, Account(), datetime.now(UTC), 30)

    assert state == LogState(LOG_ID, 3, 30)
    assert hash(state) == hash(LogState(LOG_ID, 3, 30))
    for value in (state, reduction):
        with pytest.raises(AttributeError):
            value.version = 4  # type: ignore[misc]


def test_states_reductions_and_records_survive_pickling():
    reduction = Reduction(LOG_ID, 3, Account("ada", 5), datetime.now(UTC), 30)

    for value in (reduction, reduction.state, records(Deposited(1))[0]):
        assert pickle.loads(pickle.dumps(value)) == value


def test_any_has_a_readable_repr():
    assert repr(ANY) == "ANY"
    assert pickle.loads(pickle.dumps(ANY)) is ANY


# Aggregate classes


def test_an_aggregate_class_knows_its_log_type_and_events():
    assert Account.log_type == "account"
    assert [each.name for each in Account.event_types] == [
        "account.opened",
        "account.deposited",
        "account.withdrawn",
        "account.noted",
    ]
    assert Account in aggregates.of("account")
    assert {Account, Parcel} <= set(aggregates)
    assert aggregates.of("nothing") == ()


def test_logs_is_the_default_manager_of_a_class():
    assert isinstance(Account.logs, LogManager)
    assert Account.logs is Account.logs
    assert Account.logs.aggregate is Account
    assert Account("ada").logs is Account.logs
    assert len({Parcel.logs, Account.logs}) == 2
    assert repr(Account.logs) == "<LogManager of Account logs>"


@pytest.mark.usefixtures("scratch_registry")
def test_logs_of_a_subclass_fold_into_the_subclass():
    @dataclass
    class Savings(Account, log_type="savings"):
        interest: int = 0

    assert Savings.logs.aggregate is Savings
    assert Savings.logs.log_type == "savings"
    assert Savings.event_types == Account.event_types
    assert Account.logs.log_type == "account"


def test_a_slotted_dataclass_is_registered_once():
    assert aggregates.of("slotted") == (Slotted,)
    assert fold(Slotted.without_events(LOG_ID), records(Sent("ada"))).aggregate.to == "ada"


@pytest.mark.usefixtures("scratch_registry")
def test_several_aggregates_may_fold_one_type_of_log():
    @dataclass
    class Statistics(Aggregate, log_type="account", events=[Deposited]):
        count: int = 0

        def apply(self, record: EventRecord) -> None:
            self.count += 1

    assert aggregates.of("account") == (Account, Statistics)


def test_a_class_without_a_log_type_is_a_base_class():
    class Base(Aggregate):
        pass

    assert Base not in set(aggregates)


@pytest.mark.parametrize("log_type", ["", "Account", "account!", "a1", "_a", "a" * 64, 7])
def test_a_log_type_that_ids_cannot_carry_is_refused(log_type):
    with pytest.raises(RegistrationError, match="cannot be a log type"):
        type("Bad", (Aggregate,), {}, log_type=log_type, events=[Sent])


@pytest.mark.parametrize("events", [None, []])
def test_an_aggregate_without_events_is_refused(events):
    with pytest.raises(RegistrationError, match="has a log type but no events"):
        type("Bad", (Aggregate,), {}, log_type="bad", events=events)


@pytest.mark.parametrize("thing", [int, "account.deposited", Deposited(1), None])
def test_a_class_that_is_no_event_is_refused(thing):
    with pytest.raises(RegistrationError, match="has no event type"):
        type("Bad", (Aggregate,), {}, log_type="bad", events=[thing])


def test_an_aggregate_must_define_apply():
    with pytest.raises(NotImplementedError, match="must define apply"):
        fold(Aggregate.without_events(LOG_ID), records(Deposited(1)))


def test_a_reduction_is_made_without_a_database():
    reduction = Account.without_events(LOG_ID)

    assert registry.by_class(Deposited) is not None
    assert datetime.now(UTC) - reduction.reduced_at < timedelta(minutes=1)


def test_a_nested_aggregate_with_slots_is_registered_once(scratch_registry):
    class Outer:
        @dataclass(slots=True)
        class Inner(Aggregate, log_type="inner", events=[Opened]):
            n: int = 0

    assert aggregates.of("inner") == (Outer.Inner,)
    assert [each for each in aggregates if each.log_type == "inner"] == [Outer.Inner]
