"""Deliberately broken stores: the contract detects each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, product
from typing import Any

import pytest
from django.db import connection, transaction
from msgspec.structs import replace

from eventlogs import ConcurrentAppend, EventLogError, LogAlreadyExists, LogId, LogState
from eventlogs.events.unique import UniqueValue
from eventlogs.stores import AppendRequest, BaseStore, Claim
from eventlogs.stores.base import rules_refusal
from eventlogs.stores.portable import PortableStore
from eventlogs.testing import MemoryStore
from eventlogs.testing.contracts.rows import RowContract
from eventlogs.testing.contracts.stores import StoreContract
from eventlogs.testing.contracts.transactions import TransactionContract
from eventlogs.values import StoredEvent
from tests.contracts.rules import RulesContract


class WithoutVersionCheck(MemoryStore):
    """Appends at any expected version."""

    def append(self, request: AppendRequest) -> LogState:
        if request.expected_version:
            request = request._replace(expected_version=None)
        return super().append(request)


class CreatesTwice(MemoryStore):
    """Treats a create of an existing log as an append."""

    def append(self, request: AppendRequest) -> LogState:
        if request.expected_version == 0 and self.version(request.log_id):
            request = request._replace(expected_version=None)
        return super().append(request)


class VersionBeforeKey(MemoryStore):
    """Calls the retry of a lost acknowledgement a conflict."""

    def append(self, request: AppendRequest) -> LogState:
        actual, expected = self.version(request.log_id), request.expected_version
        if expected and actual and expected != actual:
            raise ConcurrentAppend(request.log_id, expected_version=expected, actual_version=actual)
        return super().append(request)


class ForgetsKeys(MemoryStore):
    """Appends each retry once more."""

    def append(self, request: AppendRequest) -> LogState:
        return super().append(request._replace(idempotency_key=None))


class KeysForAllLogTypes(MemoryStore):
    """Has one name space for the keys of all log types."""

    def append(self, request: AppendRequest) -> LogState:
        state = super().append(request)
        if request.idempotency_key is not None:
            claim = self._claims[request.log_id.log_type, request.idempotency_key]
            for log_type in ("account", "parcel"):
                self._claims[log_type, request.idempotency_key] = claim
        return state


class KeysCutShort(MemoryStore):
    """Ignores space at the end of keys, as a varchar(n) of PostgreSQL does in casts."""

    def append(self, request: AppendRequest) -> LogState:
        key = request.idempotency_key
        return super().append(request._replace(idempotency_key=key and key.rstrip()))


class BelievesEveryKey(MemoryStore):
    """Replays a key without comparing the events."""

    def append(self, request: AppendRequest) -> LogState:
        claim = self.claim(request.log_id.log_type, request.idempotency_key or "")
        if claim is not None and request.idempotency_key is not None:
            raise claim.replay(request.idempotency_key)
        return super().append(request)


class ClaimsKeyOfRefusedAppend(MemoryStore):
    """Keeps the key of an append that stored nothing."""

    def append(self, request: AppendRequest) -> LogState:
        try:
            return super().append(request)
        except ConcurrentAppend:
            key = (request.log_id.log_type, request.idempotency_key or "")
            self._claims[key] = Claim(request.log_id, 0, 1, b"", 1)
            raise


class ReplaysTheLatestState(MemoryStore):
    """Answers a replay with the current state, not with that of the original append."""

    def append(self, request: AppendRequest) -> LogState:
        key = (request.log_id.log_type, request.idempotency_key or "")
        if claim := self._claims.get(key):
            version = self.version(claim.log_id)
            self._claims[key] = Claim(
                claim.log_id,
                claim.first_index,
                version - claim.first_index,
                claim.fingerprint,
                self._position,
            )
        return super().append(request)


class StoresHalfABatch(MemoryStore):
    """Stores the first event of a batch before it checks the version."""

    def append(self, request: AppendRequest) -> LogState:
        try:
            return super().append(request)
        except ConcurrentAppend:
            if len(request.events) > 1:
                half = request._replace(
                    events=request.events[:1], expected_version=None, idempotency_key=None
                )
                super().append(half)
            raise


class LosesTheEndOfABatch(MemoryStore):
    """Stores at most 500 events of a batch."""

    def append(self, request: AppendRequest) -> LogState:
        return super().append(request._replace(events=request.events[:500]))


class LeavesAHole(MemoryStore):
    """Skips the index of a refused append."""

    def append(self, request: AppendRequest) -> LogState:
        try:
            return super().append(request)
        except ConcurrentAppend:
            if log := self._logs.get(request.log_id.uuid):
                last = log.events[-1]
                log.events[-1] = replace(last, index=last.index + 1)
            raise


class CreatesOnAppend(MemoryStore):
    """Creates a log that an append does not find."""

    def append(self, request: AppendRequest) -> LogState:
        if request.expected_version is None and not self.version(request.log_id):
            request = request._replace(expected_version=0)
        return super().append(request)


class IgnoresLogTypes(MemoryStore):
    """Finds the log of another type with the same UUID."""

    def _events(self, log_id: LogId) -> list[StoredEvent]:
        log = self._logs.get(log_id.uuid)
        return log.events if log else []


class RunsBackwardsInTime(MemoryStore):
    """Uses the time of a clock that is set back."""

    def events(self, *args: Any, **kwargs: Any) -> Sequence[StoredEvent]:
        rows = super().events(*args, **kwargs)
        return [
            replace(row, recorded_at=row.recorded_at.replace(year=2100 - row.index)) for row in rows
        ]


class SkipsAtPageBorders(MemoryStore):
    """Streams pages with a gap between them."""

    def stream(self, log_id: LogId, *, start: int = 0, page: int = 2_000) -> Iterator[StoredEvent]:
        for at, row in enumerate(super().stream(log_id, start=start, page=page)):
            if at != page:
                yield row


class ReadsBackwardsTheWrongWay(MemoryStore):
    """Ignores ``reverse``."""

    def events(
        self, log_id: LogId, *, start: int, limit: int, reverse: bool = False
    ) -> Sequence[StoredEvent]:
        return super().events(log_id, start=start, limit=limit)


class AnswersAnOffPosition(MemoryStore):
    """Returns the position of another event."""

    def append(self, request: AppendRequest) -> LogState:
        state = super().append(request)
        return LogState(state.log_id, state.version, state.position + 1)


class IgnoresThePosition(MemoryStore):
    """Appends to a log of the right length with any history."""

    def append(self, request: AppendRequest) -> LogState:
        return super().append(request._replace(expected_position=None))


class LosesMetadata(MemoryStore):
    """Stores no metadata."""

    def append(self, request: AppendRequest) -> LogState:
        return super().append(request._replace(metadata="{}"))


class IgnoresRules(MemoryStore):
    """Appends whatever other logs are like."""

    def append(self, request: AppendRequest) -> LogState:
        return super().append(request._replace(rules=None))


class KeepsOldValues(MemoryStore):
    """Claims a log's new value, and does not release its old one."""

    def _claim_value(self, log_id: LogId, value: UniqueValue) -> None:
        self._values.pop((log_id, value.scope), None)
        super()._claim_value(log_id, value)


