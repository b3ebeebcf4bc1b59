"""Recomputed histories."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from eventlogs import LogId
from eventlogs.events.chain import EPOCH, digest
from eventlogs.seals.history import Mark, Stored, pasts, pasts_of_export, pasts_of_parts
from eventlogs.values import StoredEvent

ONE, TWO = LogId.from_key("account", 1), LogId.from_key("account", 2)
FIRST, SECOND = sorted([ONE, TWO], key=lambda each: each.uuid.bytes)


def history(log_id: LogId, positions: list[int]) -> list[Stored]:
    head, found = None, []
    for index, position in enumerate(positions):
        event = StoredEvent(
            *(log_id, index, position, "account.noted", 1, '{"note": 1}', "{}", None),
            datetime(2026, 1, 1, tzinfo=UTC),
        )
        head = digest(head, event)
        found.append((event, head))
    return found


def marks(stored: list[Stored], *positions: int) -> list[list[Mark]]:
    return [past.marks for past in pasts(stored, positions)]


def changed(stored: list[Stored], index: int, **fields) -> list[Stored]:
    return [
        (msgspec.structs.replace(event, **fields), head) if event.index == index else (event, head)
        for event, head in stored
    ]


def misfit(stored: list[Stored]) -> tuple[int, str] | None:
    [past] = pasts(stored, [100])
    return None if past.misfit is None else (past.misfit.index, past.misfit.message)


def test_a_log_has_a_mark_for_each_position():
    stored = history(ONE, [3, 5, 9])
    heads = [head for _, head in stored]

    assert marks(stored, 2, 3, 7, 9, 20) == [
        [Mark(0, b""), Mark(1, heads[0]), Mark(2, heads[1]), Mark(3, heads[2]), Mark(3, heads[2])]
    ]


def test_logs_come_one_by_one():
    stored = [*history(FIRST, [1, 4]), *history(SECOND, [2, 3])]

    assert [[mark.version for mark in each] for each in marks(stored, 3, 4)] == [[1, 2], [2, 2]]


def test_an_export_gives_the_same_logs():
    stored = [*history(FIRST, [1, 4]), *history(SECOND, [2, 3])]
    told: list[int] = []

    in_order = sorted(stored, key=lambda each: each[0].position)
    found = list(pasts_of_export(in_order, [3, 4], tell=told.append))

    assert [each.log_id for each in found] == [FIRST, SECOND]
    assert [each.marks for each in found] == marks(stored, 3, 4)
    assert sum(told) == 4


def test_a_history_that_fits_has_no_misfit():
    assert misfit(history(ONE, [1, 2, 3])) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"data": '{"note": 2}'},
        {"metadata": '{"user": "eve"}'},
        {"type": "account.opened"},
        {"schema_version": 2},
        {"idempotency_key": "k"},
        {"recorded_at": datetime(2026, 1, 2, tzinfo=UTC)},
    ],
)
def test_a_changed_event_is_the_misfit(fields):
    found = misfit(changed(history(ONE, [1, 2, 3]), 1, **fields))

    assert found == (1, "it does not fit its digest: one of the two was changed")


def test_a_missing_event_is_the_misfit():
    stored = history(ONE, [1, 2, 3])

    assert misfit([stored[0], stored[2]]) == (2, "it stands where event 1 should be")


def test_a_missing_digest_is_the_misfit():
    stored = history(ONE, [1, 2, 3])

    assert misfit([stored[0], (stored[1][0], None), stored[2]]) == (1, "its digest is missing")


def test_positions_that_run_backwards_are_a_misfit():
    index, message = misfit(history(ONE, [1, 3, 2]))

    assert (index, message) == (2, "its position is not behind its predecessor's")


def test_events_behind_the_last_position_do_not_count():
    stored = changed(history(ONE, [1, 2, 3]), 2, data="[]")
    [past] = pasts(stored, [2])

    assert past.misfit is None
    assert past.marks[0].version == 2


def test_a_log_without_a_chain_is_counted_only():
    stored = [(event, None) for event, _ in history(FIRST, [1, 2])]
    [past] = pasts(stored, [2])

    assert (past.is_chained, past.marks, past.misfit) == (False, [Mark(2, b"")], None)


def test_a_log_whose_chain_was_begun_is_not_chained_yet():
    stored = [*history(FIRST, [1, 2]), *history(SECOND, [3])]

    found = pasts(stored, [3], unchained=iter([FIRST.uuid]))

    assert [each.is_chained for each in found] == [False, True]


def test_an_export_may_have_the_text_of_jsonb_or_other_json():
    for data in ('{"note": 1}', '{"note":1}'):
        stored = changed(history(ONE, [1]), 0, data=data)
        [past] = pasts_of_export(stored, [1], tell=lambda _: None)

        assert past.misfit is None
        assert past.marks == [Mark(1, stored[0][1])]


def test_an_event_that_cannot_be_digested_is_the_misfit():
    stored = changed(history(ONE, [1, 2]), 0, data="nonsense")
    [past] = pasts(stored, [2])

    assert past.misfit.index == 0
    assert "it has no digest" in past.misfit.message


def test_postgresql_sends_the_bytes_of_digests():
    event, head = history(ONE, [1])[0]
    since = (event.recorded_at - EPOCH) // timedelta(microseconds=1)
    text = f"{ONE.uuid}\naccount\n{{}}\naccount.noted\n1\n0\n{event.data}"
    body = since.to_bytes(8, "big", signed=True) + text.encode()

    [past] = pasts_of_parts([(ONE, 0, 1, body, head)], [1])

    assert (past.marks, past.misfit) == ([Mark(1, head)], None)


@pytest.mark.parametrize("body", [None, b"other"])
def test_bytes_that_do_not_fit_are_the_misfit(body):
    [past] = pasts_of_parts([(ONE, 0, 1, body, bytes(32))], [1])

    assert past.misfit.index == 0
