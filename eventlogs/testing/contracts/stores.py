"""The contract of stores, which take encoded events and return rows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from eventlogs.events.codec import EncodedEvent
from eventlogs.exceptions import (
    ConcurrentAppend,
    IdempotencyKeyReused,
    IdempotentReplay,
    LogAlreadyExists,
    LogNotFound,
)
from eventlogs.ids import LogId
from eventlogs.stores import AppendRequest, BaseStore
from eventlogs.values import LogState


def encoded(*amounts: int) -> list[EncodedEvent]:
    """Return deposits as a store takes them."""
    return [EncodedEvent("account.deposited", 1, f'{{"amount":{amount}}}') for amount in amounts]


def new_log() -> LogId:
    return LogId.new("account")


def new_key() -> str:
    """Return a key that no other test takes."""
    return f"key {uuid4()}"


def append(
    store: BaseStore,
    log_id: LogId,
    *amounts: int,
    expected: int | None,
    position: int | None = None,
    key: str | None = None,
    metadata: str = "{}",
) -> LogState:
    """Append deposits of these amounts."""
    return store.append(AppendRequest(log_id, encoded(*amounts), expected, key, metadata, position))


def create(store: BaseStore, *amounts: int, key: str | None = None) -> LogState:
    """Create a log of deposits of these amounts."""
    return append(store, new_log(), *amounts, expected=0, key=key)


def amounts(store: BaseStore, log_id: LogId) -> list[int]:
    """Return the amounts in a log; its indexes have to be 0, 1, 2 …."""
    rows = store.events(log_id, start=0, limit=1_000)
    assert [row.index for row in rows] == list(range(len(rows)))
    assert store.version(log_id) == len(rows)
    return [json.loads(row.data)["amount"] for row in rows]


class StoreContract:
    """Subclass it with a fixture ``store``: a BaseStore, which may hold other logs."""

    # Versions

    def test_a_log_that_does_not_exist_is_at_version_0_and_empty(self, store: BaseStore) -> None:
        log_id = new_log()

        assert store.version(log_id) == 0
        assert list(store.events(log_id, start=0, limit=10)) == []
        assert list(store.events(log_id, start=10, limit=10, reverse=True)) == []
        assert list(store.stream(log_id)) == []
        assert list(store.last(log_id, limit=1)) == []

    def test_an_append_returns_the_new_state(self, store: BaseStore) -> None:
        log_id = new_log()

        created = append(store, log_id, 1, 2, expected=0)
        appended = append(store, log_id, 3, expected=2)

        _, second, third = (row.position for row in store.events(log_id, start=0, limit=10))
        assert created == LogState(log_id, 2, second)
        assert appended == LogState(log_id, 3, third)

    def test_positions_increase_within_a_log(self, store: BaseStore) -> None:
        log_id = create(store, 1, 2).log_id
        append(store, log_id, *range(20), expected=2)
        append(store, log_id, 3, expected=22)

        positions = [row.position for row in store.events(log_id, start=0, limit=100)]

        assert positions == sorted(set(positions))
        assert positions[0] > 0

    def test_creating_a_log_that_exists_is_refused(self, store: BaseStore) -> None:
        log_id = create(store, 1).log_id

        with pytest.raises(LogAlreadyExists) as caught:
            append(store, log_id, 2, expected=0)

        assert (caught.value.log_id, caught.value.expected_version) == (log_id, 0)
        assert caught.value.actual_version == 1
        assert amounts(store, log_id) == [1]

    @pytest.mark.parametrize("expected", [1, 3, 100])
    def test_an_append_at_another_version_is_refused(self, store: BaseStore, expected: int) -> None:
        log_id = create(store, 1, 2).log_id

        with pytest.raises(ConcurrentAppend) as caught:
            append(store, log_id, 3, 4, expected=expected)

        assert caught.value.log_id == log_id
        assert (caught.value.expected_version, caught.value.actual_version) == (expected, 2)
        assert amounts(store, log_id) == [1, 2]

    @pytest.mark.parametrize("amounts_", [(3,), (3, 4)])
    @pytest.mark.parametrize("key", [None, "any"])
    def test_an_append_at_the_expected_position_is_stored(
        self, store: BaseStore, amounts_: tuple[int, ...], key: str | None
    ) -> None:
        state = create(store, 1, 2)
        create(store, 5)

        appended = append(
            store,
            state.log_id,
            *amounts_,
            expected=2,
            position=state.position,
            key=key and new_key(),
        )

        assert appended.version == 2 + len(amounts_)
        assert amounts(store, state.log_id) == [1, 2, *amounts_]

    @pytest.mark.parametrize("amounts_", [(3,), (3, 4)])
    @pytest.mark.parametrize("key", [None, "any"])
    @pytest.mark.parametrize("off", [-1, 1, 1_000])
    def test_an_append_at_another_position_is_refused(
        self, store: BaseStore, amounts_: tuple[int, ...], key: str | None, off: int
    ) -> None:
        """The log has as many events as expected, but not the expected ones."""
        state = create(store, 1, 2)
        key = key and new_key()

        with pytest.raises(ConcurrentAppend, match="its history is another one") as caught:
            append(
                store,
                state.log_id,
                *amounts_,
                expected=2,
                position=state.position + off,
                key=key,
            )

        assert caught.value.log_id == state.log_id
        assert (caught.value.expected_version, caught.value.actual_version) == (2, 2)
        assert caught.value.expected_position == state.position + off
        assert caught.value.actual_position == state.position
        assert amounts(store, state.log_id) == [1, 2]
        assert key is None or store.claim("account", key) is None

    def test_the_version_is_checked_before_the_position(self, store: BaseStore) -> None:
        state = create(store, 1, 2)

        with pytest.raises(ConcurrentAppend) as caught:
            append(store, state.log_id, 3, expected=1, position=state.position - 1)

        assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
        assert (caught.value.expected_position, caught.value.actual_position) == (None, None)

    def test_an_append_without_an_expected_version_goes_to_the_end(self, store: BaseStore) -> None:
        log_id = create(store, 1).log_id

        append(store, log_id, 2, expected=None)
        state = append(store, log_id, 3, 4, expected=None)

        assert state.version == 4
        assert amounts(store, log_id) == [1, 2, 3, 4]

    @pytest.mark.parametrize("expected", [None, 1])
    @pytest.mark.parametrize("key", [None, "any"])
    def test_an_append_to_a_log_that_does_not_exist_is_refused(
        self, store: BaseStore, expected: int | None, key: str | None
    ) -> None:
        log_id = new_log()
        key = key and new_key()

        with pytest.raises(LogNotFound) as caught:
            append(store, log_id, 1, expected=expected, key=key)

        assert caught.value.log_id == log_id
        assert store.version(log_id) == 0
        assert key is None or store.claim("account", key) is None

    def test_a_log_is_not_locked_after_a_refused_append(self, store: BaseStore) -> None:
        log_id = new_log()
        with pytest.raises(LogNotFound):
            append(store, log_id, 1, expected=None)

        append(store, log_id, 2, expected=0)

        assert amounts(store, log_id) == [2]

    # All or none

    def test_all_events_of_an_append_are_stored_in_order(self, store: BaseStore) -> None:
        log_id = new_log()

        append(store, log_id, *range(700), expected=0)
        append(store, log_id, *range(700, 1_000), expected=700)

        assert amounts(store, log_id) == list(range(1_000))

    def test_a_batch_at_another_version_stores_nothing(self, store: BaseStore) -> None:
        log_id = create(store, 1).log_id

        with pytest.raises(ConcurrentAppend):
            append(store, log_id, *range(10), expected=2, key=new_key())

        assert amounts(store, log_id) == [1]

    # Reading

    def test_an_event_is_read_as_it_was_stored(self, store: BaseStore) -> None:
        log_id, key = new_log(), new_key()
        event = EncodedEvent("account.noted", 7, '{"note":{"b":[1,2.5,null,true],"a":"\\"é\\n☃"}}')
        before = datetime.now(UTC)

        store.append(AppendRequest(log_id, [event, event], 0, key, '{"by":["till",7]}'))

        rows = store.events(log_id, start=0, limit=10)
        for index, row in enumerate(rows):
            assert (row.index, row.type, row.schema_version, row.idempotency_key) == (
                index,
                event.type,
                7,
                key,
            )
            assert json.loads(row.data) == json.loads(event.data)
            assert json.loads(row.metadata) == {"by": ["till", 7]}
            assert isinstance(row.data, str)
            assert isinstance(row.metadata, str)
            assert abs(row.recorded_at - before) < timedelta(minutes=1)
        assert len({row.recorded_at for row in rows}) == 1

    def test_recorded_at_does_not_run_backwards_within_a_log(self, store: BaseStore) -> None:
        log_id = create(store, 1).log_id
        for version in range(1, 6):
            append(store, log_id, 1, expected=version)

        times = [row.recorded_at for row in store.events(log_id, start=0, limit=10)]

        assert times == sorted(times)
        assert all(time.utcoffset() == timedelta() for time in times)

    def test_pages_are_read_from_any_index_both_ways(self, store: BaseStore) -> None:
        log_id = create(store, *range(10)).log_id

        def indexes(**page: Any) -> list[int]:
            return [row.index for row in store.events(log_id, **page)]

        assert indexes(start=0, limit=3) == [0, 1, 2]
        assert indexes(start=7, limit=3) == [7, 8, 9]
        assert indexes(start=8, limit=5) == [8, 9]
        assert indexes(start=10, limit=5) == []
        assert indexes(start=9, limit=3, reverse=True) == [9, 8, 7]
        assert indexes(start=2, limit=9, reverse=True) == [2, 1, 0]
        assert indexes(start=2**31 - 1, limit=2, reverse=True) == [9, 8]
        assert [row.index for row in store.last(log_id, limit=2)] == [9, 8]

    @pytest.mark.parametrize("page", [1, 3, 5, 10, 11])
    def test_a_stream_continues_across_its_pages(self, store: BaseStore, page: int) -> None:
        log_id = create(store, *range(10)).log_id

        assert [row.index for row in store.stream(log_id, page=page)] == list(range(10))
        assert [row.index for row in store.stream(log_id, start=4, page=page)] == list(range(4, 10))

    # Log types

    def test_a_log_of_another_type_with_the_same_uuid_is_not_found(self, store: BaseStore) -> None:
        log_id = create(store, 1).log_id
        stranger = LogId("parcel", log_id.uuid)

        with pytest.raises(LogNotFound):
            append(store, stranger, 2, expected=None)
        with pytest.raises(LogNotFound):
            append(store, stranger, 2, expected=1, key=new_key())

        assert store.version(stranger) == 0
        assert list(store.events(stranger, start=0, limit=10)) == []
        assert list(store.last(stranger, limit=10)) == []
        assert amounts(store, log_id) == [1]

    @pytest.mark.parametrize("key", [None, "any"])
    def test_a_uuid_holds_one_log_of_one_type(self, store: BaseStore, key: str | None) -> None:
        log_id = create(store, 1, 2).log_id
        stranger = LogId("parcel", log_id.uuid)
        key = key and new_key()

        with pytest.raises(LogAlreadyExists) as caught:
            append(store, stranger, 3, expected=0, key=key)

        assert (caught.value.log_id, caught.value.actual_version) == (stranger, 2)
        assert key is None or store.claim("parcel", key) is None
        assert store.version(stranger) == 0
        assert amounts(store, log_id) == [1, 2]

    # Idempotency keys

    def test_a_key_is_found_with_the_append_that_took_it(self, store: BaseStore) -> None:
        key = new_key()
        log_id = create(store, 1).log_id
        assert store.claim("account", key) is None

        state = append(store, log_id, 2, 3, expected=1, key=key)

        claim = store.claim("account", key)
        assert claim is not None
        assert (claim.log_id, claim.first_index, claim.count) == (log_id, 1, 2)
        assert claim.state == state

    def test_the_key_is_checked_before_the_version(self, store: BaseStore) -> None:
        key = new_key()
        log_id = create(store, 1).log_id
        state = append(store, log_id, 2, 3, expected=1, key=key)
        append(store, log_id, 4, expected=3)

        with pytest.raises(IdempotentReplay) as caught:
            append(store, log_id, 2, 3, expected=1, key=key)

        assert caught.value.idempotency_key == key
        assert (caught.value.log_id, caught.value.index) == (log_id, 1)
        assert caught.value.state == state
        assert amounts(store, log_id) == [1, 2, 3, 4]

    def test_the_key_is_checked_before_the_position(self, store: BaseStore) -> None:
        key = new_key()
        created = create(store, 1)
        state = append(store, created.log_id, 2, expected=1, position=created.position, key=key)

        for position in (created.position, state.position, 7):
            with pytest.raises(IdempotentReplay) as caught:
                append(store, created.log_id, 2, expected=2, position=position, key=key)
            assert caught.value.state == state

    @pytest.mark.parametrize("expected", [None, 2, 3, 99])
    def test_a_repeated_key_is_a_replay_at_any_expected_version(
        self, store: BaseStore, expected: int | None
    ) -> None:
        key = new_key()
        state = create(store, 1)
        appended = append(store, state.log_id, 2, expected=1, key=key)

        with pytest.raises(IdempotentReplay) as caught:
            append(store, state.log_id, 2, expected=expected, key=key)

        assert caught.value.state == appended
        assert amounts(store, state.log_id) == [1, 2]

    def test_a_repeated_create_with_another_new_id_is_a_replay(self, store: BaseStore) -> None:
        key = new_key()
        created = create(store, 1, key=key)
        another = new_log()

        with pytest.raises(IdempotentReplay) as caught:
            append(store, another, 1, expected=0, key=key)

        assert (caught.value.log_id, caught.value.index) == (created.log_id, 0)
        assert caught.value.state == created
        assert store.version(another) == 0

    def test_a_repeated_create_with_the_same_id_is_a_replay(self, store: BaseStore) -> None:
        key = new_key()
        created = create(store, 1, key=key)

        with pytest.raises(IdempotentReplay) as caught:
            append(store, created.log_id, 1, expected=0, key=key)

        assert caught.value.state == created
        assert amounts(store, created.log_id) == [1]

    def test_an_id_is_free_after_a_replayed_create_named_it(self, store: BaseStore) -> None:
        key, another = new_key(), new_log()
        create(store, 1, key=key)
        with pytest.raises(IdempotentReplay):
            append(store, another, 1, expected=0, key=key)

        append(store, another, 2, expected=0)

        assert amounts(store, another) == [2]

    @pytest.mark.parametrize("others", [(3,), (2, 2), (2, 3)])
    @pytest.mark.parametrize("expected", [0, 1, 2, None])
    def test_a_key_with_other_events_is_refused(
        self,
        store: BaseStore,
        others: tuple[int, ...],
        expected: int | None,
    ) -> None:
        key = new_key()
        log_id = create(store, 1).log_id
        append(store, log_id, 2, expected=1, key=key)
        target = new_log() if expected == 0 else log_id

        with pytest.raises(IdempotencyKeyReused) as caught:
            append(store, target, *others, expected=expected, key=key)

        assert caught.value.idempotency_key == key
        assert (caught.value.log_id, caught.value.index) == (log_id, 1)
        assert amounts(store, log_id) == [1, 2]
        assert target == log_id or store.version(target) == 0

    def test_a_key_with_other_types_of_events_is_refused(self, store: BaseStore) -> None:
        key = new_key()
        log_id = create(store, 1).log_id
        append(store, log_id, 2, expected=1, key=key)
        other = EncodedEvent("account.withdrawn", 1, '{"amount":2}')

        with pytest.raises(IdempotencyKeyReused):
            store.append(AppendRequest(log_id, [other], 2, key, "{}"))

        assert amounts(store, log_id) == [1, 2]

    def test_a_key_of_another_log_is_refused_on_append(self, store: BaseStore) -> None:
        key = new_key()
        one, other = create(store, 1).log_id, create(store, 1).log_id
        append(store, one, 2, expected=1, key=key)

        with pytest.raises(IdempotencyKeyReused) as caught:
            append(store, other, 2, expected=1, key=key)

        assert (caught.value.log_id, caught.value.index) == (one, 1)
        assert amounts(store, other) == [1]

    def test_a_create_key_is_no_key_for_an_append_to_another_log(self, store: BaseStore) -> None:
        key = new_key()
        create(store, 1, key=key)
        other = create(store, 5).log_id

        with pytest.raises(IdempotencyKeyReused):
            append(store, other, 1, expected=1, key=key)

        assert amounts(store, other) == [5]

    def test_a_retry_with_other_metadata_is_a_replay(self, store: BaseStore) -> None:
        key = new_key()
        log_id = create(store, 1).log_id
        append(store, log_id, 2, expected=1, key=key, metadata='{"attempt":1}')

        with pytest.raises(IdempotentReplay):
            append(store, log_id, 2, expected=1, key=key, metadata='{"attempt":2}')

        assert amounts(store, log_id) == [1, 2]

    def test_each_log_type_has_its_own_keys(self, store: BaseStore) -> None:
        key = new_key()
        create(store, 1, key=key)
        parcel = LogId.new("parcel")

        state = append(store, parcel, 1, expected=0, key=key)

        assert state.version == 1
        claim = store.claim("parcel", key)
        assert claim is not None
        assert claim.log_id == parcel

    def test_keys_are_compared_to_the_last_character(self, store: BaseStore) -> None:
        key = new_key()
        log_id = create(store, 1, key=key).log_id

        for other in (key + " ", key.upper(), key + "x", key[:-1]):
            append(store, log_id, 1, expected=None, key=other)

        assert amounts(store, log_id) == [1] * 5

    @pytest.mark.parametrize(
        "pair",
        [
            ("é", "e"),
            ("é", "e\u0301"),
            ("ß", "ss"),
            ("💰", "💶"),
            ("a\u200b", "a"),
            ("\uff4b", "k"),
        ],
        ids=ascii,
    )
    def test_keys_that_look_alike_are_different_keys(
        self, store: BaseStore, pair: tuple[str, str]
    ) -> None:
        one, other = pair
        key = new_key()
        log_id = create(store, 1, key=key + one).log_id

        append(store, log_id, 2, expected=1, key=key + other)

        assert amounts(store, log_id) == [1, 2]
        for number, text in enumerate((one, other)):
            claim = store.claim("account", key + text)
            assert claim is not None
            assert claim.first_index == number

    def test_types_of_events_are_compared_to_the_last_character(self, store: BaseStore) -> None:
        events = [EncodedEvent(name, 1, "{}") for name in ("a.Paid", "a.paid", "a.páid")]

        log_id = store.append(AppendRequest(new_log(), events, 0, None, "{}")).log_id

        rows = store.events(log_id, start=0, limit=10)
        assert [row.type for row in rows] == ["a.Paid", "a.paid", "a.páid"]

    def test_a_refused_append_leaves_its_key_free(self, store: BaseStore) -> None:
        key = new_key()
        log_id = create(store, 1).log_id
        with pytest.raises(ConcurrentAppend):
            append(store, log_id, 2, expected=7, key=key)
        assert store.claim("account", key) is None

        append(store, log_id, 2, expected=1, key=key)

        assert amounts(store, log_id) == [1, 2]

    def test_a_create_of_a_log_that_exists_leaves_its_key_free(self, store: BaseStore) -> None:
        key = new_key()
        log_id = create(store, 1).log_id
        with pytest.raises(LogAlreadyExists):
            append(store, log_id, 2, expected=0, key=key)
        assert store.claim("account", key) is None

        append(store, log_id, 3, expected=1, key=key)

        assert amounts(store, log_id) == [1, 3]

    def test_the_key_is_checked_before_the_existence_of_the_log(self, store: BaseStore) -> None:
        key = new_key()
        first = create(store, 1, key=key)
        existing = create(store, 9).log_id

        with pytest.raises(IdempotentReplay) as caught:
            append(store, existing, 1, expected=0, key=key)

        assert caught.value.log_id == first.log_id
        assert amounts(store, existing) == [9]

    # For execute

    def test_in_turn_calls_its_function_once_and_returns_the_result(self, store: BaseStore) -> None:
        log_id = create(store, 1).log_id
        made: list[int] = []

        for conflicts in range(3):

            def call(conflicts: int = conflicts) -> LogState:
                made.append(conflicts)
                return append(store, log_id, 2, expected=conflicts + 1)

            state = store.in_turn(log_id, call, conflicts=conflicts)
            assert (state.log_id, state.version) == (log_id, conflicts + 2)

        assert made == [0, 1, 2]
        assert amounts(store, log_id) == [1, 2, 2, 2]

    def test_in_turn_raises_the_error_of_its_function(self, store: BaseStore) -> None:
        log_id = create(store, 1).log_id

        with pytest.raises(ConcurrentAppend):
            store.in_turn(log_id, lambda: append(store, log_id, 2, expected=9), conflicts=1)

        assert append(store, log_id, 3, expected=1).version == 2

    def test_in_turn_calls_its_function_for_a_log_that_does_not_exist(
        self, store: BaseStore
    ) -> None:
        assert store.in_turn(new_log(), lambda: 7, conflicts=1) == 7

    @pytest.mark.parametrize(("start", "limit"), [(0, 2), (1, 10), (3, 1), (5, 2)])
    def test_a_read_with_a_key_equals_two_separate_reads(
        self, store: BaseStore, start: int, limit: int
    ) -> None:
        key = new_key()
        log_id = create(store, 1, 2).log_id
        append(store, log_id, 3, 4, expected=2, key=key)

        for wanted in (key, new_key()):
            events, claim = store.since_with_claim(
                log_id, ("account", wanted), start=start, limit=limit
            )
            assert list(events) == list(store.since(log_id, start=start, limit=limit))
            assert claim == store.claim("account", wanted)
        _, claim = store.since_with_claim(log_id, ("parcel", key), start=0, limit=9)
        assert claim is None