class ClaimsForRefusedAppends(MemoryStore):
    """Claims the values of an append before it knows whether that is refused."""

    def append(self, request: AppendRequest) -> LogState:
        for value in request.rules.values if request.rules is not None else ():
            self._claim_value(request.log_id, value)
        return super().append(request)


class LooksAtRulesBeforeTheKey(MemoryStore):
    """Refuses a retry because of what other logs are like by now."""

    def append(self, request: AppendRequest) -> LogState:
        if request.rules is not None:
            states = self._states(request.rules)
            refused = rules_refusal(request.rules, request.log_id, states, self._owners)
            if refused is not None:
                raise refused
        return super().append(request)


BROKEN_VERSIONS = [
    variant
    for variant in list(globals().values())
    if isinstance(variant, type) and issubclass(variant, MemoryStore) and variant is not MemoryStore
]

Check = Callable[[BaseStore], None]


def named(names: str | tuple[str, ...], values: Any) -> dict[str, Any]:
    """Return the arguments of a parametrize mark, which has one name or several."""
    return {names: values} if isinstance(names, str) else dict(zip(names, values, strict=True))


def checks(contract: type, *, only: str = "test_") -> Iterator[Check]:
    """Yield every test of a contract, with every combination of its parameters."""
    for name, function in inspect.getmembers(contract, inspect.isfunction):
        if not name.startswith(only):
            continue
        axes = [
            [named(mark.args[0], value) for value in mark.args[1]]
            for mark in getattr(function, "pytestmark", ())
        ]
        for parts in product(*axes):
            arguments = {name: value for part in parts for name, value in part.items()}

            def check(store: BaseStore, name: str = name, arguments: Any = arguments) -> None:
                getattr(contract(), name)(store, **arguments)

            yield check


