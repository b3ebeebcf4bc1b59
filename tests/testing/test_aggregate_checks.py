"""One line holds an aggregate to what caches and stored data rely on."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import strategies as st

from eventlogs import Aggregate, EventRecord, InvalidEvent, event, upcaster
from eventlogs.testing import check_aggregate
from eventlogs.testing.strategies import event_of
from example_project.fines.events import Fine
from example_project.payments.events import Payment
from tests.accounts import Account, Deposited, Noted, Opened, Parcel, Sent

HISTORY = [Opened("ada"), Deposited(1), Deposited(2)]

pytestmark = pytest.mark.usefixtures("scratch_registry")


def failure_of(aggregate: type[Aggregate], *histories, **options) -> str:
    with pytest.raises(AssertionError) as caught:
        check_aggregate(aggregate, *histories, **options)
    return str(caught.value)


@pytest.mark.parametrize("aggregate", [Account, Payment, Fine, Parcel])
def test_a_sound_aggregate_passes(aggregate):
    check_aggregate(aggregate)


def test_own_histories_take_the_place_of_drawn_ones():
    check_aggregate(Account, HISTORY, [Opened("eve")])
    with pytest.raises(InvalidEvent):
        check_aggregate(Account, [Sent("ada")])
    with pytest.raises(TypeError, match="An aggregate class comes first"):
        check_aggregate(Account())  # type: ignore[arg-type]


# A full replay = a cached state and the tail


@pytest.mark.parametrize("histories", [[HISTORY], []])
def test_an_apply_with_chance_is_found_out(histories):
    @dataclass
    class Chancy(Aggregate, log_type="chancy", events=[Opened, Deposited]):
        number: float = 0.0
        events: int = 0

        def apply(self, record: EventRecord) -> None:
            self.number = random.random()
            self.events += 1

    text = failure_of(Chancy, *histories)

    assert text.startswith("Two replays of one history differ: apply() depends on more than the")
    assert "  -     number=0." in text
    assert "  +     number=0." in text
    assert "    Chancy(" in text


def test_a_state_that_is_kept_beside_the_aggregate_is_found_out():
    seen: dict[int, int] = defaultdict(int)

    @dataclass
    class Beside(Aggregate, log_type="beside", events=[Opened, Deposited]):
        count: int = 0

        def apply(self, record: EventRecord) -> None:
            if not record.index:
                seen[id(self)] = 0
            seen[id(self)] += 1
            self.count = seen[id(self)]

    assert "differs from a state that was cached after 1 events" in failure_of(Beside, HISTORY)


def test_a_state_that_cannot_be_cached_is_found_out_unless_it_need_not():
    @dataclass
    class Grouped(Aggregate, log_type="grouped", events=[Opened, Deposited]):
        by_amount: dict[str, int] = field(default_factory=lambda: defaultdict(int))

        def apply(self, record: EventRecord) -> None:
            self.by_amount[type(record.event).__name__] += 1

    class Plain(Aggregate, log_type="plain", events=[Opened, Deposited]):
        def apply(self, record: EventRecord) -> None:
            self.last = record.event

    assert "at $.by_amount, a defaultdict comes back as a dict" in failure_of(Grouped, HISTORY)
    assert "it is not a dataclass" in failure_of(Plain, HISTORY)
    check_aggregate(Grouped, HISTORY, cached=False)
    check_aggregate(Plain, HISTORY, cached=False)


# Old stored data still decodes


def test_stored_data_that_does_not_decode_any_more_is_named():
    good = ("payment.approved", 1, {"amount": 5})

    check_aggregate(Payment, stored=[good])

    assert failure_of(Payment, stored=[good, ("payment.captured", 1, {"amuont": 5})]).startswith(
        "stored data 2: payment.captured version 1 does not decode any more."
    )
    assert "payment.lost version 1 does not decode" in failure_of(
        Payment, stored=[("payment.lost", 1, {})]
    )


def test_a_stored_field_that_the_class_has_no_more_is_named():
    text = failure_of(Payment, stored=[("payment.captured", 1, {"amount": 5, "till": 7})])

    assert "is stored with $.till, and Captured has no such field any more" in text
    assert "version=2, and an upcaster from version 1" in text
    check_aggregate(Payment, stored=[("payment.authorized", 1, {"amount": 5, "till": 7})])


def test_a_version_without_an_upcaster_is_named():
    @event("checked.made", version=3)
    @dataclass
    class Made:
        amount: int

    @upcaster("checked.made", from_version=2)
    def double(data: dict) -> dict:
        return {"amount": data["amount"] * 2}

    @dataclass
    class Checked(Aggregate, log_type="checked", events=[Made]):
        amount: int = 0

        def apply(self, record: EventRecord) -> None:
            self.amount = record.event.amount

    assert "@upcaster('checked.made', from_version=1)" in failure_of(Checked)


class TestFiles:
    """The file keeps an example of each version, also of those that no class has any more."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "account.jsonl"

    def test_examples_that_are_missing_are_added_once(self, path):
        text = failure_of(Account, stored=path)

        assert "had no example of account.opened version 1, account.deposited version 1" in text
        assert len(path.read_text().splitlines()) == 4
        before = path.read_text()
        check_aggregate(Account, stored=str(path))
        assert path.read_text() == before

    def test_examples_are_taken_from_histories_and_strategies(self, path):
        own = {Noted: event_of(Noted, note=st.just("é"))}

        failure_of(Account, HISTORY, stored=path, overrides=own)

        opened, deposited, _, noted = path.read_text(encoding="utf-8").splitlines()
        assert opened == '{"type":"account.opened","schema_version":1,"data":{"owner":"ada"}}'
        assert '"amount":1' in deposited
        assert '"note":"é"' in noted

    def test_a_version_that_is_new_is_added_and_the_old_one_still_has_to_decode(self, path):
        def letters(version: int) -> type[Aggregate]:
            @event("letter.sent", version=version)
            @dataclass
            class Posted:
                to: str
                stamps: int

            @dataclass
            class Letter(Aggregate, log_type="letter", events=[Posted]):
                def apply(self, record: EventRecord) -> None: ...

            return Letter

        assert "no example of letter.sent version 1" in failure_of(letters(1), stored=path)
        check_aggregate(letters(1), stored=path)

        assert "no upcaster takes 'letter.sent' from version 1" in failure_of(
            letters(2), stored=path
        )
        upcaster("letter.sent", from_version=1)(lambda data: {"to": data["to"]})
        text = failure_of(letters(2), stored=path)
        assert "line 1: letter.sent version 1 does not decode any more" in text
        assert "Object missing required field `stamps`" in text

        upcaster("letter.sent", from_version=1)(lambda data: {**data, "stamps": 1})
        assert "no example of letter.sent version 2" in failure_of(letters(2), stored=path)
        check_aggregate(letters(2), stored=path)
        assert len(path.read_text().splitlines()) == 2

    def test_an_export_is_such_a_file(self, path):
        path.write_text(
            '{"format":"eventlogs","version":1}\n'
            '{"log_id":"parcel_x","index":0,"position":4,"type":"parcel.sent","schema_version":1,'
            '"data":{"to":"ada"},"metadata":{}}\n'
            '{"end":true,"events":1}\n'
        )

        check_aggregate(Parcel, stored=path)

    def test_a_line_that_cannot_be_read_is_named(self, path):
        path.write_text('{"data":{}}\n')

        assert "line 1 cannot be read" in failure_of(Parcel, stored=path)
