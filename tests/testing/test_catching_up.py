"""One call lets all projections and reactors catch up, or fails."""

from __future__ import annotations

import pytest
from asgiref.sync import async_to_sync

from eventlogs import EventRecord, ProjectionFailed, Reactor, handles, projection
from eventlogs.projections.base import projections
from eventlogs.testing import acatch_up, catch_up
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.projections import readmodels
from tests.projections.readmodels import Balances, Letters, balances

pytestmark = [pytest.mark.feed, pytest.mark.usefixtures("tables", "declared")]


def test_all_projections_and_reactors_catch_up():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(2))

    assert catch_up() == {
        "balances": 3,
        "deposits-by-owner": 1,
        "letters": 2,
        "reduced-balances": 3,
    }
    assert balances() == {ada.log_id: 3}
    assert len(readmodels.reactions) == 2
    assert set(catch_up().values()) == {0}


def test_some_may_be_named():
    Account.logs.create(Opened("ada"), Deposited(5))

    assert catch_up(Letters, Balances) == {"balances": 2, "letters": 1}
    assert async_to_sync(acatch_up)(Letters) == {"letters": 0}
    with pytest.raises(TypeError, match="takes projections and reactors, not a str"):
        catch_up("letters")  # type: ignore[arg-type]


def test_an_event_that_cannot_be_applied_is_an_error():
    Account.logs.create(Opened("ada"), Deposited(5))
    readmodels.fail_on(Deposited)

    with pytest.raises(ProjectionFailed) as caught:
        catch_up()

    assert isinstance(caught.value.__cause__, ValueError)


def test_what_reactors_append_is_applied_until_nothing_is_left():
    @projection("interest")
    class Interest(Reactor):
        log_types = ["account"]

        @handles(Opened)
        def pay(self, record: EventRecord) -> None:
            Account.logs.append(record.log_id, Deposited(1), expected_version=record.index + 1)

    ada = Account.logs.create(Opened("ada"))

    assert catch_up()["balances"] == 2
    assert balances() == {ada.log_id: 1}
    assert projections["interest"] is Interest


def test_reactors_that_never_come_to_an_end_are_found_out(monkeypatch):
    monkeypatch.setattr("eventlogs.testing.catching_up.ROUNDS", 3)

    @projection("echo")
    class Echo(Reactor):
        log_types = ["account"]

        @handles(Deposited)
        def answer(self, record: EventRecord) -> None:
            Account.logs.append(record.log_id, Deposited(1), expected_version=record.index + 1)

    Account.logs.create(Deposited(1))

    with pytest.raises(AssertionError, match="still new events to apply, for echo"):
        catch_up(Echo)