def found_out(store: Callable[[], BaseStore]) -> int:
    """Return how many checks of the contract a store does not pass."""
    failed = 0
    for check in chain(checks(StoreContract), checks(RulesContract)):
        try:
            check(store())
        except (Exception, pytest.fail.Exception):
            failed += 1
    return failed


def test_the_whole_store_passes_every_check():
    assert len(list(checks(StoreContract))) > 50
    assert found_out(MemoryStore) == 0


@pytest.mark.parametrize("variant", BROKEN_VERSIONS)
def test_a_broken_store_is_found_out(variant):
    assert found_out(variant) > 0


# Stores in a database that do not keep to the caller's transaction.


class TakesSavepoints(PortableStore):
    """Opens a block of its own inside of the caller's."""

    def append(self, request: AppendRequest) -> LogState:
        with transaction.atomic():
            return super().append(request)


class LeavesTheTransactionBroken(PortableStore):
    """Lets a refusal roll the caller's transaction back."""

    def append(self, request: AppendRequest) -> LogState:
        try:
            return super().append(request)
        except EventLogError:
            if connection.in_atomic_block:
                connection.set_rollback(True)
            raise


class TriesAndFails(PortableStore):
    """Detects an existing log by an error of the database."""

    def append(self, request: AppendRequest) -> LogState:
        if request.expected_version == 0:
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)"
                    " SELECT id, log_type, version, created_at, updated_at"
                    " FROM eventlogs_eventlog"
                )
        return super().append(request)


class CommitsAtOnce(PortableStore):
    """Appends in a transaction that is not the caller's."""

    def append(self, request: AppendRequest) -> LogState:
        state = super().append(request)
        if connection.in_atomic_block:
            connection.connection.commit()
        return state


class KeepsTheKeyOfARefusedCreate(PortableStore):
    """Claims the key first, and does not release it."""

    def append(self, request: AppendRequest) -> LogState:
        try:
            return super().append(request)
        except LogAlreadyExists:
            if request.idempotency_key is not None:
                super().append(request._replace(log_id=LogId.new("account")))
            raise


class FilesUnderAnotherType(PortableStore):
    """Gives an event another type than its log has."""

    def _insert_all(
        self, events: Sequence[StoredEvent], digests: Iterable[bytes | None]
    ) -> int | None:
        moved = [
            replace(each, log_id=LogId.stored("somebodys", each.log_id.uuid)) for each in events
        ]
        return super()._insert_all(moved, digests)


@pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])
@pytest.mark.parametrize(
    ("variant", "caught_by"),
    [
        (FilesUnderAnotherType, "test_every_event_has_the_type_of_its_log"),
        (TakesSavepoints, "test_appends_take_no_savepoint"),
        (TakesSavepoints, "test_a_refusal_takes_no_savepoint_and_raises_nothing_in_the_database"),
        (LeavesTheTransactionBroken, "test_a_refusal_leaves_the_transaction_usable"),
        (TriesAndFails, "test_a_refusal_takes_no_savepoint_and_raises_nothing_in_the_database"),
        (CommitsAtOnce, "test_a_rollback_leaves_nothing"),
        (KeepsTheKeyOfARefusedCreate, "test_a_refusal_stores_nothing"),
    ],
)
def test_a_store_that_breaks_rows_or_the_callers_transaction_is_found_out(variant, caught_by):
    found = []
    contracts = [TransactionContract, RowContract]
    for check in chain.from_iterable(checks(each, only=caught_by) for each in contracts):
        try:
            check(variant("default"))
        except (Exception, pytest.fail.Exception) as error:
            found.append(error)

    assert found
