"""The event types that a database has are noted once, after their commit, and never wrongly."""

from __future__ import annotations

from contextlib import suppress

import pytest
from django.db import connection, transaction
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from eventlogs import ConcurrentAppend, LogId, LogManager, LogState
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import EventLog, StoredType
from eventlogs.operations.jsonl import export_pages_of_a_moment, footer, header, import_lines
from eventlogs.stores import AppendRequest, group_commit_for, stored_types
from eventlogs.stores.stored_types import StoredName
from tests.accounts import Account, Deposited, Opened, encoded

OPENED = StoredName("account", "account.opened", 1)
DEPOSITED = StoredName("account", "account.deposited", 1)


@pytest.fixture(autouse=True)
def _forgotten(transactional_db):
    stored_types.forget()
    yield
    stored_types.forget()


def noted(using: str = "default") -> set[StoredName]:
    return stored_types.stored_types(using)


def test_a_type_is_noted_after_its_first_append_and_asks_nothing_later(database_accounts):
    state = database_accounts.create(Opened("ada"))
    assert noted() == {OPENED}

    state = database_accounts.append(state, Deposited(1), Deposited(2))
    assert noted() == {OPENED, DEPOSITED}

    with CaptureQueriesContext(connection) as queries:
        database_accounts.append(state, Deposited(3))
    assert "storedtype" not in str(queries.captured_queries)
    assert StoredType.objects.count() == 2


def test_a_process_that_begins_reads_what_is_there_and_writes_nothing():
    Account.logs.create(Opened("ada"))
    stored_types.forget()

    with CaptureQueriesContext(connection) as queries:
        Account.logs.create(Opened("bob"))
    asked = [each["sql"] for each in queries if "storedtype" in each["sql"]]
    assert [each.split()[0] for each in asked] == ["SELECT"]


def test_a_rollback_leaves_no_note_and_the_next_commit_does():
    with suppress(ZeroDivisionError), transaction.atomic():
        Account.logs.create(Opened("ada"))
        raise ZeroDivisionError
    assert noted() == set()

    with transaction.atomic():
        Account.logs.create(Opened("ada"))
        assert noted() == set()
    assert noted() == {OPENED}


def test_a_savepoint_that_is_rolled_back_takes_only_its_own_notes():
    with transaction.atomic():
        with suppress(ZeroDivisionError), transaction.atomic():
            state = Account.logs.create(Opened("ada"))
            Account.logs.append(state, Deposited(1))
            raise ZeroDivisionError
        Account.logs.create(Opened("bob"))
    assert noted() == {OPENED}

    with transaction.atomic():
        state = Account.logs.create(Opened("eve"))
        with suppress(ZeroDivisionError), transaction.atomic():
            Account.logs.append(state, Deposited(1))
            raise ZeroDivisionError
        Account.logs.append(state, Deposited(1))
    assert noted() == {OPENED, DEPOSITED}


def test_many_appends_of_a_transaction_wait_with_one_hook():
    with transaction.atomic():
        state = Account.logs.create(Opened("ada"))
        for _ in range(50):
            state = Account.logs.append(state, Deposited(1))
        ours = [each for each in connection.run_on_commit if "note_stored_types" in repr(each)]
        assert len(ours) == 2


def test_a_refused_append_notes_nothing():
    state = Account.logs.create(Opened("ada"))

    with pytest.raises(ConcurrentAppend):
        Account.logs.append(state.log_id, Deposited(1), expected_version=7)

    assert noted() == {OPENED}


@pytest.mark.postgresql
@pytest.mark.fence
def test_appends_that_are_joined_are_noted():
    requests = [
        AppendRequest(LogId.new("account"), encoded(1), 0, None, "{}"),
        AppendRequest(LogId.new("parcel"), encoded(1), 0, None, "{}"),
    ]
    group_commit = group_commit_for("default")
    assert group_commit is not None

    answers = group_commit.append(requests)

    assert all(isinstance(each, LogState) for each in answers)
    assert noted() == {DEPOSITED, ("parcel", "account.deposited", 1)}


