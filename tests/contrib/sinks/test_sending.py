"""A batch on its way: of each log one record at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventlogs import Unpublishable
from eventlogs.contrib.sending import WINDOW, Sending, messages_of
from tests.contrib.sinks.records import encode, records


def in_loop(work: Any) -> Any:
    async def run() -> Any:
        return work()

    return asyncio.run(run())


def ready(sending: Sending) -> list[int]:
    return list(iter(sending.next, None))


def sending_of(*counts: int) -> Sending:
    return Sending(messages_of(records(*counts), encode, "{type}"))


def test_of_each_log_one_record_is_on_its_way():
    def work():
        sending = sending_of(3, 1, 2)  # numbers by log: 0 3 5, 1, 2 4
        assert ready(sending) == [0, 1, 2]
        assert ready(sending) == []
        sending.stored(2)
        assert ready(sending) == [4]
        sending.stored(4)
        sending.stored(0)
        sending.stored(0)  # a second acknowledgement
        assert ready(sending) == [3]
        sending.stored(3)
        assert ready(sending) == [5]

    in_loop(work)


def test_the_end_comes_when_all_are_stored():
    async def work():
        sending = sending_of(2)
        for number in range(2):
            assert ready(sending) == [number]
            sending.stored(number)
        await sending.end()

    asyncio.run(work())


def test_a_batch_without_records_ends_at_once():
    async def work():
        await Sending([]).end()

    asyncio.run(work())


def test_a_refused_record_keeps_the_later_ones_of_its_log_here():
    async def work():
        sending = sending_of(3, 2)
        ready(sending)
        sending.refused(0)
        sending.stored(1)
        assert ready(sending) == [3]
        sending.stored(3)
        with pytest.raises(Unpublishable) as caught:
            await sending.end()
        assert caught.value.ids == (sending.messages[0].record.id,)

    asyncio.run(work())


def test_after_a_failure_nothing_is_sent():
    async def work():
        sending = sending_of(2, 2)
        ready(sending)
        sending.failed(ConnectionResetError())
        sending.stored(0)
        assert ready(sending) == []
        sending.failed(ValueError())
        with pytest.raises(ConnectionResetError):
            await sending.end()

    asyncio.run(work())


def test_no_more_than_a_window_is_on_its_way():
    def work():
        sending = sending_of(*[1] * (WINDOW + 5))
        assert len(ready(sending)) == WINDOW
        sending.stored(0)
        assert ready(sending) == [WINDOW]

    in_loop(work)


def test_large_records_go_one_after_another():
    def work():
        large = [
            each._replace(body=b"x" * 2_000_000)
            for each in messages_of(records(1, 1), encode, "{type}")
        ]
        sending = Sending(large)
        assert ready(sending) == [0]
        sending.stored(0)
        assert ready(sending) == [1]

    in_loop(work)


def test_an_address_is_a_text_or_a_function():
    [record] = records(1)
    [text] = messages_of([record], encode, "x.{log_type}.{log_id}.{type}")
    [made] = messages_of([record], encode, lambda each, event: event["subject"])

    assert text.address == f"x.account.{record.log_id}.account.deposited"
    assert made.address == str(record.log_id)
