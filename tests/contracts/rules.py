"""The contract of stores that keep rules across logs: unique values, and states of other logs."""

from __future__ import annotations

import pickle
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from eventlogs import (
    ANY,
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogId,
    LogManager,
    LogNotFound,
    LogState,
    NameTaken,
)
from eventlogs.stores import BaseStore, ExportedEvent
from eventlogs.testing.contracts.stores import new_key
from tests.accounts import Account, Deposited, Opened
from tests.members import EmailChanged, Greeted, Joined, Listed, Member, Supplier, greet


def new_email() -> str:
    """Return an address that no other test takes."""
    return f"{uuid4()}@Example.com"


def members_of(store: BaseStore) -> LogManager[Member]:
    return LogManager(Member, store=store)


def owner_of(store: BaseStore, email: str | None) -> LogId | None:
    return members_of(store).find("member.email", email)


class RulesContract:
    """Subclass it with a fixture ``store``: a BaseStore that keeps rules, and may hold logs."""

    # Unique values

    def test_a_value_belongs_to_the_log_that_claimed_it_first(self, store: BaseStore):
        members, email = members_of(store), new_email()
        first = members.create(Joined(email))
        second = members.create(Joined())
        new_id = members.new_id()

        with pytest.raises(NameTaken) as created:
            members.create(Joined(email), log_id=new_id)
        with pytest.raises(NameTaken) as appended:
            members.append(second, EmailChanged(email))

        for caught in (created, appended):
            assert (caught.value.scope, caught.value.log_id) == ("member.email", first.log_id)
            shown = (
                f"{caught.value} {vars(caught.value)} {pickle.loads(pickle.dumps(caught.value))}"
            )
            assert email.casefold() not in shown.casefold()
        assert owner_of(store, email) == first.log_id
        assert members.version(second.log_id) == 1
        assert not members.exists(new_id)

    def test_a_value_is_compared_as_its_annotation_says(self, store: BaseStore):
        members, email = members_of(store), new_email()
        state = members.create(Joined(email))

        with pytest.raises(NameTaken):
            members.create(Joined(email.upper()))

        assert owner_of(store, email.swapcase()) == state.log_id
        assert owner_of(store, f" {email}") is None

    def test_log_types_may_share_a_scope(self, store: BaseStore):
        suppliers, email = LogManager(Supplier, store=store), new_email()
        supplier = suppliers.create(Listed(email))

        with pytest.raises(NameTaken) as caught:
            members_of(store).create(Joined(email))

        assert caught.value.log_id == supplier.log_id
        assert owner_of(store, email) == suppliers.find("member.email", email) == supplier.log_id

    def test_a_new_value_of_a_log_replaces_its_old_one(self, store: BaseStore):
        members, old, new = members_of(store), new_email(), new_email()
        state = members.create(Joined(old))

        members.append(state, EmailChanged(new))

        assert (owner_of(store, old), owner_of(store, new)) == (None, state.log_id)
        assert members.create(Joined(old)).version == 1

    def test_none_releases_the_value(self, store: BaseStore):
        members, email = members_of(store), new_email()
        state = members.create(Joined(email))

        members.append(state, EmailChanged(None))

        assert owner_of(store, email) is None
        assert members.find("member.email", None) is None
        assert members.create(Joined(email)).version == 1

    def test_a_log_may_claim_its_own_value_again(self, store: BaseStore):
        members, email = members_of(store), new_email()
        state = members.create(Joined(email))

        state = members.append(state, EmailChanged(email.upper()))
        state = members.append(state, EmailChanged(email), Greeted())

        assert (state.version, owner_of(store, email)) == (4, state.log_id)

    def test_an_event_without_the_field_changes_nothing(self, store: BaseStore):
        members, email = members_of(store), new_email()
        state = members.create(Joined(email))

        members.append(state, Greeted(), Greeted())

        assert owner_of(store, email) == state.log_id

    def test_the_last_value_of_a_batch_counts(self, store: BaseStore):
        members, passed, kept = members_of(store), new_email(), new_email()
        other = members.create(Joined(passed))

        state = members.create(Joined(passed), EmailChanged(kept))
        gone = members.create(Joined(new_email()), EmailChanged(None))
        again = members.append(state, EmailChanged(None), EmailChanged(kept))

        assert owner_of(store, passed) == other.log_id
        assert owner_of(store, kept) == again.log_id
        assert gone.version == 2

    def test_of_two_values_both_are_claimed_or_none(self, store: BaseStore):
        members, email, card = members_of(store), new_email(), uuid4().int
        owner = members.create(Joined(card=card))
        state = members.create(Joined())

        for refused in (
            lambda: members.create(Joined(email, card), idempotency_key=new_key()),
            lambda: members.append(state, Joined(email, card)),
        ):
            with pytest.raises(NameTaken) as caught:
                refused()
            assert (caught.value.scope, caught.value.log_id) == ("member.card", owner.log_id)

        assert owner_of(store, email) is None
        assert members.append(state, Joined(email, card + 1)).version == 2
        assert members.find("member.card", card + 1) == owner_of(store, email) == state.log_id

    @pytest.mark.parametrize("expected", ["state", "any"])
    def test_a_value_is_claimed_with_and_without_an_expectation(
        self, store: BaseStore, expected: str
    ):
        members, email = members_of(store), new_email()
        state = members.create(Joined(new_email()))

        if expected == "any":
            members.append(state.log_id, EmailChanged(email), expected_version=ANY)
        else:
            members.append(state, EmailChanged(email))

        assert owner_of(store, email) == state.log_id

    def test_a_refused_append_claims_and_releases_nothing(self, store: BaseStore):
        members, email, other, key = members_of(store), new_email(), new_email(), new_key()
        state = members.create(Joined(email))
        members.append(state, Greeted(), idempotency_key=key)

        with pytest.raises(ConcurrentAppend):
            members.append(state, EmailChanged(other))
        with pytest.raises(LogNotFound):
            members.append(members.new_id(), EmailChanged(other), expected_version=ANY)
        with pytest.raises(ConcurrentAppend):
            members.create(Joined(other), log_id=state.log_id, idempotency_key=new_key())
        with pytest.raises(IdempotencyKeyReused):
            members.append(state, EmailChanged(other), idempotency_key=key)

        assert (owner_of(store, email), owner_of(store, other)) == (state.log_id, None)

    def test_a_replay_answers_the_original_and_claims_nothing(self, store: BaseStore):
        members, email, new, key = members_of(store), new_email(), new_email(), new_key()
        first = members.create(Joined(email), idempotency_key=key)
        members.append(first, EmailChanged(new))
        second = members.create(Joined(email))

        with pytest.raises(IdempotentReplay) as caught:
            members.create(Joined(email), idempotency_key=key)

        assert caught.value.state == first
        assert (owner_of(store, email), owner_of(store, new)) == (second.log_id, first.log_id)

    def test_a_refused_value_leaves_the_key_free(self, store: BaseStore):
        members, email, key = members_of(store), new_email(), new_key()
        members.create(Joined(email))
        state = members.create(Joined())

        with pytest.raises(NameTaken):
            members.append(state, EmailChanged(email), idempotency_key=key)
        with pytest.raises(NameTaken):
            members.create(Joined(email), idempotency_key=key)

        again = members.append(state, EmailChanged(new_email()), idempotency_key=key)
        assert again.version == 2

    def test_execute_claims_and_is_refused(self, store: BaseStore):
        members, email = members_of(store), new_email()
        first, second = members.create(Joined()), members.create(Joined())

        members.execute(first.log_id, lambda _: EmailChanged(email))
        with pytest.raises(NameTaken):
            members.execute(second.log_id, lambda _: EmailChanged(email))

        assert owner_of(store, email) == first.log_id

    # States of other logs

    def test_an_append_may_expect_states_of_other_logs(self, store: BaseStore):
        members, accounts = members_of(store), LogManager(Account, store=store)
        others = [members.create(Joined()), accounts.create(Opened("Ann"), Deposited(1))]
        reduction = accounts.reduce(accounts.create(Opened("Bob")).log_id)
        state = members.create(Greeted(), also_expect=others)

        state = members.append(state, Greeted(), also_expect=[*others, reduction])
        state = members.append(state, Greeted(), Greeted(), also_expect=others[::-1])

        assert state.version == 4

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("how", ["one", "several", "create", "key", "any", "claim"])
    def test_an_append_is_refused_where_another_log_has_moved(
        self, store: BaseStore, place: int, how: str
    ):
        members, accounts = members_of(store), LogManager(Account, store=store)
        mine = members.create(Joined())
        others = [accounts.create(Opened(f"{number}")) for number in range(3)]
        accounts.append(others[place], Deposited(1))
        new_id, email = members.new_id(), new_email()
        calls: dict[str, Any] = {
            "one": lambda **also: members.append(mine, Greeted(), **also),
            "several": lambda **also: members.append(mine, Greeted(), Greeted(), **also),
            "create": lambda **also: members.create(Greeted(), log_id=new_id, **also),
            "key": lambda **also: members.append(
                mine, Greeted(), idempotency_key=new_key(), **also
            ),
            "any": lambda **also: members.append(
                mine.log_id, Greeted(), expected_version=ANY, **also
            ),
            "claim": lambda **also: members.append(mine, EmailChanged(email), **also),
        }

        with pytest.raises(ConcurrentAppend) as caught:
            calls[how](also_expect=others)

        assert caught.value.log_id == others[place].log_id
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
        assert members.version(mine.log_id) == 1
        assert not members.exists(new_id)
        assert owner_of(store, email) is None

    def test_another_log_that_has_another_history_is_refused(self, store: BaseStore):
        members = members_of(store)
        mine, other = members.create(Joined()), members.create(Joined())
        lost = LogState(other.log_id, 1, other.position + 1)

        with pytest.raises(ConcurrentAppend) as caught:
            members.append(mine, Greeted(), also_expect=[lost])

        assert caught.value.log_id == other.log_id
        assert caught.value.expected_position == other.position + 1
        assert caught.value.actual_position == other.position
        alike = LogState(other.log_id, 1, 0)  # without a position, the version alone is compared
        assert members.append(mine, Greeted(), also_expect=[alike]).version == 2

    def test_another_log_that_does_not_exist_is_not_found(self, store: BaseStore):
        members = members_of(store)
        mine, missing = members.create(Joined()), LogState(members.new_id(), 1, 0)
        other_type = LogState(LogId.stored("account", mine.log_id.uuid), 1, 0)

        for state in (missing, other_type):
            with pytest.raises(LogNotFound) as caught:
                members.create(Joined(), also_expect=[state])
            assert caught.value.log_id == state.log_id

    def test_the_own_log_and_the_key_are_looked_at_first(self, store: BaseStore):
        members, key = members_of(store), new_key()
        mine, other = members.create(Joined()), members.create(Joined())
        done = members.append(mine, Greeted(), idempotency_key=key, also_expect=[other])
        members.append(other, Greeted())

        with pytest.raises(IdempotentReplay) as replay:
            members.append(mine, Greeted(), idempotency_key=key, also_expect=[other])
        with pytest.raises(ConcurrentAppend) as conflict:
            members.append(mine, Greeted(), also_expect=[other])

        assert replay.value.state == done
        assert conflict.value.log_id == mine.log_id

    def test_execute_takes_the_version_that_the_caller_has_seen(self, store: BaseStore):
        members = members_of(store)
        state = members.create(Joined())
        decided = []

        def decide(member: Member) -> Greeted:
            decided.append(member)
            return Greeted()

        with pytest.raises(ConcurrentAppend) as caught:
            members.execute(state.log_id, decide, expected_version=2)
        done = members.execute(state.log_id, decide, expected_version=1)

        assert (caught.value.expected_version, caught.value.actual_version) == (2, 1)
        assert (done.version, len(decided)) == (2, 1)

    def test_a_conflict_with_an_expected_version_is_not_tried_again(self, store: BaseStore):
        members = members_of(store)
        state = members.create(Joined())
        decided = []

        def decide(member: Member) -> Greeted:
            decided.append(member)
            members.append(state, Greeted())  # another writer is faster
            return Greeted()

        with pytest.raises(ConcurrentAppend):
            members.execute(state.log_id, decide, expected_version=1)

        assert (len(decided), members.version(state.log_id)) == (1, 2)

    def test_execute_does_not_decide_again_where_another_log_has_moved(self, store: BaseStore):
        members = members_of(store)
        mine, other = members.create(Joined()), members.create(Joined())
        decided = []

        def decide(member: Member) -> Greeted:
            decided.append(member)
            return Greeted()

        members.execute(mine.log_id, decide, also_expect=[other])
        members.append(other, Greeted())
        with pytest.raises(ConcurrentAppend) as caught:
            members.execute(mine.log_id, decide, also_expect=[other])

        assert caught.value.log_id == other.log_id
        assert (len(decided), members.version(mine.log_id)) == (2, 2)

    def test_execute_decides_again_where_only_its_own_log_has_moved(self, store: BaseStore):
        members = members_of(store)
        mine, other = members.create(Joined()), members.create(Joined())
        decided: list[int] = []

        def decide(member: Member) -> Greeted:
            decided.append(member.greeted)
            if len(decided) == 1:
                members.append(mine, Greeted(5))  # another writer is faster
            return Greeted()

        state = members.execute(mine.log_id, decide, also_expect=[other])

        assert (decided, state.version) == ([0, 5], 3)

    def test_a_replayed_execute_looks_at_no_other_log(self, store: BaseStore):
        members, key = members_of(store), new_key()
        mine, other = members.create(Joined()), members.create(Joined())
        done = members.execute(
            mine.log_id, greet, idempotency_key=key, also_expect=[other], expected_version=1
        )
        members.append(other, Greeted())

        again = members.execute(
            mine.log_id, greet, idempotency_key=key, also_expect=[other], expected_version=1
        )

        assert again == done