def test_imported_events_are_noted(second_database):
    state = LogManager(Account, using=second_database).create(Opened("ada"), Deposited(1))
    pages = export_pages_of_a_moment(second_database, logs=[state.log_id])
    lines = [line for page in pages for line in page.lines]
    file = [header(after=0), *lines, footer(events=2, until=0)]

    import_lines(EventLog.objects.store(), [each.encode() for each in file])

    assert noted() == noted(second_database) == {OPENED, DEPOSITED}


def test_each_database_has_its_own(second_database):
    Account.logs.create(Opened("ada"))
    assert noted(second_database) == set()

    LogManager(Account, using=second_database).create(Opened("ada"))
    assert noted(second_database) == {OPENED}


def test_each_schema_of_tenants_has_its_own(monkeypatch):
    Account.logs.create(Opened("ada"))
    known = dict(stored_types.known_types)
    monkeypatch.setattr(connection, "schema_name", "tenant", raising=False)
    StoredType.objects.all().delete()

    Account.logs.create(Opened("ada"))

    assert noted() == {OPENED}
    assert stored_types.known_types.keys() - known.keys() == {("default", "tenant", "account")}


def test_a_table_that_is_not_there_fails_no_append(caplog):
    with connection.schema_editor() as editor:
        editor.delete_model(StoredType)
    try:
        state = Account.logs.create(Opened("ada"))
        with CaptureQueriesContext(connection) as queries:
            Account.logs.append(state, Deposited(1))
        assert "storedtype" not in str(queries.captured_queries)  # not again for a minute
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(StoredType)

    assert Account.logs.version(state.log_id) == 2
    assert "could not be noted" in caplog.text


def test_processes_that_note_the_same_at_once_note_it_once(race):
    def append() -> None:
        stored_types.forget()
        Account.logs.create(Opened("ada"))

    assert race(*[append] * 6) == [None] * 6
    assert StoredType.objects.count() == 1


@pytest.mark.postgresql
def test_in_a_transaction_that_django_does_not_know_nothing_is_noted():
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        Account.logs.create(Opened("ada"))
        cursor.execute("ROLLBACK")
    assert noted() == set()

    Account.logs.create(Opened("ada"))
    assert noted() == {OPENED}


class TestWithoutACommit(TestCase):
    """A TestCase never commits: it sees no further statement and no further hook."""

    def test_nothing_is_added(self):
        stored_types.forget()

        with self.captureOnCommitCallbacks() as hooks, CaptureQueriesContext(connection) as queries:
            Account.logs.create(Opened("ada"))

        assert hooks == []
        assert "storedtype" not in str(queries.captured_queries)


def test_it_is_corrected_by_what_is_found():
    Account.logs.create(Opened("ada"))
    lost = StoredName("account", "account.lost", 1)

    stored_types.correct("default", found=[OPENED, DEPOSITED], gone=[])
    assert noted() == {OPENED, DEPOSITED}
    stored_types.correct("default", found=[OPENED, lost], gone=[DEPOSITED])
    assert noted() == {OPENED, lost}


class NotesBeforeTheCommit:
    """A broken version: it remembers what a transaction has stored before its end is known."""

    def __call__(self, connection, place, new) -> None:
        stored_types.known_types[place] = stored_types.known_types.get(place, set()) | new


def test_a_broken_version_that_remembers_before_the_commit_loses_a_type(monkeypatch):
    monkeypatch.setattr(stored_types, "_note_on_commit", NotesBeforeTheCommit())

    with pytest.raises(AssertionError):
        test_a_rollback_leaves_no_note_and_the_next_commit_does()


def test_a_request_of_a_store_is_noted_by_its_encoded_events(database_store):
    request = AppendRequest(
        LogId.new("account"), [EncodedEvent("account.x", 7, "{}")], 0, None, "{}"
    )

    database_store.append(request)

    assert noted() == {("account", "account.x", 7)}
