"""Interleavings of two sessions with unique values, set up one step at a time."""

from __future__ import annotations

import pytest
from django.db import transaction

from eventlogs import ANY, LogState, NameTaken
from eventlogs.models import UniqueValue
from eventlogs.operations import unique_values
from tests.accounts import Account, Deposited
from tests.members import EmailChanged, Greeted, Joined, Member
from tests.races import COMMITS, rule_jobs
from tests.races.rule_jobs import managed
from tests.races.test_interleavings import PLANS, STORES, Session, wait_until_blocked
from tests.races.test_interleavings import blocked as blocked
from tests.races.test_interleavings import other as other
from tests.races.test_rules import answers, held_twice, wrong_rows

pytestmark = [pytest.mark.postgresql, COMMITS]

EMAIL = "ann@example.com"


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("kind", ["append", "create"])
@pytest.mark.parametrize("in_atomic", [False, True], ids=["alone", "in-atomic"])
def test_who_waits_for_a_value_gets_it_or_is_refused_as_the_one_ahead_ends(
    other: Session, blocked: Session, store: str, ends: str, kind: str, in_atomic: bool
):
    members = managed(Member, store)
    mine, aside = members.create(Joined()), members.create(Joined())
    other.begin()
    theirs = other.do(members.create, Joined(EMAIL))

    def claim() -> LogState:
        if kind == "create":  # the card, which is free, is claimed before the address
            return members.create(Joined(EMAIL, 7), idempotency_key="mine")
        return members.append(mine, Joined(EMAIL, 7), idempotency_key="mine")

    def call() -> LogState | NameTaken:
        if not in_atomic:
            return claim()
        with transaction.atomic():
            answer: LogState | NameTaken
            try:
                answer = claim()
            except NameTaken as taken:
                answer = taken
            members.append(aside, Greeted())  # the transaction is usable
        return answer

    waiting = blocked.start(call)
    wait_until_blocked(blocked)
    getattr(other, ends)()

    if ends == "rollback":
        owner = waiting.result(10).log_id
        assert members.find("member.card", 7) == members.find("member.email", EMAIL) == owner
    else:
        refused = waiting.result(10) if in_atomic else waiting.exception(10)
        assert isinstance(refused, NameTaken)
        assert (refused.scope, refused.log_id) == ("member.email", theirs.log_id)
        assert members.find("member.card", 7) is None
        assert members.create(Joined(card=7), idempotency_key="mine").version == 1
    assert members.version(aside.log_id) == 1 + in_atomic
    assert (held_twice(), wrong_rows()) == ([], [])


def test_a_value_that_is_being_released_is_taken_until_the_commit(other: Session):
    members = managed(Member, "postgresql")
    owner = members.create(Joined(EMAIL))
    other.begin()
    other.do(members.append, owner, EmailChanged(None))

    with pytest.raises(NameTaken):
        members.create(Joined(EMAIL))
    other.commit()

    assert members.create(Joined(EMAIL)).version == 1
    assert (held_twice(), wrong_rows()) == ([], [])


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("in_atomic", [False, True], ids=["alone", "in-atomic"])
def test_who_waits_for_a_log_replaces_the_value_that_it_got_meanwhile(
    other: Session, blocked: Session, store: str, in_atomic: bool
):
    members = managed(Member, store)
    log_id = members.create(Joined(EMAIL)).log_id
    other.begin()
    other.do(members.append, log_id, EmailChanged("meanwhile"), expected_version=ANY)

    def append() -> LogState:
        return members.append(log_id, EmailChanged("mine"), expected_version=ANY)

    waiting = blocked.start(transaction.atomic(append) if in_atomic else append)
    wait_until_blocked(blocked)
    other.commit()

    assert waiting.result(10).version == 3
    assert members.find("member.email", "mine") == log_id
    assert members.find("member.email", "meanwhile") is None
    assert (held_twice(), wrong_rows()) == ([], [])


def test_a_store_that_believes_its_snapshot_is_found(other: Session, blocked: Session):
    members = managed(Member, "tests.races.broken.BelievesItsSnapshot")
    log_id = members.create(Joined(EMAIL)).log_id
    other.begin()
    other.do(members.append, log_id, EmailChanged("meanwhile"), expected_version=ANY)
    waiting = blocked.start(members.append, log_id, EmailChanged("mine"), expected_version=ANY)
    wait_until_blocked(blocked)

    other.commit()

    assert waiting.result(10).version == 3
    assert members.find("member.email", "meanwhile") == log_id
    assert wrong_rows()


@pytest.mark.parametrize("store", STORES)
def test_who_waits_for_a_log_replaces_the_value_that_was_claimed_for_it_meanwhile(
    other: Session, blocked: Session, store: str
):
    members = managed(Member, store)
    log_id = members.create(Joined(EMAIL)).log_id
    UniqueValue.objects.filter(scope="member.email")._raw_delete("default")  # as if it were old
    other.begin()
    other.do(unique_values.settle, "default", [log_id])
    waiting = blocked.start(members.append, log_id, EmailChanged("mine"), expected_version=ANY)
    wait_until_blocked(blocked)

    other.commit()

    assert waiting.result(10).version == 2
    assert members.find("member.email", EMAIL) is None
    assert (held_twice(), wrong_rows()) == ([], [])


@pytest.mark.parametrize("plan", PLANS)
def test_races_for_values_end_well_under_every_plan(crew, plan, quick_deadlocks):
    members = managed(Member, "postgresql")
    log_ids = [members.create(Joined()).log_id for _ in range(4)]
    values = [f"{number}@example.com" for number in range(6)]
    options = " ".join(["-c jit=off", PLANS[plan], *quick_deadlocks.values()])

    job = rule_jobs.change_values_in_transactions
    found = crew.race(8, job, "postgresql", log_ids, values, 10, options=options)

    assert (held_twice(), wrong_rows()) == ([], [])
    assert answers(found)[LogState] > 0


@pytest.mark.parametrize("plan", PLANS)
def test_logs_that_expect_one_another_do_not_deadlock_under_any_plan(crew, plan):
    accounts = managed(Account, "postgresql")
    log_ids = [accounts.create(Deposited(1)).log_id for _ in range(6)]
    options = " ".join(["-c jit=off -c deadlock_timeout=20ms", PLANS[plan]])

    job = rule_jobs.expect_one_another
    found = crew.race(8, job, "postgresql", log_ids, 10, True, options=options)

    assert {type(each.answer).__name__ for each in found} <= {"LogState", "ConcurrentAppend"}
