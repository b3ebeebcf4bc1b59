"""The event context: metadata that are added to the appends of a block."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import nullcontext
from contextvars import copy_context
from threading import Barrier, Thread
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from eventlogs import ANY, IdempotentReplay, InvalidEvent, LogManager, event_context
from eventlogs import context as of_context
from eventlogs import logs as of_logs
from eventlogs.context import (
    MAX_BLOCK_BYTES,
    Layer,
    carried,
    caused_by,
    current,
    entered,
    received,
    valid_traceparent,
)
from eventlogs.models import Event, EventLog
from eventlogs.stores import ExportedEvent, store_for
from eventlogs.testing import MemoryStore
from eventlogs.values import StoredEvent
from tests.accounts import Account, Deposited, Opened, encoded, withdraw

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def all_metadata(manager: LogManager[Account], log_id: Any) -> list[dict[str, Any]]:
    return [each.metadata for each in manager.load(log_id)]


def test_a_block_adds_its_metadata_to_every_kind_of_append(accounts, log_id):
    with event_context(user="import", batch=7):
        state = accounts.create(Opened("ada"), Deposited(5), log_id=log_id)
        state = accounts.append(state, Deposited(1), metadata={"till": 1})
        accounts.execute(log_id, withdraw, 2)
        accounts.get_or_append(log_id, Deposited(3), expected_version=ANY, idempotency_key="k")
        other, _ = accounts.get_or_create(Opened("eve"), idempotency_key="other")
    accounts.append(log_id, Deposited(1), expected_version=ANY)

    added = {"user": "import", "batch": 7}
    assert all_metadata(accounts, other.log_id) == [added]
    assert all_metadata(accounts, log_id) == [
        *[added, added, {**added, "till": 1}, added, added],
        {},
    ]


def test_explicit_metadata_override_the_inner_block_which_overrides_the_outer(accounts, log_id):
    note = {"a": "ä\n\"'\u2028", "b": [1, None, 2.5]}

    with event_context(user="outer", batch=1, note=note):
        with event_context(user="inner", batch=None):
            state = accounts.create(Opened("ada"), log_id=log_id, metadata={"till": None})
            state = accounts.append(state, Deposited(1), metadata={"user": None, "note": 0})
        accounts.append(state, Deposited(1), metadata={})

    assert all_metadata(accounts, log_id) == [
        {"user": "inner", "note": note, "till": None},
        {"user": None, "note": 0},
        {"user": "outer", "batch": 1, "note": note},
    ]


def test_a_replay_in_another_context_is_still_the_same_append(accounts, log_id):
    with event_context(request_id="first"):
        state = accounts.create(Opened("ada"), log_id=log_id, idempotency_key="k")
        done = accounts.execute(log_id, withdraw, 0, idempotency_key="e")
    with event_context(request_id="second", user="7"):
        with pytest.raises(IdempotentReplay) as caught:
            accounts.create(Opened("ada"), log_id=log_id, idempotency_key="k")
        again = accounts.execute(log_id, withdraw, 0, idempotency_key="e")

    assert (caught.value.state, again) == (state, done)
    assert all_metadata(accounts, log_id) == [{"request_id": "first"}]


def test_a_context_ends_with_its_block_after_an_error():
    with event_context(a=1):
        with pytest.raises(KeyError), event_context(a=2):
            raise KeyError
        assert carried() == '{"a":1}'
    assert carried() is None


def test_an_event_context_can_be_entered_several_times(accounts, log_id):
    context = event_context(a=1)
    with context, event_context(a=2), context:
        accounts.create(Opened("ada"), log_id=log_id)

    assert all_metadata(accounts, log_id) == [{"a": 1}]
    assert current.get() is None


def test_functions_and_async_functions_can_be_decorated():
    @event_context(job="nightly")
    def run(text: str) -> tuple[str, str | None]:
        """Run."""
        return text, carried()

    @event_context(job="nightly")
    async def arun(text: str) -> tuple[str, str | None]:
        await asyncio.sleep(0)
        return text, carried()

    assert run("x") == async_to_sync(arun)("x") == ("x", '{"job":"nightly"}')
    assert (run.__name__, run.__doc__) == ("run", "Run.")
    assert carried() is None


def test_generator_functions_and_classes_cannot_be_decorated():
    def generate() -> Any:
        yield 1

    async def agenerate() -> Any:
        yield 1

    for function in (generate, agenerate, Account):
        with pytest.raises(TypeError, match="Write `with event_context"):
            event_context(a=1)(function)


@pytest.mark.parametrize("value", [float("nan"), "\0", b"x", {1: 2}, object(), "\ud800"])
def test_a_value_that_cannot_be_stored_is_refused_before_the_block(value):
    with pytest.raises(InvalidEvent) as caught:
        event_context(note=value)

    assert caught.value.path.startswith("$metadata.note")


def test_a_block_that_is_too_long_is_refused():
    event_context(note="x" * (MAX_BLOCK_BYTES - len('"note":""')))
    with pytest.raises(InvalidEvent, match="takes 4,096"):
        event_context(note="x" * MAX_BLOCK_BYTES)


def test_a_context_costs_no_statement(accounts, log_id):
    state = accounts.create(Opened("ada"), log_id=log_id)
    counts = []
    for context in (nullcontext(), event_context(a=1)):
        with context, CaptureQueriesContext(connection) as queries:
            state = accounts.append(state, Deposited(1))
        counts.append(len(queries))

    assert len(set(counts)) == 1


@pytest.mark.django_db
def test_an_append_of_encoded_events_has_only_the_given_metadata():
    with event_context(user="7"):
        state = EventLog.objects.append(
            Account.logs.new_id(), encoded(1), expected_version=0, metadata='{"a": 1}'
        )

    assert Event.objects.for_log(state.log_id).get().metadata == {"a": 1}


@pytest.mark.django_db
def test_an_import_keeps_the_exported_metadata():
    event = StoredEvent(
        *(Account.logs.new_id(), 0, 0, "account.deposited", 1, '{"amount":1}', '{"a":1}', None),
        timezone.now(),
    )

    with event_context(user="7"):
        store_for("default").restore([ExportedEvent(event)])

    assert Event.objects.for_log(event.log_id).get().metadata == {"a": 1}


class Global:
    """A broken version: one context for all threads and tasks."""

    def __init__(self) -> None:
        self.value: Layer | None = None

    def get(self) -> Layer | None:
        return self.value

    def set(self, value: Layer | None) -> None:
        self.value = value


def mixed_up_by_tasks() -> int:
    """Append in many tasks at once, each in its own context; return how many got another's."""
    accounts = LogManager(Account, store=MemoryStore())

    async def work(number: int) -> int:
        with event_context(number=number):
            await asyncio.sleep(0)
            state = await accounts.acreate(Opened("ada"))
            await asyncio.sleep(0)
            await accounts.aappend(state, Deposited(1))
        return sum(each != {"number": number} for each in all_metadata(accounts, state.log_id))

    async def main() -> int:
        return sum(await asyncio.gather(*map(work, range(30))))

    return async_to_sync(main)()