class RestoredRulesContract:
    """The same, for stores that restore exported logs."""

    def test_restored_logs_have_their_values(self, store: BaseStore):
        old, new, passed = new_email(), new_email(), new_email()
        first = members_of(store).create(Joined(passed), EmailChanged(old), EmailChanged(new))
        events = store.events(first.log_id, start=0, limit=10)
        second = exported(events, Member.logs.new_id())

        restored = store.restore(second)

        # The log that they were exported from has the value, and keeps it.
        assert [(each.scope, each.owner) for each in restored.taken] == [
            ("member.email", first.log_id)
        ]
        assert (owner_of(store, old), owner_of(store, passed)) == (None, None)
        assert owner_of(store, new) == first.log_id

    def test_a_value_that_goes_from_one_log_to_another_within_a_batch(self, store: BaseStore):
        members, email = members_of(store), new_email()
        first = members.create(Joined(email))
        first = members.append(first, EmailChanged(None))
        second = members.create(Joined(email))
        members.append(second, EmailChanged(None))
        ids = members.new_id(), members.new_id()
        batch = [
            *exported(store.events(first.log_id, start=0, limit=10), ids[0]),
            *exported(store.events(second.log_id, start=0, limit=1), ids[1]),
        ]

        restored = store.restore(batch)

        assert (restored.stored, list(restored.taken)) == (3, [])
        assert owner_of(store, email) == ids[1]


def exported(events: Any, log_id: LogId) -> list[ExportedEvent]:
    """Return events as an export of another log."""
    return [ExportedEvent(replace(each, log_id=log_id)) for each in events]
