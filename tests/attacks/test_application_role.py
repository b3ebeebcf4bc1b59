"""The application's role, with the printed grants and no others, uses SQL of its own."""

from __future__ import annotations

from uuid import UUID

import pytest
from django.db import transaction

from eventlogs import Feed, KeyUnavailable, LogErased, LogId
from eventlogs.events import chain
from eventlogs.models import Event
from eventlogs.operations.erasure import erase
from eventlogs.privacy import forget, memory
from eventlogs.seals import attest, make_seal
from eventlogs.seals.attesting import DIFFERS
from eventlogs.seals.keys import Trusted
from eventlogs.seals.sources import DatabaseSource
from eventlogs.stores import digested_events
from tests.accounts import Account, Deposited, Opened
from tests.attacks.conftest import OWNER, sql
from tests.guests import SETTINGS, Guest, Joined
from tests.members import Joined as MemberJoined
from tests.members import Member

pytestmark = pytest.mark.postgresql

ADA = "member:1"

INSERT = """
INSERT INTO eventlogs_event (log_id, log_type, index, type, schema_version, data, metadata,
                             recorded_at, digest{column})
SELECT id, log_type, %s, 'account.deposited', 1, '{{"amount": 99}}', '{{}}', updated_at, %s{value}
FROM eventlogs_eventlog WHERE id = %s
"""
UPDATE = "UPDATE eventlogs_eventlog SET version = %s, head = %s WHERE id = %s"


def insert(log: UUID, index: int, digest: bytes | None, position: int | None = None) -> None:
    """Insert an event as it is, without a change of its log's row."""
    place = {"column": "", "value": ""}
    if position is not None:
        place = {"column": ", position", "value": f", {position}"}
    sql(INSERT.format(**place), index, digest, log)


def right_digest(log: UUID, index: int) -> bytes:
    """Return the digest that a false event would have."""
    with transaction.atomic():
        insert(log, index, bytes(32))
        *before, (event, _) = digested_events.of_log("default", log)
        transaction.set_rollback(True)
    return chain.digest(before[-1].digest if before else None, event)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("UPDATE eventlogs_event SET data = '{}'", "permission denied"),
        ("UPDATE eventlogs_event SET digest = NULL", "permission denied"),
        ("DELETE FROM eventlogs_event", "permission denied"),
        ("TRUNCATE eventlogs_event", "permission denied"),
        ("DELETE FROM eventlogs_eventlog", "permission denied"),
        ("ALTER TABLE eventlogs_event DISABLE TRIGGER ALL", "must be owner"),
        ("DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event", "must be owner"),
        ("ALTER FUNCTION eventlogs_refuse_change() RENAME TO gone", "must be owner"),
        ("SET session_replication_role = replica", "permission denied"),
        (f'SET ROLE "{OWNER[0]}"', "permission denied"),
        ("INSERT INTO eventlogs_erasedlog SELECT FROM eventlogs_eventlog", "permission denied"),
        ("DELETE FROM eventlogs_erasedlog", "permission denied"),
        ("INSERT INTO eventlogs_archivedlog SELECT FROM eventlogs_eventlog", "permission denied"),
        ("UPDATE eventlogs_archivedlog SET version = 1", "permission denied"),
        ("DELETE FROM eventlogs_archivedlog", "permission denied"),
        ("INSERT INTO eventlogs_archivefile DEFAULT VALUES", "permission denied"),
        ("UPDATE eventlogs_archivefile SET name = 'mine'", "permission denied"),
        ("DELETE FROM eventlogs_archivefile", "permission denied"),
    ],
    ids=lambda text: text[:60],
)
def test_what_is_refused(as_application, refused, statement, error):
    with as_application():
        assert error in refused(statement)


def test_a_function_of_the_triggers_cannot_be_replaced(as_application, refused):
    body = "CREATE OR REPLACE FUNCTION eventlogs_refuse_change() RETURNS trigger LANGUAGE plpgsql"
    with as_application():
        # "for schema" where the role cannot create anything, "must be owner" elsewhere.
        error = refused(f"{body} AS $$ BEGIN RETURN NEW; END $$")

    assert "permission denied for schema" in error or "must be owner" in error


def test_a_log_is_not_erased_with_a_forged_mark(as_application, refused, log):
    with as_application(), transaction.atomic():
        sql(
            "SELECT set_config('eventlogs.erasing', concat(%s::uuid, ' ', pg_current_xact_id()),"
            " true)",
            log.log_id.uuid,
        )
        with transaction.atomic():
            call = "SELECT eventlogs_erase_log(%s, %s, 3, ''::bytea, 'me', 'why')"
            assert "permission denied for function" in refused(
                call, log.log_id.uuid, str(log.log_id)
            )
            transaction.set_rollback(True)
        with transaction.atomic():
            delete = "DELETE FROM eventlogs_event WHERE log_id = %s"
            assert "permission denied" in refused(delete, log.log_id.uuid)
            transaction.set_rollback(True)

    assert Account.logs.version(log.log_id) == 3


def test_a_chain_is_not_switched_off(as_application, refused, log):
    with as_application():
        remove = "UPDATE eventlogs_eventlog SET head = NULL WHERE id = %s"
        assert "would break its chain" in refused(remove, log.log_id.uuid)
        lower = "UPDATE eventlogs_eventlog SET version = 2 WHERE id = %s"
        assert "would break its chain" in refused(lower, log.log_id.uuid)


@pytest.mark.parametrize("digest", [None, bytes(32)], ids=["without a digest", "with a wrong one"])
@pytest.mark.fence
def test_a_raw_event_is_seen(as_application, log, seen, digest):
    assert seen() == set()
    with as_application():
        insert(log.log_id.uuid, 3, digest)
        sql(UPDATE, 4, bytes(32), log.log_id.uuid)

    assert "chain" in seen()