def mixed_up_by_threads() -> int:
    """Do the same in threads."""
    accounts = LogManager(Account, store=MemoryStore())
    barrier, found = Barrier(8), []

    def work(number: int) -> None:
        with event_context(number=number):
            barrier.wait(timeout=30)
            for _ in range(20):
                log_id = accounts.create(Opened("ada")).log_id
                found.append(all_metadata(accounts, log_id) == [{"number": number}])
            barrier.wait(timeout=30)

    threads = [Thread(target=work, args=[number]) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return found.count(False)


@pytest.mark.parametrize("mixed_up", [mixed_up_by_tasks, mixed_up_by_threads])
def test_each_task_and_thread_has_its_own_context(mixed_up):
    assert mixed_up() == 0


@pytest.mark.parametrize("mixed_up", [mixed_up_by_tasks, mixed_up_by_threads])
def test_a_global_context_is_detected(mixed_up, monkeypatch):
    broken = Global()
    for module in (of_context, of_logs):
        monkeypatch.setattr(module, "current", broken)

    assert mixed_up() > 0


def test_a_thread_can_be_started_with_a_copy_of_the_context():
    found: list[str | None] = []

    with event_context(a=1):
        context = copy_context()
        for target in (lambda: context.run(carried), carried):
            thread = Thread(target=lambda target=target: found.append(target()))
            thread.start()
            thread.join()

    assert found == ['{"a":1}', None]


def test_the_effects_of_an_event_have_its_id_and_its_correlation_id():
    metadata = {"user": "7", "correlation_id": "c", "traceparent": TRACE, "causation_id": "x"}

    with event_context(user="worker"), caused_by("account_1:3", metadata):
        found = carried()

    assert json.loads(found or "") == {
        "causation_id": "account_1:3",
        "correlation_id": "c",
        "traceparent": TRACE,
    }


@pytest.mark.parametrize("value", [None, "", True, 1.5, ["c"], "c" * 513, 10**30])
def test_an_event_without_a_usable_correlation_begins_a_flow(value):
    with caused_by("account_1:3", {"correlation_id": value, "traceparent": value}):
        found = json.loads(carried() or "")

    assert found == {"causation_id": "account_1:3", "correlation_id": "account_1:3"}


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (TRACE, TRACE),
        (TRACE.replace("-01", "-ff"), TRACE.replace("-01", "-ff")),
        (f"cc{TRACE[2:]}", TRACE),
        (f"cc{TRACE[2:-2]}02-what-the-future-will-be-like", f"{TRACE[:-2]}00"),
        (f"cc{TRACE[2:]}.what-the-future-will-be-like", None),
        (f"{TRACE}-what-the-future-will-be-like", None),
        (f"ff{TRACE[2:]}", None),
        (TRACE.upper(), None),
        (f" {TRACE}", None),
        (f"{TRACE},{TRACE}", None),
        (TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), None),
        (TRACE.replace("00f067aa0ba902b7", "0" * 16), None),
        (TRACE[:-1], None),
        (f"{TRACE}\n", None),
        (f"cc{TRACE[2:]}-{'x' * 500}", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_a_traceparent_is_stored_if_it_is_valid(given, stored):
    assert valid_traceparent(given) == stored


def test_a_context_is_the_same_after_a_message():
    with event_context(user="ä\"'", batch=7, deep={"a": [1]}):
        text = carried()
    layer = received(text)
    assert layer is not None
    with entered(layer):
        again = carried()

    assert text is not None
    assert (
        json.loads(again or "")
        == json.loads(text)
        == {
            "user": "ä\"'",
            "batch": 7,
            "deep": {"a": [1]},
        }
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", b"{}", 7, '{"a": NaN}', '{"a": "\\u0000"}', "x" * 70_000, "[" * 60_000],
)
def test_an_invalid_message_is_ignored_with_a_warning(text, caplog):
    with caplog.at_level(logging.WARNING, "eventlogs.context"):
        assert received(text) is None

    assert caplog.messages == [
        "A message has an event context that cannot be read; it is left out."
    ]


def test_a_message_without_a_context_is_no_reason_for_a_warning(caplog):
    assert received(None) is None
    assert caplog.messages == []
