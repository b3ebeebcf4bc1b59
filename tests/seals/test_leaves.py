"""The leaves of a seal: heads as of a position, and their file."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from django.db.models import QuerySet

from eventlogs import LogId
from eventlogs.exceptions import InvalidSeal
from eventlogs.feed import scans
from eventlogs.models import ErasedLog
from eventlogs.seals import leaves
from eventlogs.seals.leaves import Counts, Leaf, leaves_at, leaves_in
from tests.accounts import Account, Deposited, Opened
from tests.seals.histories import events, logs

pytestmark = pytest.mark.feed


def erased(log_id: LogId, *, count: int, digest: bytes) -> None:
    row = ErasedLog(
        id=log_id.uuid,
        log_type=log_id.log_type,
        count=count,
        digest=digest,
        erased_by="ada",
        reason="asked for",
        erased_at=datetime.now(UTC),
    )
    rows: QuerySet[Any] = QuerySet(ErasedLog, using="default")
    rows.bulk_create([row])


def of(position: int) -> list[Leaf]:
    return list(leaves_at("default", position, Counts()))


def head(log_id: LogId, index: int) -> bytes:
    return bytes(events().get(log_id=log_id.uuid, index=index).digest)


def test_each_chained_log_has_a_leaf(accounts_of_three):
    last = accounts_of_three[1].position

    assert of(last) == sorted(
        (
            Leaf(each.log_id, each.version, head(each.log_id, each.version - 1))
            for each in accounts_of_three
        ),
        key=lambda leaf: leaf.order,
    )


@pytest.mark.fence
def test_the_leaves_are_those_of_the_position(accounts_of_three):
    first, second, third = accounts_of_three
    before = second.position - 1  # the second log has one event more since

    assert [leaf.version for leaf in of(before)] == [2, 2, 2]
    assert {leaf.log_id: leaf.head for leaf in of(before)}[second.log_id] == head(second.log_id, 1)
    assert [leaf.log_id for leaf in of(third.position - 2)] == [first.log_id, second.log_id]
    assert of(0) == []


def test_pages_do_not_change_the_leaves(accounts_of_three, monkeypatch):
    last = accounts_of_three[1].position
    expected = of(last), of(last - 3)
    monkeypatch.setattr(leaves, "PAGE", 2)
    monkeypatch.setattr(leaves, "PAIRS", 1)

    assert (of(last), of(last - 3)) == expected


def test_logs_without_a_chain_are_counted(accounts_of_three, owner):
    logs().filter(pk=accounts_of_three[0].log_id.uuid).update(head=None)
    counts = Counts()

    found = list(leaves_at("default", accounts_of_three[1].position, counts))

    assert len(found) == 2
    assert counts.unchained == 1


def test_an_erased_log_has_a_leaf(accounts_of_three):
    gone = LogId.new("account")
    erased(gone, count=4, digest=b"\1" * 32)
    erased(LogId.new("account"), count=4, digest=b"")  # without a chain

    found = of(accounts_of_three[1].position)

    assert Leaf(gone, 4, b"\1" * 32) in found
    assert len(found) == 4
    assert found == sorted(found, key=lambda leaf: leaf.order)


def test_a_file_of_leaves_is_read_as_it_was_written(accounts_of_three):
    found = of(accounts_of_three[1].position)

    assert list(leaves_in(leaf.text + b"\n" for leaf in found)) == found


LEAF = Leaf(LogId.new("account"), 3, bytes(32)).text


@pytest.mark.parametrize(
    "lines",
    [
        [b"nonsense\n"],
        [LEAF.replace(b" 3 ", b" 0 ")],
        [LEAF.replace(b" 3 ", b" 03 ")],
        [LEAF.upper()],
        [LEAF + b"00"],
        [LEAF.replace(b"account_0", b"account_9")],
    ],
)
def test_another_line_is_no_leaf(lines):
    with pytest.raises(InvalidSeal, match="it is not a leaf"):
        list(leaves_in(lines))


def test_leaves_out_of_order_are_refused():
    with pytest.raises(InvalidSeal, match="does not come after"):
        list(leaves_in([LEAF, LEAF]))


def test_all_is_read_as_of_one_moment(accounts_of_three):
    last = accounts_of_three[1].position
    with scans.a_moment("default"):
        before = of(last)
        Account.logs.append(accounts_of_three[0], Deposited(amount=1))
        Account.logs.create(Opened(owner="D"))
        assert of(last) == before
