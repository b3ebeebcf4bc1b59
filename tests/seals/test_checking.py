"""One seal against a history with logs that were erased, or chained since."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from django.utils import timezone

from eventlogs import LogId
from eventlogs.models import ErasedLog
from eventlogs.seals.checking import Check
from eventlogs.seals.documents import Seal, replace, time_of
from eventlogs.seals.history import Mark
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.merkle import Tree
from tests.seals.test_documents import SEAL

NOW = timezone.now()
LEAVES = [
    Leaf(LogId("account", UUID(int=number)), number, bytes([number]) * 32) for number in (1, 2, 3)
]
LATER = LogId("account", UUID(int=LEAVES[-1].log_id.uuid.int + 1))


def seal_of(leaves: list[Leaf], **members) -> Seal:
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf.text)
    figures = {"logs": tree.count, "events": sum(leaf.version for leaf in leaves), "unchained": 0}
    return replace(SEAL, root=tree.root().hex(), time=time_of(NOW), **{**figures, **members})


def tombstone(leaf: Leaf, *, more: int = 0, days: int = 1) -> ErasedLog:
    digest = b"\xff" * 32 if more else leaf.head
    return ErasedLog(
        id=leaf.log_id.uuid,
        log_type=leaf.log_id.log_type,
        count=leaf.version + more,
        digest=digest,
        erased_at=NOW + timedelta(days=days),
    )


def checked(seal: Seal, history: list, *, leaves: list[Leaf] | None = None) -> tuple[Check, list]:
    """Return a check of a history of leaves and tombstones, and its findings."""
    check, findings = Check(seal, leaves, None), []
    for each in history:
        if isinstance(each, ErasedLog):
            findings += check.add_erased(each)
        else:
            findings += check.add(each.log_id, Mark(each.version, each.head), is_chained=True)
    findings += check.end()
    return check, findings


def test_the_same_logs_prove_the_seal():
    check, findings = checked(seal_of(LEAVES), LEAVES)

    assert check.proved()
    assert findings == []


@pytest.mark.parametrize("days", [-1, 1])
def test_a_log_that_was_erased_keeps_its_leaf(days):
    check, _ = checked(seal_of(LEAVES), [LEAVES[0], tombstone(LEAVES[1], days=days), LEAVES[2]])

    assert check.proved()
    assert "1 log was erased" in check.notes()[0]


def test_a_log_that_was_made_and_erased_after_the_seal_is_left_out():
    new = tombstone(Leaf(LATER, 2, bytes(32)))

    assert checked(seal_of(LEAVES), [*LEAVES, new])[0].proved()


def test_an_erased_log_with_events_after_the_seal_leaves_it_undecided():
    erased = tombstone(LEAVES[1], more=1)
    check, _ = checked(seal_of(LEAVES), [LEAVES[0], erased, LEAVES[2]])

    assert check.proved() is None
    assert not check.differs
    assert check.reason() == "1 log was erased since, so its leaves are needed: pass --leaves"


def test_the_leaves_decide_it():
    erased = tombstone(LEAVES[1], more=1)
    check, findings = checked(seal_of(LEAVES), [LEAVES[0], erased, LEAVES[2]], leaves=LEAVES)

    assert check.proved()
    assert findings == []
    assert "had events after the seal" in check.notes()[1]


def test_the_leaves_show_that_another_log_was_erased():
    wrong = tombstone(LEAVES[1]._replace(head=b"\7" * 32))
    short = tombstone(LEAVES[2]._replace(version=1))
    check, findings = checked(seal_of(LEAVES), [LEAVES[0], wrong, short], leaves=LEAVES)

    assert check.proved() is None
    assert check.differs
    assert [each.log_id for each in findings] == [each.log_id for each in LEAVES[1:]]


def test_a_log_that_was_erased_before_the_seal_and_lost_its_tombstone_is_missing():
    check, findings = checked(seal_of(LEAVES), LEAVES[:2])
    _, named = checked(seal_of(LEAVES), LEAVES[:2], leaves=LEAVES)

    assert check.proved() is None
    assert check.differs
    assert "it stands over 3 logs, and there are 2" in check.reason()
    assert findings == []
    assert "it is missing" in named[0].message


@pytest.mark.parametrize("leaves", [None, LEAVES])
def test_a_log_that_is_missing_in_an_export_may_have_been_erased(leaves):
    check, findings = Check(seal_of(LEAVES), leaves, None, knows_erased=False), []
    for each in (LEAVES[0], LEAVES[2]):
        findings += check.add(each.log_id, Mark(each.version, each.head), is_chained=True)
    findings += check.end()

    assert check.proved() is None
    assert not check.differs
    assert check.reason().startswith("1 log is missing")
    assert [each.log_id for each in findings] == ([] if leaves is None else [LEAVES[1].log_id])


def test_a_log_that_differs_in_an_export_is_none_that_was_erased():
    check = Check(seal_of(LEAVES), LEAVES, None, knows_erased=False)
    check.add(LEAVES[0].log_id, Mark(1, bytes(32)), is_chained=True)
    check.end()

    assert check.differs
    assert "1 log differs" in check.reason()


def test_an_erasure_with_a_time_before_the_seal_does_not_make_it_differ():
    """Of a transaction that was committed after the seal, or of another clock."""
    erased = tombstone(LEAVES[1], more=1, days=-1)
    check, _ = checked(seal_of(LEAVES, erased=0), [LEAVES[0], erased, LEAVES[2]])

    assert check.proved() is None
    assert not check.differs
    assert "1 log was erased at about its time" in check.reason()


def test_logs_that_were_chained_since_leave_it_undecided():
    seal = seal_of(LEAVES[:2], unchained=1)
    check, _ = checked(seal, LEAVES)

    assert check.proved() is None
    assert not check.differs
    assert "chained or erased since" in check.reason()


def test_the_leaves_decide_which_logs_were_chained_since():
    seal = seal_of(LEAVES[:2], unchained=1)

    check, findings = checked(seal, LEAVES, leaves=LEAVES[:2])

    assert check.proved()
    assert findings == []
    assert "nothing is said about 1 log" in check.notes()[0]


def test_more_new_logs_than_there_were_without_a_chain_were_put_in():
    seal = seal_of(LEAVES[:1], unchained=1)
    check, _ = checked(seal, LEAVES, leaves=LEAVES[:1])

    assert check.proved() is None
    assert check.differs
    assert "there are 2 logs up to its position that it does not stand over" in check.reason()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (LEAVES[1]._replace(version=9), "it has 9 events up to the seal's position, and had 2"),
        (LEAVES[1]._replace(head=bytes(32)), "its events are not those of the seal"),
    ],
)
def test_a_log_that_differs_is_named(changed, message):
    _, [finding] = checked(seal_of(LEAVES), [LEAVES[0], changed, LEAVES[2]], leaves=LEAVES)

    assert finding.log_id == changed.log_id
    assert message in finding.message


def test_a_log_without_its_chain_is_named():
    check = Check(seal_of(LEAVES), LEAVES, None)

    [finding] = check.add(LEAVES[0].log_id, Mark(1, b""), is_chained=False)

    assert "its chain was removed" in finding.message


def test_the_number_of_events_is_a_hint():
    changed = [LEAVES[0], LEAVES[1]._replace(version=3), LEAVES[2]]
    check, _ = checked(seal_of(LEAVES), changed)

    assert "it stands over 6 events, and there are 7" in check.reason()
