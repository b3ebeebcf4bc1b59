"""
The owner of the tables, who knows the code, and may have the key of seals.

What an owner does who does not compute digests anew is in tests/operations/test_chaining.py, and
rewritten histories are in tests/seals/test_attesting.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from eventlogs import LogErased
from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.erasure import erase
from eventlogs.operations.triggers import TriggerVerifier
from eventlogs.operations.verification import Scope
from eventlogs.seals import Seal, attest, make_seal
from eventlogs.seals.attesting import DIFFERS, PROVED
from eventlogs.seals.keys import Trusted
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.sources import DatabaseSource
from tests.accounts import Account, Opened
from tests.attacks.conftest import sql
from tests.seals.histories import events, remove, rewrite

pytestmark = pytest.mark.postgresql

TRIGGERS = (
    ("eventlogs_event", "eventlogs_event_refuse_change"),
    ("eventlogs_eventlog", "eventlogs_eventlog_keep_chain"),
)


@contextmanager
def without_triggers() -> Iterator[None]:
    for table, trigger in TRIGGERS:
        sql(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
    try:
        yield
    finally:
        for table, trigger in TRIGGERS:
            sql(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}")


def verdicts(*seals: Seal) -> list[str]:
    found = attest(seals, DatabaseSource("default"), Trusted())
    return [each.state for each in found.verdicts]


def findings_of(verifier: ChainVerifier | TriggerVerifier) -> int:
    return len(list(verifier.verify(Scope("default"))))


def test_a_function_that_was_replaced_for_a_minute_is_not_seen_and_its_change_is(log):
    [(definition,)] = sql("SELECT pg_get_functiondef('eventlogs_refuse_change'::regproc)")
    sql(
        "CREATE OR REPLACE FUNCTION eventlogs_refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN NEW; END $$"
    )
    try:
        events().filter(log_id=log.log_id.uuid, index=1).update(data={"amount": 99})
        assert findings_of(TriggerVerifier()) == 1
    finally:
        sql(definition)

    assert findings_of(TriggerVerifier()) == 0
    [finding] = ChainVerifier().verify(Scope("default"))
    assert (finding.subject, finding.index) == (str(log.log_id), 1)


def test_a_log_that_is_removed_with_its_events_is_seen_by_a_seal_alone(log, seen):
    seal = make_seal()
    with without_triggers():
        remove(log.log_id.uuid)

    assert seen() == set()
    assert verdicts(seal) == [DIFFERS]


def test_the_key_of_seals_does_not_change_seals_that_others_have(log, seen):
    kept = make_seal()
    with without_triggers():
        events().filter(log_id=log.log_id.uuid, index=1).update(data={"amount": 99})
        rewrite()
    forged = make_seal(previous=kept)

    assert seen() == set()
    assert verdicts(forged) == [PROVED]  # for somebody who has no earlier seal
    assert verdicts(kept, forged) == [DIFFERS, PROVED]


def test_a_history_of_seals_that_is_begun_anew_is_noted_for_who_has_an_earlier_one(log, seen):
    kept = make_seal()
    with without_triggers():
        events().filter(log_id=log.log_id.uuid, index=1).update(data={"amount": 99})
        rewrite()
    found = attest([kept, make_seal()], DatabaseSource("default"), Trusted())

    assert seen() == set()
    assert [each.state for each in found.verdicts] == [DIFFERS, PROVED]
    assert "another sequence of seals" in str(found.verdicts[1].notes)


def test_an_erasure_with_a_false_digest_is_seen_by_a_seal_and_its_leaves(log, seen):
    leaves: list[Leaf] = []
    seal = make_seal(tell=leaves.append)
    sql(
        "SELECT eventlogs_erase_log(%s, %s, 3, %s, 'somebody', 'no reason')",
        log.log_id.uuid,
        str(log.log_id),
        bytes(32),
    )

    assert seen() == set()
    assert verdicts(seal) == [DIFFERS]  # it has the numbers of the seal, and another root
    found = attest([seal], DatabaseSource("default"), Trusted(), leaves=lambda: leaves)
    assert [each.state for each in found.verdicts] == [DIFFERS]
    assert [each.log_id for each in found.findings] == [log.log_id]


def test_an_erasure_leaves_a_tombstone_and_seals_stay_proved(log, seen):
    seal = make_seal()
    sql(
        "SELECT eventlogs_erase_log(%s, %s, 3, (SELECT head FROM eventlogs_eventlog WHERE id = %s),"
        " 'somebody', 'no reason')",
        log.log_id.uuid,
        str(log.log_id),
        log.log_id.uuid,
    )

    assert seen() == set()
    assert verdicts(seal) == [PROVED]
    with pytest.raises(LogErased):
        Account.logs.reduce(log.log_id)


def test_an_erasure_of_the_log_with_the_last_event_is_no_finding(log):
    last = Account.logs.create(Opened(owner="Zoe"))
    seal = make_seal()
    erase(last.log_id, reason="a test", by="grace")

    assert verdicts(seal) == [PROVED]
    assert verdicts(seal, make_seal(previous=seal)) == [PROVED, PROVED]


def test_a_tombstone_that_is_removed_is_seen(log, seen):
    sql(
        "SELECT eventlogs_erase_log(%s, %s, 3, %s, 'somebody', 'no reason')",
        log.log_id.uuid,
        str(log.log_id),
        bytes(32),
    )
    sql("DELETE FROM eventlogs_erasedlog")

    assert seen() == {"erased"}
