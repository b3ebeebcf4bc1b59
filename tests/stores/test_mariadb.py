"""The portable store on MariaDB: behaviour specific to MariaDB."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import product
from random import Random
from typing import Any
from uuid import UUID

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import QuerySet

from eventlogs import (
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    InvalidEvent,
    InvalidLogId,
    LogId,
    LogManager,
    LogNotFound,
    LogState,
    TransactionMustRetry,
)
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import EventLog
from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.verification import Scope
from eventlogs.stores import AppendRequest
from eventlogs.stores.mariadb import MAX_DEPTH, takes_uuid, too_deep
from eventlogs.stores.portable import PortableStore
from eventlogs.testing.contracts.stores import amounts, append, create, new_key, new_log
from tests.accounts import Account, Deposited


def nested(depth: int) -> str:
    """Return an object with arrays in it, together so deep, and a number in the innermost."""
    return '{"note":' + "[" * (depth - 1) + "1" + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (nested(MAX_DEPTH), None),
        (nested(MAX_DEPTH + 1), "$.note" + "[0]" * (MAX_DEPTH - 1)),
        (json.dumps({"a": [[]] * 100, "b": "[" * 100}), None),
    ],
)
def test_the_place_where_json_is_too_deep_is_named(text, path):
    assert too_deep(text, "$") == path


REFUSED = UUID("01234567-89ab-fabc-7123-456789abcdef")


@pytest.fixture
def store(transactional_db) -> PortableStore:
    return PortableStore("default")


@pytest.mark.mariadb
def test_a_uuid_that_mariadb_does_not_keep_is_refused_before_it_is_asked(store):
    random = Random(3)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE kept (id UUID)")
        for version, variant, _ in product(range(16), range(16), range(20)):
            bits = random.getrandbits(128) & ~(0xF << 76 | 0xF << 60)
            uuid = UUID(int=bits | version << 76 | variant << 60)
            if takes_uuid(uuid):
                cursor.execute("INSERT INTO kept VALUES (%s)", [str(uuid)])
        with pytest.raises(DatabaseError, match="Incorrect uuid value"):
            cursor.execute("INSERT INTO kept VALUES (%s)", [str(REFUSED)])

    with pytest.raises(InvalidLogId, match=r"LogId\.from_key") as caught:
        LogManager(Account).create(Deposited(1), log_id=LogId.from_uuid("account", REFUSED))
    assert isinstance(caught.value, ValueError)


@pytest.mark.mariadb
class TestDepth:
    def test_json_of_the_greatest_depth_is_stored(self, store):
        event = EncodedEvent("account.noted", 1, nested(MAX_DEPTH))

        state = store.append(AppendRequest(new_log(), [event], 0, None, nested(MAX_DEPTH)))

        (row,) = store.events(state.log_id, start=0, limit=1)
        assert json.loads(row.data) == json.loads(row.metadata) == json.loads(event.data)

    @pytest.mark.parametrize("where", ["data", "metadata"])
    def test_deeper_json_is_refused_and_the_transaction_stays_usable(self, store, where):
        log_id, deep = new_log(), nested(MAX_DEPTH + 1)
        data, metadata = (deep, "{}") if where == "data" else ("{}", deep)

        with transaction.atomic():
            with pytest.raises(InvalidEvent, match="nested 31 deep") as caught:
                store.append(
                    AppendRequest(
                        log_id, [EncodedEvent("account.noted", 1, data)], 0, None, metadata
                    )
                )
            append(store, log_id, 1, expected=0)

        assert caught.value.path.startswith("$.note[0]" if where == "data" else "$metadata.note")
        assert amounts(store, log_id) == [1]


def test_a_batch_of_large_events_is_stored_in_statements_that_the_server_takes(store):
    """MariaDB takes 16 MiB at once; 100 events of 262,144 bytes are more."""
    text = json.dumps({"note": '"' * 100_000})
    events = [EncodedEvent("account.noted", 1, text)] * 100

    state = store.append(AppendRequest(new_log(), events, 0, None, "{}"))

    assert store.version(state.log_id) == 100
    assert {len(row.data) for row in store.events(state.log_id, start=0, limit=100)} <= {
        len(text),
        len(text) - 1,  # SQLite's and MariaDB's own way of writing it
    }


@pytest.mark.mariadb
class TestSnapshots:
    """Inside of a REPEATABLE READ transaction whose snapshot is older than others' appends."""

    @pytest.fixture(params=["OFF", "ON"], ids=["as in 10.11", "as since 11.6.2"])
    def is_strict(self, request, store) -> Iterator[bool]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@innodb_snapshot_isolation")
            (before,) = cursor.fetchone()
            cursor.execute(f"SET innodb_snapshot_isolation = {request.param}")
        yield request.param == "ON"
        with connection.cursor() as cursor:
            cursor.execute(f"SET innodb_snapshot_isolation = {before}")

    @pytest.fixture
    def on_a_snapshot(self, store, elsewhere) -> Callable[..., None]:
        """Make a call on a snapshot that was taken before another one, elsewhere."""

        def run(first: Callable[[], object], then: Callable[[], object]) -> None:
            with transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                store.version(new_log())
                elsewhere(first)
                then()

        return run

    @pytest.mark.parametrize("expected", [None, 1, 2], ids=["any", "stale", "current"])
    def test_a_key_that_was_taken_after_the_snapshot_is_a_replay(
        self, store, on_a_snapshot, is_strict, expected
    ):
        log_id, key = create(store, 1).log_id, new_key()
        winner: list[Any] = []

        def retry() -> None:
            if is_strict:
                with pytest.raises(TransactionMustRetry):
                    append(store, log_id, 2, expected=expected, key=key)
                return
            with pytest.raises(IdempotentReplay) as caught:
                append(store, log_id, 2, expected=expected, key=key)
            assert caught.value.state == winner[0]

        on_a_snapshot(
            lambda: winner.append(append(store, log_id, 2, expected=1, key=key)),
            retry,
        )

        assert amounts(store, log_id) == [1, 2]

    def test_a_create_whose_key_was_taken_after_the_snapshot_is_a_replay(
        self, store, on_a_snapshot, is_strict
    ):
        key = new_key()
        winner: list[Any] = []

        def retry() -> None:
            with pytest.raises(TransactionMustRetry if is_strict else IdempotentReplay) as caught:
                append(store, new_log(), 2, expected=0, key=key)
            if not is_strict:
                assert caught.value.state == winner[0]  # type: ignore[attr-defined]

        on_a_snapshot(lambda: winner.append(create(store, 2, key=key)), retry)

    def test_a_key_that_another_log_took_after_the_snapshot_is_reused(
        self, store, on_a_snapshot, is_strict
    ):
        one, other, key = create(store, 1).log_id, create(store, 1).log_id, new_key()

        def reuse() -> None:
            error = TransactionMustRetry if is_strict else IdempotencyKeyReused
            with pytest.raises(error):
                append(store, other, 2, expected=1, key=key)

        on_a_snapshot(lambda: append(store, one, 2, expected=1, key=key), reuse)

        assert amounts(store, other) == [1]

    def test_a_conflict_reports_the_current_version_and_not_that_of_the_snapshot(
        self, store, on_a_snapshot, is_strict
    ):
        log_id = create(store, 1).log_id

        def stale() -> None:
            with pytest.raises(TransactionMustRetry if is_strict else ConcurrentAppend) as caught:
                append(store, log_id, 3, expected=1)
            if not is_strict:
                assert caught.value.actual_version == 2  # type: ignore[attr-defined]

        on_a_snapshot(lambda: append(store, log_id, 2, expected=1), stale)

        assert amounts(store, log_id) == [1, 2]

    def test_a_log_that_was_created_after_the_snapshot_is_found(
        self, store, on_a_snapshot, is_strict
    ):
        log_id = new_log()

        def late() -> None:
            error = TransactionMustRetry if is_strict else ConcurrentAppend
            with pytest.raises(error):
                append(store, log_id, 3, expected=0)

        on_a_snapshot(lambda: append(store, log_id, 2, expected=0), late)

        assert amounts(store, log_id) == [2]

    def test_an_append_goes_behind_events_committed_after_the_snapshot(
        self, store, on_a_snapshot, is_strict
    ):
        log_id = create(store, 1).log_id

        def late() -> None:
            if is_strict:
                with pytest.raises(TransactionMustRetry):
                    append(store, log_id, 3, expected=None)
            else:
                assert append(store, log_id, 3, expected=None).version == 3

        on_a_snapshot(lambda: append(store, log_id, 2, expected=1), late)

        assert amounts(store, log_id) == ([1, 2] if is_strict else [1, 2, 3])

    @pytest.mark.parametrize("is_there", [True, False], ids=["a log", "a log of afterwards"])
    def test_an_append_to_a_chained_log_does_not_take_its_time_from_the_snapshot(
        self, store, on_a_snapshot, is_strict, settings, is_there
    ):
        settings.EVENTLOGS = {"CHAIN": True}
        log_id = create(store, 1).log_id if is_there else new_log()
        logs: QuerySet[EventLog] = QuerySet(EventLog).filter(pk=log_id.uuid)
        later = datetime(2200, 1, 1, tzinfo=UTC)  # by a clock that was wrong

        def first() -> None:
            append(store, log_id, 2, expected=None if is_there else 0)
            logs.update(updated_at=later)

        def late() -> None:
            if is_strict:
                with pytest.raises(TransactionMustRetry):
                    append(store, log_id, 3, expected=None)
            else:
                append(store, log_id, 3, expected=None)

        on_a_snapshot(first, late)

        assert amounts(store, log_id)[-1] == (2 if is_strict else 3)
        assert logs.get().updated_at == later
        assert list(ChainVerifier().verify(Scope("default"))) == []

    def test_refusals_of_logs_that_do_not_exist_stay(self, store, on_a_snapshot, is_strict):
        def refused() -> None:
            with pytest.raises(LogNotFound):
                append(store, new_log(), 3, expected=None, key=new_key())

        on_a_snapshot(lambda: create(store, 1), refused)

    def test_execute_finds_a_key_that_its_snapshot_does_not_show(
        self, store, on_a_snapshot, is_strict
    ):
        """The look-up reads from the snapshot; execute must not repeat it forever."""
        log_id, key, asked = Account.logs.create(Deposited(1)).log_id, new_key(), []

        def deposit(_: Account) -> Deposited:
            asked.append(1)
            assert len(asked) < 10
            return Deposited(2)

        def execute() -> LogState:
            return Account.logs.execute(log_id, deposit, idempotency_key=key)

        def late() -> None:
            with pytest.raises(TransactionMustRetry):
                execute()
            assert transaction.get_rollback()

        first: list[LogState] = []
        on_a_snapshot(lambda: first.append(execute()), late)

        assert [execute()] == first
        assert Account.logs.version(log_id) == 2

    def test_a_retry_whose_events_the_snapshot_does_not_show_is_no_reused_key(
        self, store, on_a_snapshot, is_strict, settings
    ):
        log_id, key = Account.logs.create(Deposited(1)).log_id, new_key()

        def deposit() -> LogState:
            return Account.logs.append(
                log_id, Deposited(2), expected_version=1, idempotency_key=key
            )

        def retry() -> None:
            settings.SECRET_KEY = "another, so that fingerprints differ"
            with pytest.raises(TransactionMustRetry):
                deposit()

        on_a_snapshot(deposit, retry)

        with pytest.raises(IdempotentReplay):
            deposit()
