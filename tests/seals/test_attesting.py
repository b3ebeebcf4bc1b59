"""
Attesting seals: a history that is there is proved, and each kind of attack is found.

The attacker owns the tables: triggers are disabled, and after the attack all digests and heads are
computed anew (``rewrite``), so that each log's chain fits again.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eventlogs import LogState
from eventlogs.exceptions import InvalidSeal
from eventlogs.operations.erasure import erase
from eventlogs.seals import Attestation, make_seal
from eventlogs.seals.attesting import DIFFERS, NOT_TRUSTED, PROVED, UNDECIDED
from eventlogs.seals.documents import replace
from eventlogs.seals.history import Past
from eventlogs.seals.keys import Trusted, new_pair, signed
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.merkle import root_of
from eventlogs.seals.sources import DatabaseSource
from tests.accounts import Account, Deposited, Opened
from tests.seals.histories import (
    events,
    free_position,
    insert_between,
    logs,
    remove,
    rewrite,
    swap,
)
from tests.seals.test_leaves import erased

pytestmark = pytest.mark.feed

States = list[LogState]
Attack = Callable[[States], None]


@pytest.fixture
def leaves() -> list[Leaf]:
    return []


def states_of(found: Attestation) -> list[str]:
    return [each.state for each in found.verdicts]


def test_a_history_that_is_there_is_proved(accounts_of_three, attested):
    found = attested(make_seal())

    assert found.is_proved
    assert (found.logs, found.events) == (3, 7)
    assert states_of(found) == [PROVED]
    assert found.verdicts[0].notes == []


def test_it_stays_proved_when_history_goes_on(accounts_of_three, attested):
    first = make_seal()
    Account.logs.append(accounts_of_three[0], Deposited(amount=1))
    Account.logs.create(Opened(owner="D"))
    second = make_seal(previous=first)
    Account.logs.append(accounts_of_three[2], Deposited(amount=1))

    found = attested(first, second)

    assert states_of(found) == [PROVED, PROVED]
    assert found.events == 9


def change(states: States) -> None:
    events().filter(log_id=states[1].log_id.uuid, index=1).update(data={"amount": 51})


def change_time(states: States) -> None:
    [at] = events().filter(log_id=states[1].log_id.uuid, index=0).values_list("recorded_at")
    events().filter(log_id=states[1].log_id.uuid, index=1).update(
        recorded_at=at[0].replace(year=2020)
    )


def swap_two(states: States) -> None:
    swap(states[1].log_id.uuid, 1, 2)


def insert(states: States) -> None:
    insert_between(states[1].log_id.uuid, 0)


def truncate(states: States) -> None:
    remove(states[1].log_id.uuid, start=2)


def remove_log(states: States) -> None:
    remove(states[0].log_id.uuid)


def add_log(states: States) -> None:
    state = Account.logs.create(Opened(owner="Eve"))
    place = events().get(log_id=states[0].log_id.uuid, index=0).position
    events().filter(log_id=states[0].log_id.uuid, index=0).update(position=free_position())
    events().filter(position=state.position).update(position=place)


def move_event(states: States) -> None:
    """Move the last event to another log."""
    moved = {"log_id": states[0].log_id.uuid, "index": 2}
    events().filter(log_id=states[1].log_id.uuid, index=2).update(**moved)


def remove_all(states: States) -> None:
    for each in states:
        remove(each.log_id.uuid)
    state = Account.logs.create(Opened(owner="Eve"))
    events().filter(position=state.position).update(position=1_000_000)


ATTACKS = [
    *(change, change_time, swap_two, insert, truncate, remove_log, add_log, move_event),
    remove_all,
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_rewritten_history_differs(accounts_of_three, owner, attested, attack):
    seal = make_seal()

    attack(accounts_of_three)
    rewrite()
    Account.logs.create(Opened(owner="D"))  # the feed goes on behind the seal
    found = attested(seal)

    assert found.verdicts[0].state == DIFFERS
    assert "the root is another one" in found.verdicts[0].reason
    assert not found.is_proved


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_leaves_name_each_log_that_differs(accounts_of_three, owner, attested, leaves, attack):
    seal = make_seal(tell=leaves.append)

    attack(accounts_of_three)
    rewrite()
    Account.logs.create(Opened(owner="D"))
    found = attested(seal, leaves=lambda: leaves)

    changed = {
        remove_log: {accounts_of_three[0].log_id},
        move_event: {each.log_id for each in accounts_of_three[:2]},
        remove_all: {each.log_id for each in accounts_of_three},
    }
    named = {each.log_id for each in found.findings if each.index is None}
    assert found.verdicts[0].state == DIFFERS
    if attack in (add_log,):
        assert len(named) == 1
        assert named.isdisjoint(each.log_id for each in accounts_of_three)
    else:
        assert named >= changed.get(attack, {accounts_of_three[1].log_id})


def test_an_event_that_was_changed_without_its_digest_is_named(accounts_of_three, owner, attested):
    seal = make_seal()

    change(accounts_of_three)
    found = attested(seal)

    assert [(each.log_id, each.index) for each in found.findings] == [
        (accounts_of_three[1].log_id, 1)
    ]
    assert found.verdicts[0].state == DIFFERS
    assert "see the events that are named" in found.verdicts[0].reason


def test_a_digest_that_was_changed_alone_is_a_finding(accounts_of_three, owner, attested):
    """The events prove the seal; the stored digest is still wrong."""
    seal = make_seal()

    events().filter(log_id=accounts_of_three[1].log_id.uuid, index=1).update(digest=bytes(32))
    found = attested(seal)

    assert states_of(found) == [PROVED]
    assert not found.is_proved
    assert found.findings[0].index == 1


def test_what_changed_is_between_two_seals(accounts_of_three, owner, attested):
    first = make_seal()
    state = Account.logs.append(accounts_of_three[0], Deposited(amount=1))
    second = make_seal(previous=first)
    Account.logs.append(state, Deposited(amount=2))
    third = make_seal(previous=second)

    events().filter(log_id=state.log_id.uuid, index=2).update(data={"amount": 100})
    rewrite()
    found = attested(first, second, third)

    assert states_of(found) == [PROVED, DIFFERS, DIFFERS]
    assert f"up to position {first.position} are proved" in found.verdicts[1].reason


def test_a_change_after_the_seal_is_not_its_matter(accounts_of_three, owner, attested):
    seal = make_seal()
    state = Account.logs.append(accounts_of_three[0], Deposited(amount=1))

    events().filter(log_id=state.log_id.uuid, index=2).update(data={"amount": 100})
    rewrite()

    assert attested(seal).is_proved


def test_an_older_backup_is_noticed(accounts_of_three, owner, attested):
    seal = make_seal()

    last = accounts_of_three[1]
    remove(last.log_id.uuid, start=2)
    rewrite()
    found = attested(seal)

    assert states_of(found) == [DIFFERS]
    assert "an older backup was restored" in found.verdicts[0].reason


def test_a_backup_that_went_on_is_noticed_too(accounts_of_three, owner, attested):
    seal = make_seal()

    last = accounts_of_three[1]
    remove(last.log_id.uuid, start=2)
    rewrite()
    state = Account.logs.append(accounts_of_three[0], Deposited(amount=1))
    events().filter(position=state.position).update(position=seal.position)
    found = attested(seal)

    assert states_of(found) == [DIFFERS]


def test_a_log_that_lost_its_chain_differs(accounts_of_three, owner, attested):
    seal = make_seal()

    log = accounts_of_three[0].log_id.uuid
    logs().filter(pk=log).update(head=None)
    events().filter(log_id=log).update(digest=None)
    found = attested(seal)

    assert states_of(found) == [DIFFERS]
    assert "logs were put in" in found.verdicts[0].reason


def test_logs_without_a_chain_cannot_be_put_in(accounts_of_three, owner, attested, settings):
    seal = make_seal()

    settings.EVENTLOGS = {**settings.EVENTLOGS, "CHAIN": False}
    state = Account.logs.create(Opened(owner="Eve"))
    events().filter(position=state.position).update(position=free_position())
    found = attested(seal)

    assert states_of(found) == [DIFFERS]
    assert "logs were put in" in found.verdicts[0].reason


def test_a_forged_seal_is_not_trusted(accounts_of_three, owner, attested, settings):
    seal = make_seal()
    change(accounts_of_three)
    rewrite()
    forged = make_seal()
    secret, _ = new_pair()
    settings.EVENTLOGS = {**settings.EVENTLOGS, "SEAL_KEY": secret}

    found = attested(replace(forged, signature=seal.signature), signed(forged))

    assert states_of(found) == [NOT_TRUSTED, NOT_TRUSTED]
    assert "its signature is wrong" in found.verdicts[0].reason
    assert "is not trusted here" in found.verdicts[1].reason


def test_a_seal_that_was_removed_is_missed(accounts_of_three, attested):
    first = make_seal()
    second = make_seal(previous=first)
    third = make_seal(previous=second)

    found = attested(first, third)

    assert states_of(found) == [PROVED, NOT_TRUSTED]
    assert "one was removed" in found.verdicts[1].reason


def test_seals_out_of_order_are_noticed(accounts_of_three, attested):
    first = make_seal()
    second = make_seal(previous=first)

    assert states_of(attested(second, first)) == [PROVED, NOT_TRUSTED]


def test_seals_of_two_files_are_two_sequences(accounts_of_three, attested):
    first, other = make_seal(), make_seal()
    second = make_seal(previous=first)

    found = attested(first, other, second, make_seal(previous=other))

    assert found.is_proved
    assert ["another sequence" in "".join(each.notes) for each in found.verdicts] == [
        *(False, True, False, False)
    ]


def test_a_seal_that_is_given_twice_has_one_verdict(accounts_of_three, attested):
    first = make_seal()
    second = make_seal(previous=first)

    assert states_of(attested(first, second, first, second)) == [PROVED, PROVED]


def test_two_seals_that_name_the_same_one_are_noticed(accounts_of_three, attested):
    first = make_seal()
    others = make_seal(previous=first), make_seal(previous=first)

    assert states_of(attested(first, *others)) == [PROVED, PROVED, NOT_TRUSTED]


def test_a_beginning_that_was_removed_is_told(accounts_of_three, attested):
    second = make_seal(previous=make_seal())

    found = attested(second)

    assert found.is_proved
    assert found.verdicts[0].notes == ["it names a seal before it that is not here"]


def test_leaves_of_another_seal_are_refused(accounts_of_three, attested, leaves):
    seal = make_seal(tell=leaves.append)

    with pytest.raises(InvalidSeal, match="leaves of another seal"):
        attested(seal, leaves=lambda: leaves[:-1])


def test_a_log_is_proved_by_a_path(accounts_of_three, attested):
    seal = make_seal()

    for each in accounts_of_three:
        proof = attested(seal, log=each.log_id).proof
        assert (proof.leaf.log_id, proof.leaf.version) == (each.log_id, each.version)
        assert root_of(proof.leaf.text, proof.path).hex() == seal.root
        assert proof.seal == seal


def test_a_log_is_proved_by_the_last_seal_that_is_proved(accounts_of_three, attested):
    first = make_seal()
    Account.logs.append(accounts_of_three[0], Deposited(amount=1))
    second = make_seal(previous=first)

    proof = attested(first, second, log=accounts_of_three[0].log_id).proof

    assert (proof.seal, proof.leaf.version) == (second, 3)


def test_a_log_that_differs_has_no_proof(accounts_of_three, owner, attested):
    seal = make_seal()

    change(accounts_of_three)

    assert attested(seal, log=accounts_of_three[1].log_id).proof is None


def test_findings_are_limited(accounts_of_three, owner, attested, monkeypatch):
    monkeypatch.setattr("eventlogs.seals.attesting.MOST", 2)
    seal = make_seal()

    events().update(metadata={"user": "eve"})

    assert len(attested(seal).findings) == 2


def test_the_log_with_the_newest_event_can_be_erased(accounts_of_three, transactional_db, attested):
    seal = make_seal()

    erase(accounts_of_three[1].log_id, by="ada", reason="asked for")
    erase(accounts_of_three[2].log_id, by="ada", reason="asked for")
    found = attested(seal)

    assert DatabaseSource("default").end < seal.position
    assert states_of(found) == [PROVED]


def test_a_log_that_is_erased_meanwhile_is_no_false_alarm(
    accounts_of_three, owner, attested, monkeypatch
):
    log = accounts_of_three[0].log_id
    seal = make_seal()
    read = DatabaseSource.erased

    def erase_first(self):
        found = list(read(self))
        erased(log, count=2, digest=bytes(32))
        return iter(found)

    remove(log.uuid)
    monkeypatch.setattr(DatabaseSource, "erased", erase_first)
    found = attested(seal)

    assert states_of(found) == [UNDECIDED]
    assert "attest it again" in found.verdicts[0].reason


def test_nothing_is_read_for_seals_that_are_not_trusted(accounts_of_three, attested):
    found = attested(replace(make_seal(), events=9))

    assert (found.events, states_of(found)) == (0, [NOT_TRUSTED])


def test_a_key_of_another_project_proves_nothing(accounts_of_three, attested):
    _, other = new_pair()

    assert Trusted([other]).why_not(make_seal()) is not None


def test_a_broken_version_that_trusts_stored_digests_proves_a_changed_event(
    accounts_of_three, owner, attested, monkeypatch
):
    def believe(self, *event_and_digest) -> None:
        *_, stored = event_and_digest
        self._version += 1
        self._head = stored

    seal = make_seal()
    change(accounts_of_three)
    assert not attested(seal).is_proved

    monkeypatch.setattr(Past, "add", believe)
    monkeypatch.setattr(Past, "follow", believe)

    assert attested(seal).is_proved