def test_an_end_that_is_hidden_is_seen(as_application, log, seen):
    """Version and head of an earlier state: the next append would take the place of an event."""
    [_, (_, second), _] = digested_events.of_log("default", log.log_id.uuid)
    with as_application():
        sql(UPDATE, 2, second, log.log_id.uuid)

    assert {"chain", "versions"} <= seen()


def test_another_head_is_seen(as_application, log, seen):
    with as_application():
        sql(UPDATE, 3, bytes(32), log.log_id.uuid)

    assert seen() == {"chain"}


@pytest.mark.parametrize("log_type", ["", "accounts"])
def test_a_log_that_is_hidden_by_its_type_is_seen(as_application, log, seen, log_type):
    with as_application():
        sql("UPDATE eventlogs_eventlog SET log_type = %s WHERE id = %s", log_type, log.log_id.uuid)

    assert seen() & {"erased", "ids", "chain"}


def test_a_log_without_a_chain_is_seen(as_application, log, seen, settings):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "CHAIN": False}
    with as_application():
        Account.logs.create(Opened(owner="Eve"))
    settings.EVENTLOGS = {**settings.EVENTLOGS, "CHAIN": True}

    assert seen() == {"chain"}


def test_an_erased_log_that_is_created_again_is_seen(as_application, log, seen):
    erase(log.log_id, reason="a test", by="grace")
    assert seen() == set()
    with as_application():
        with pytest.raises(LogErased):
            Account.logs.create(Opened(owner="Ann"), log_id=log.log_id)
        sql("UPDATE eventlogs_eventlog SET id = gen_random_uuid() WHERE log_type = ''")
        Account.logs.create(Opened(owner="Ann"), log_id=log.log_id)

    assert seen() == {"erased"}


@pytest.mark.fence
def test_a_false_event_is_an_append_like_all_others(as_application, log, seen):
    """The role may append. What the event says, and its time, are believed."""
    log_id = log.log_id.uuid
    with as_application():
        digest = right_digest(log_id, 3)
        insert(log_id, 3, digest)
        sql(UPDATE, 4, digest, log_id)

    assert seen() == set()
    assert Account.logs.reduce(log.log_id).aggregate.balance == 5 + 7 + 99


@pytest.mark.fence
def test_an_event_at_a_lower_position_is_seen_by_a_seal_alone(as_application, log, seen):
    """Readers of the feed that are past the position do not get the event."""
    with as_application():
        with transaction.atomic():
            gap = Account.logs.create(Opened(owner="Eve")).position
            transaction.set_rollback(True)
        Account.logs.create(Opened(owner="Zoe"))
    checkpoint = Feed().settled()
    seal = make_seal()
    assert attest([seal], DatabaseSource("default"), Trusted()).is_proved

    new = LogId.new("account").uuid
    with as_application():
        sql(
            "INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at, head)"
            " VALUES (%s, 'account', 1, now(), now(), %s)",
            new,
            bytes(32),
        )
        digest = right_digest(new, 0)
        insert(new, 0, digest, position=gap)
        sql("UPDATE eventlogs_eventlog SET head = %s WHERE id = %s", digest, new)

    assert seen() == set()
    assert list(Feed().read(after=checkpoint)) == []
    found = attest([seal], DatabaseSource("default"), Trusted())
    assert [each.state for each in found.verdicts] == [DIFFERS]


@pytest.fixture
def guest(log, settings):
    """The log of a person, in the same database as the person's key."""
    settings.EVENTLOGS = {**settings.EVENTLOGS, **SETTINGS}
    memory.clear()
    yield Guest.logs.create(Joined(ADA, "Ada Lovelace"))
    memory.clear()


def test_a_key_that_is_destroyed_without_the_command_has_no_receipt(as_application, guest, seen):
    """The role may destroy keys, because ``forget`` does so."""
    with as_application():
        sql("UPDATE eventlogs_subjectkey SET wrapped = NULL, destroyed_at = now()")

    assert Guest.logs.reduce(guest.log_id).aggregate.name == "erased"
    assert not Event.objects.filter(type="eventlogs_forgetting.forgotten").exists()
    assert seen() == set()


def test_a_key_that_is_removed_is_an_error(as_application, guest):
    with as_application():
        sql("DELETE FROM eventlogs_subjectkey")

    with pytest.raises(KeyUnavailable):
        Guest.logs.reduce(guest.log_id)


def test_a_log_that_is_hidden_from_forget_has_no_values_all_the_same(as_application, guest):
    with as_application():
        sql("DELETE FROM eventlogs_subjectlog")

    done = forget(ADA, by="grace")

    assert done.logs == 0  # copies of its values are not looked for
    assert Guest.logs.reduce(guest.log_id).aggregate.name == "erased"


def test_a_key_of_a_request_that_is_removed_makes_a_retry_a_second_append(
    as_application, log, seen
):
    """The role may remove keys, because ``prune`` does so."""
    with as_application():
        first = Account.logs.append(log, Deposited(amount=1), idempotency_key="k")
        sql("DELETE FROM eventlogs_idempotencykey")
        second = Account.logs.append(first, Deposited(amount=1), idempotency_key="k")

    assert second.version == first.version + 1
    assert seen() == set()


def test_a_unique_value_that_is_removed_is_seen(as_application, log, seen):
    """The role may remove unique values, because a new value replaces an old one."""
    with as_application():
        Member.logs.create(MemberJoined("ann@example.com"))
        assert seen() == set()
        sql("DELETE FROM eventlogs_uniquevalue")

    assert seen() == {"unique"}
