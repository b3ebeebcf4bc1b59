"""What a block of code appends is asserted, in the database."""

from __future__ import annotations

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction

from eventlogs import ANY, InvalidEvent, InvalidLogId
from eventlogs.testing import assert_appends, assert_no_appends
from tests.accounts import Account, Deposited, Opened, Parcel, Sent, Withdrawn

pytestmark = pytest.mark.django_db
accounts = Account.logs


def test_exactly_these_events_are_appended_in_this_order():
    state = accounts.create(Opened("ada"))

    with assert_appends(Account, Deposited(5), Opened("eve")) as appended:
        accounts.append(state, Deposited(5), metadata={"till": 7})
        Parcel.logs.create(Sent("ada"))
        other = accounts.create(Opened("eve"))

    assert appended.events == [Deposited(5), Opened("eve")]
    assert [record.log_id for record in appended.records] == [state.log_id, other.log_id]
    assert appended.records[0].metadata == {"till": 7}


def test_the_failure_shows_what_was_expected_and_what_came():
    state = accounts.create(Opened("ada"))

    with (
        pytest.raises(AssertionError) as caught,
        assert_appends(Account, Deposited(5), Withdrawn(1)),
    ):
        accounts.append(state, Deposited(6), Withdrawn(1))

    assert (
        str(caught.value)
        == """\
The block appended other events to logs of type 'account' than expected (- expected, + appended):

  - Deposited(amount=5)
  + Deposited(amount=6)
    Withdrawn(amount=1)
"""
    )


def test_what_is_rolled_back_is_not_appended():
    with (
        pytest.raises(AssertionError, match="appended nothing") as caught,
        assert_appends(Account, Opened("ada")),
        transaction.atomic(),
    ):
        accounts.create(Opened("ada"))
        transaction.set_rollback(True)

    assert "- Opened(owner='ada')" in str(caught.value)


def test_without_events_any_will_do_but_not_none():
    with assert_appends(Account) as appended:
        accounts.create(Opened("ada"))
    assert appended.events == [Opened("ada")]

    with pytest.raises(AssertionError, match="nothing to logs of type"), assert_appends(Account):
        Parcel.logs.create(Sent("ada"))


def test_nothing_may_be_asked_for():
    with assert_no_appends(Account):
        Parcel.logs.create(Sent("ada"))

    with pytest.raises(AssertionError, match="and none was expected"), assert_no_appends(Account):
        accounts.create(Opened("ada"))


def test_one_log_alone_may_be_meant():
    one, other = accounts.create(Opened("ada")), accounts.create(Opened("eve"))

    with assert_appends(Account, Deposited(1), log_id=str(one.log_id)):
        accounts.append(one, Deposited(1))
        accounts.append(other, Deposited(2))

    with (
        pytest.raises(AssertionError, match=str(one.log_id)),
        assert_appends(Account, Deposited(1), log_id=one.log_id),
    ):
        accounts.append(other.log_id, Deposited(2), expected_version=ANY)


def test_an_error_of_the_block_is_the_one_that_is_seen():
    with pytest.raises(ZeroDivisionError), assert_appends(Account, Opened("ada")):
        raise ZeroDivisionError


def test_what_cannot_be_expected_is_refused_before_the_block():
    with pytest.raises(InvalidEvent, match="pass an instance"), assert_appends(Account, Opened):
        raise AssertionError("the block was run")
    with pytest.raises(TypeError, match="An aggregate class comes first"):
        assert_appends(accounts)
    with pytest.raises(InvalidLogId):
        assert_appends(Account, log_id="nonsense")


def test_async_code_is_asserted_likewise():
    async def run(amount: int) -> list:
        async with assert_appends(Account, Opened("ada"), Deposited(5)) as appended:
            await accounts.acreate(Opened("ada"), Deposited(amount))
        return appended.events

    assert async_to_sync(run)(5) == [Opened("ada"), Deposited(5)]
    with pytest.raises(AssertionError, match=r"\+ Deposited\(amount=6\)"):
        async_to_sync(run)(6)
