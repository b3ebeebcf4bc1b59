"""The contract of stores that bring exported logs back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from eventlogs.events.codec import request_fingerprints
from eventlogs.exceptions import IdempotentReplay, ImportDiffers
from eventlogs.ids import LogId
from eventlogs.stores import AppendRequest, BaseStore, ExportedClaim, ExportedEvent, Restored
from eventlogs.testing.contracts.stores import (
    amounts,
    append,
    create,
    encoded,
    new_key,
    new_log,
)
from eventlogs.values import StoredEvent

LONG_AGO = datetime(2001, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)


def deposit(log_id: LogId, index: int, **changes) -> ExportedEvent:
    """Return an exported deposit of ``index`` cents, a minute after the one before."""
    event = StoredEvent(
        log_id=log_id,
        index=index,
        position=0,
        type="account.deposited",
        schema_version=1,
        data=f'{{"amount":{index}}}',
        metadata='{"till":7}',
        idempotency_key=None,
        recorded_at=LONG_AGO + timedelta(minutes=index),
    )
    return ExportedEvent(replace(event, **changes))


def deposits(log_id: LogId, indexes: Iterable[int]) -> list[ExportedEvent]:
    return [deposit(log_id, index) for index in indexes]


def with_key(exported: ExportedEvent, key: str, count: int = 1) -> ExportedEvent:
    """Return an event that is the first of an append with a key."""
    event = exported.event
    fingerprint = next(request_fingerprints(encoded(*range(event.index, event.index + count))))
    claim = ExportedClaim(count, fingerprint, event.recorded_at)
    return ExportedEvent(replace(event, idempotency_key=key), claim)


class RestoreContract:
    """Subclass it with a fixture ``store``: a BaseStore, which may hold other logs."""

    def test_events_are_restored_with_their_indexes_times_and_metadata(
        self, store: BaseStore
    ) -> None:
        log_id = new_log()

        assert store.restore(deposits(log_id, range(3))) == Restored(stored=3, present=0)

        rows = store.events(log_id, start=0, limit=10)
        assert amounts(store, log_id) == [0, 1, 2]
        assert [row.recorded_at for row in rows] == [
            LONG_AGO + timedelta(minutes=n) for n in range(3)
        ]
        assert [row.metadata.replace(" ", "") for row in rows] == ['{"till":7}'] * 3

    def test_positions_are_new_and_in_the_order_given(self, store: BaseStore) -> None:
        one, other = new_log(), new_log()
        before = create(store, 1).position

        store.restore(
            [deposit(one, 0), deposit(other, 0), deposit(one, 1), deposit(other, 1)],
        )

        positions = [
            store.events(log_id, start=index, limit=1)[0].position
            for log_id, index in [(one, 0), (other, 0), (one, 1), (other, 1)]
        ]
        assert [before, *positions] == sorted({before, *positions})

    def test_restoring_again_restores_nothing(self, store: BaseStore) -> None:
        log_id = new_log()
        batch = [with_key(deposit(log_id, 0), new_key()), *deposits(log_id, range(1, 4))]
        store.restore(batch)

        assert store.restore(batch) == Restored(stored=0, present=4)
        assert amounts(store, log_id) == [0, 1, 2, 3]

    def test_missing_events_are_stored_behind_existing_ones(self, store: BaseStore) -> None:
        log_id = new_log()
        store.restore(deposits(log_id, range(2)))

        assert store.restore(deposits(log_id, range(5))) == Restored(stored=3, present=2)
        assert amounts(store, log_id) == [0, 1, 2, 3, 4]

    def test_each_of_many_logs_has_its_own_version(self, store: BaseStore) -> None:
        logs = [new_log() for _ in range(230)]
        lengths = {log: 1 + at % 3 for at, log in enumerate(logs)}
        store.restore([deposit(log, 0) for log in logs])

        rest = [deposit(log, index) for log in logs for index in range(1, lengths[log])]
        store.restore(rest)

        assert {log: store.version(log) for log in logs} == lengths

    def test_an_appended_log_accepts_its_own_export(self, store: BaseStore) -> None:
        state = create(store, 0, 1, 2)
        exported = [ExportedEvent(each) for each in store.events(state.log_id, start=0, limit=10)]

        assert store.restore(exported) == Restored(stored=0, present=3)

    def test_equal_json_in_another_notation_is_the_same(self, store: BaseStore) -> None:
        log_id = new_log()
        event = deposit(log_id, 0, data='{"amount":1,"note":"é"}', metadata='{"a":1,"b":2}')
        store.restore([event])

        again = replace(
            event.event, data='{"note": "\\u00e9", "amount": 1}', metadata='{"b":2, "a":1}'
        )

        assert store.restore([ExportedEvent(again)]) == Restored(stored=0, present=1)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"type": "account.withdrawn"}, "its type is another one"),
            ({"schema_version": 2}, "its schema version is another one"),
            ({"data": '{"amount":"SECRET"}'}, "its data is another one"),
            ({"metadata": "{}"}, "its metadata is another one"),
            ({"idempotency_key": "k"}, "its idempotency key is another one"),
            ({"recorded_at": LONG_AGO}, "its time is another one"),
        ],
        ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
    )
    def test_another_history_is_refused(self, store: BaseStore, change, reason) -> None:
        log_id = new_log()
        store.restore(deposits(log_id, range(2)))

        with pytest.raises(ImportDiffers, match=reason) as caught:
            store.restore([deposit(log_id, 0), deposit(log_id, 1, **change), deposit(log_id, 2)])

        assert (caught.value.log_id, caught.value.index) == (log_id, 1)
        assert "SECRET" not in str(caught.value)
        assert amounts(store, log_id) == [0, 1]

    def test_a_batch_is_restored_as_a_whole_or_not_at_all(self, store: BaseStore) -> None:
        good, bad = new_log(), new_log()

        with pytest.raises(ImportDiffers, match="event 1 has to come next") as caught:
            store.restore([*deposits(good, range(2)), *deposits(bad, [0, 2])])

        assert (caught.value.log_id, caught.value.index) == (bad, 2)
        assert (store.version(good), store.version(bad)) == (0, 0)
        assert create_at(store, bad).version == 1  # no part of the refused batch remains

    def test_a_log_without_its_first_event_is_refused(self, store: BaseStore) -> None:
        with pytest.raises(ImportDiffers, match="event 0 has to come next"):
            store.restore(deposits(new_log(), [3]))

    def test_time_does_not_run_backwards(self, store: BaseStore) -> None:
        log_id = new_log()

        with pytest.raises(ImportDiffers, match="older than the event before"):
            store.restore([deposit(log_id, 0), deposit(log_id, 1, recorded_at=LONG_AGO - MINUTE)])
        store.restore([deposit(log_id, 0)])
        with pytest.raises(ImportDiffers, match="older than the event before"):
            store.restore([deposit(log_id, 1, recorded_at=LONG_AGO - MINUTE)])

        assert store.version(log_id) == 1

    def test_the_uuid_of_another_types_log_is_refused(self, store: BaseStore) -> None:
        state = create(store, 1)

        with pytest.raises(ImportDiffers, match="another type's log"):
            store.restore(deposits(LogId("parcel", state.log_id.uuid), [0]))

    def test_appends_continue_a_restored_log(self, store: BaseStore) -> None:
        log_id = new_log()
        store.restore(deposits(log_id, range(2)))

        assert append(store, log_id, 2, expected=2).version == 3
        last = store.last(log_id, limit=1)[0]
        assert last.recorded_at > LONG_AGO + timedelta(days=365)

    def test_a_retry_of_a_restored_append_is_a_replay(self, store: BaseStore) -> None:
        log_id, key = new_log(), new_key()
        store.restore(
            [
                deposit(log_id, 0),
                with_key(deposit(log_id, 1), key, count=2),
                deposit(log_id, 2, idempotency_key=key),
            ]
        )

        with pytest.raises(IdempotentReplay) as caught:
            append(store, log_id, 1, 2, expected=1, key=key)

        assert (caught.value.index, caught.value.state.version) == (1, 3)
        assert caught.value.state.position == store.last(log_id, limit=1)[0].position

    def test_a_key_that_another_append_has_is_refused(self, store: BaseStore) -> None:
        log_id, key = new_log(), new_key()
        holder = create(store, 5, key=key)

        with pytest.raises(ImportDiffers, match=str(holder.log_id)):
            store.restore([with_key(deposit(log_id, 0), key)])

        assert store.version(log_id) == 0
        claim = store.claim("account", key)
        assert claim is not None
        assert claim.log_id == holder.log_id

    def test_a_key_that_was_pruned_before_the_export_stays_pruned(self, store: BaseStore) -> None:
        log_id, key = new_log(), new_key()

        store.restore([deposit(log_id, 0, idempotency_key=key)])

        assert store.events(log_id, start=0, limit=1)[0].idempotency_key == key
        assert store.claim("account", key) is None

    def test_restoring_no_events_stores_nothing(self, store: BaseStore) -> None:
        assert store.restore([]) == Restored(0, 0)

    def test_new_logs_are_stored_and_those_that_exist_left_alone(self, store: BaseStore) -> None:
        there = create(store, 7).log_id
        new, keyed = new_log(), new_log()
        batch = [
            *deposits(there, range(3)),
            *deposits(new, range(2)),
            with_key(deposit(keyed, 0), new_key()),
        ]

        assert store.restore_new_logs(batch) == {new, keyed}
        assert store.restore_new_logs(batch) == frozenset()
        assert store.restore_new_logs([]) == frozenset()

        assert [amounts(store, each) for each in (there, new, keyed)] == [[7], [0, 1], [0]]
        assert store.events(new, start=0, limit=1)[0].recorded_at == LONG_AGO

    def test_a_new_log_whose_key_is_taken_is_left_out(self, store: BaseStore) -> None:
        one, other, key = new_log(), new_log(), new_key()
        store.restore_new_logs([with_key(deposit(one, 0), key)])

        assert store.restore_new_logs([with_key(deposit(other, 0), key)]) == frozenset()
        assert store.version(other) == 0

    def test_new_logs_with_a_hole_or_of_another_types_uuid_are_refused(
        self, store: BaseStore
    ) -> None:
        there = create(store, 7).log_id
        new = new_log()
        other = LogId("parcel", there.uuid)
        for batch in (deposits(new, [0, 2]), deposits(new, [1]), deposits(other, [0])):
            with pytest.raises(ImportDiffers):
                store.restore_new_logs([*deposits(new_log(), [0]), *batch])

        assert store.version(new) == 0
        assert amounts(store, there) == [7]

    def test_keys_with_special_characters_are_restored(self, store: BaseStore) -> None:
        log_id, key = new_log(), new_key() + ' "quoted" \\ \' é 日本'

        store.restore([with_key(deposit(log_id, 0), key)])

        assert store.events(log_id, start=0, limit=1)[0].idempotency_key == key
        assert store.claim("account", key) is not None


MINUTE = timedelta(minutes=1)


def create_at(store: BaseStore, log_id: LogId):
    return store.append(AppendRequest(log_id, encoded(1), 0, None, "{}"))
