"""The cache in processes that fork, end, and race each other, and where threads cannot start."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.core.cache import caches
from django.core.management import call_command
from django.db import connection, connections
from django.test import override_settings
from django.utils.module_loading import import_string

from eventlogs import LogId, LogManager, LogNotFound
from eventlogs.caches.backends import BaseReductionCache, statistics
from eventlogs.caches.counters import counters
from eventlogs.caches.entries import version_in
from eventlogs.reductions.reader import Refresh, RefreshMessage
from eventlogs.reductions.worker import Worker, worker
from eventlogs.reductions.writes import CacheWrite
from eventlogs.refreshers import BaseRefresher, MessageRefresher, refresh_by_names
from eventlogs.stores import store_for
from eventlogs.testing import MemoryStore, RecordingCache
from eventlogs.utils.names import dotted
from tests.processes import Place, Processes, output_of
from tests.races import COMMITS
from tests.reliability import broken
from tests.reliability.ledgers import Entered, Ledger, tell_in_an_error
from tests.reliability.redises import MORTAL, MortalRedis

BROKEN = "tests.reliability.broken."

# A process that forks while one of its threads replays a log.

FORK = """
import os, signal, threading
import django
django.setup()
from eventlogs import LogManager
from eventlogs.stores import store_for
from eventlogs.testing import MemoryStore, RecordingCache
from tests.reliability.ledgers import Entered, Ledger, tell_in_an_error

class Slow(MemoryStore):
    reading, gate = threading.Event(), threading.Event()

    def events(self, log_id, **options):
        self.reading.set()
        self.gate.wait()
        return super().events(log_id, **options)

manager = LogManager(Ledger, store=Slow(), cache=RecordingCache())
log_id = manager.create(Entered("first")).log_id
thread = threading.Thread(target=manager.reduce, args=[log_id])
thread.start()
Slow.reading.wait()
if child := os.fork():
    _, status = os.waitpid(child, 0)
    Slow.gate.set()
    thread.join()
    print("the child ended with", status)
else:
    signal.alarm(10)
    Slow.gate.set()
    os._exit(0 if manager.reduce(log_id).version == 1 else 1)
"""


def test_a_fork_does_not_wait_for_a_replay_that_only_its_parent_makes():
    printed = output_of("-W", "ignore::DeprecationWarning", "-c", FORK)

    assert printed.strip() == "the child ended with 0"


# Errors that a reader must not get.


class CannotWrite(BaseRefresher):
    """A custom refresher with a bug."""

    def submit(self, job: CacheWrite | Refresh) -> None:
        raise RuntimeError("a mistake")


def test_a_refresher_that_cannot_write_is_no_error_to_a_reader_or_a_writer():
    counters.reset()
    manager = LogManager(
        Ledger,
        store=MemoryStore(),
        cache=RecordingCache(),
        refresher=CannotWrite(),
        refresh_on_append=True,
    )

    state = manager.create(Entered("first"))
    manager.append(state, *(Entered("more") for _ in range(600)))

    assert manager.reduce(state.log_id).version == 601
    assert statistics()["errors"]["failed"] >= 3


def test_a_thread_that_cannot_be_started_is_no_error_to_a_reader(monkeypatch):
    """As at the end of a process, or at the system's limit of threads."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    work = Worker()
    monkeypatch.setattr("eventlogs.refreshers.worker", work)
    manager = LogManager(
        Ledger,
        store=MemoryStore(),
        cache=RecordingCache(),
        refresher="eventlogs.refreshers.ThreadRefresher",
    )
    log_id = manager.create(Entered("first")).log_id
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)

        assert manager.reduce(log_id).version == 1


def test_a_missing_refresher_does_not_fail_an_append():
    """The event is stored by then: an error would have the caller store it again."""
    manager = LogManager(
        Ledger,
        store=MemoryStore(),
        cache=RecordingCache(),
        refresher="eventlogs.refreshers.Misspelt",
        refresh_on_append=True,
    )

    state = manager.create(Entered("first"))

    assert manager.version(state.log_id) == 1


def test_a_newer_entry_does_not_leave_the_lock_of_an_older_one_behind():
    cache = RecordingCache()
    manager = LogManager(
        Ledger,
        store=MemoryStore(),
        cache=cache,
        refresher="eventlogs.refreshers.ThreadRefresher",
    )
    state = manager.create(*(Entered("one") for _ in range(600)))
    gate = threading.Event()
    assert worker.flush(10)
    worker.submit("something slow", gate.wait)
    try:
        manager.reduce(state.log_id)  # its entry and the release of its lock are queued
        manager.append(state, Entered("newer"))
        manager.reduce(state.log_id)  # so is this one
    finally:
        gate.set()
    assert worker.flush(10)

    key = manager._reductions().key(state.log_id)
    assert cache.get(f"{key}.lock") is None
    assert version_in(cache.get(key) or b"") == 601


class Gated(MemoryStore):
    """A slow store that counts replays of more than a page."""

    replays = 0

    def events(self, log_id: LogId, **options: Any) -> Any:
        if options["start"] == 2_000:
            self.replays += 1
            time.sleep(0.2)
        return super().events(log_id, **options)


def test_a_log_that_was_reduced_before_its_creation_is_replayed_once(race):
    """A failed look-up does not prevent readers from waiting for each other later."""
    store = Gated()
    manager = LogManager(Ledger, store=store, cache=RecordingCache())
    log_id = manager.new_id()
    with pytest.raises(LogNotFound):
        manager.reduce(log_id)
    manager.create(*(Entered("one") for _ in range(2_500)), log_id=log_id)

    answers = race(*[lambda: manager.reduce(log_id).version] * 8)

    assert answers == [2_500] * 8
    assert store.replays == 1


@pytest.fixture
def memory_database(
    django_db_setup: None, django_db_blocker: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A database as Django makes it for tests on SQLite: in memory, shared by threads."""
    alias = f"memory{uuid4().hex[:8]}"
    with django_db_blocker.unblock():
        connections.databases[alias] = {
            **connection.settings_dict,
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": f"file:{alias}?mode=memory&cache=shared",
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
        try:
            call_command("migrate", "eventlogs", database=alias, verbosity=0)
            yield alias
        finally:
            connections[alias].connection.close()  # Django keeps such a database open
            del connections[alias]
            del connections.databases[alias]
            store_for.cache_clear()


def test_tests_on_sqlite_in_memory_are_not_locked_out_by_the_thread(memory_database):
    manager = LogManager(
        Ledger,
        using=memory_database,
        cache=RecordingCache(),
        refresher="eventlogs.refreshers.ThreadRefresher",
        refresh_on_append=True,
    )

    state = manager.create(Entered("first"))

    assert manager._reductions().versions([state.log_id]) == {state.log_id: 1}
    assert not worker.is_queued((manager._reductions(), state.log_id))


# Messages: the flag is cleared before the log is read.


class Mailbox(MessageRefresher):
    """Keeps its messages until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[RefreshMessage] = []

    def send(self, message: RefreshMessage) -> None:
        self.messages.append(message)


class EagerMailbox(broken.SendsEachTime, Mailbox):
    """Keeps one for each append."""


@pytest.fixture
def server() -> Iterator[MortalRedis]:
    with MortalRedis() as server, override_settings(CACHES=server.caches):
        counters.reset()
        yield server


@pytest.mark.redis
@COMMITS
@pytest.mark.parametrize("clears_first", [True, False])
def test_an_append_while_a_worker_reads_is_not_forgotten(server, clears_first):
    mailbox = Mailbox()
    manager = LogManager(Ledger, cache=MORTAL, refresher=mailbox, refresh_on_append=True)
    log_id = manager.create(Entered("first")).log_id
    assert worker.flush(10)
    (message,) = mailbox.messages
    mailbox.messages.clear()

    def meanwhile() -> None:
        manager.append(log_id, Entered("meanwhile"), expected_version=1)
        assert worker.flush(10)

    if clears_first:
        refresh_by_names(*message)
        meanwhile()
    else:
        broken.clears_after_reading(Ledger, log_id, "default", MORTAL, meanwhile)
    while mailbox.messages:
        refresh_by_names(*mailbox.messages.pop())

    cached = manager._reductions().versions([log_id])[log_id]
    assert cached == (2 if clears_first else 1)  # the broken one has lost the append


@pytest.mark.redis
@COMMITS
@pytest.mark.parametrize(("kind", "few"), [(Mailbox, True), (EagerMailbox, False)])
def test_there_are_few_messages_for_many_appends(server, kind, few):
    mailbox = kind()
    manager = LogManager(Ledger, cache=MORTAL, refresher=mailbox, refresh_on_append=True)
    log_ids = [manager.create(Entered("first")).log_id for _ in range(10)]

    for number in range(200):
        manager.append(log_ids[number % 10], Entered("more"), expected_version=1 + number // 10)
    assert worker.flush(10)

    assert (len(mailbox.messages) <= 20) == few


# Writers of one entry.


def write_versions(place: Place, cache: str, key: str, highest: int) -> int:
    """Write entries of all versions, in a slightly shuffled order."""
    kept: BaseReductionCache = import_string(cache)(MORTAL)
    choices = place.random
    for version in sorted(range(1, highest + 1), key=lambda each: each + choices.random() * 40):
        kept.set(key, b"EL1" + version.to_bytes(4, "big") + bytes(40), timeout=60)
    return highest


def watch_versions(place: Place, key: str) -> list[int]:
    """Return the versions that were stored, in their order."""
    seen = []
    client = caches[MORTAL].client.get_client()  # type: ignore[attr-defined]
    name = caches[MORTAL].make_key(key)
    while not place.is_set():
        seen.append(version_in(client.get(name) or b""))
        if len(seen) == 1:
            place.say("it is watching")
    return [*seen, version_in(client.get(name) or b"")]


@pytest.mark.redis
@COMMITS
@pytest.mark.parametrize(
    ("cache", "goes_back"),
    [
        ("eventlogs.caches.RedisReductionCache", False),
        (BROKEN + "Overwrites", True),
        (BROKEN + "LooksThenSets", True),
    ],
)
def test_concurrent_writers_never_replace_an_entry_by_an_older_one(server, cache, goes_back):
    with Processes(settings={"CACHES": server.caches}) as processes:
        watching = processes.start(watch_versions, "a key")
        watching.heard()
        processes.line_up(4, write_versions, cache, "a key", 1_500)
        processes.go()
        processes.reports()
        seen = watching.end()

    assert (seen != sorted(seen)) == goes_back
    if not goes_back:
        assert seen[-1] == 1_500


# A fold that fails in a worker.


def test_a_fold_that_fails_in_a_worker_is_counted_and_its_text_is_not_shown(
    db, monkeypatch, caplog
):
    """Celery would log the error and its text, and deliver the message again for nothing."""

    monkeypatch.setattr(Ledger, "apply", tell_in_an_error)
    counters.reset()
    log_id = LogManager(Ledger).create(Entered("a secret")).log_id

    assert refresh_by_names(dotted(Ledger), str(log_id), "default") is False
    assert statistics()["errors"]["failed"] == 1
    assert "a secret" not in caplog.text


@pytest.mark.redis
@COMMITS
def test_a_redis_that_refuses_writes_is_still_read(server):
    """The Redis is full with the policy noeviction, or is a replica by now."""
    manager = LogManager(Ledger, cache=MORTAL, refresher="eventlogs.refreshers.ImmediateRefresher")
    cached, other = (manager.create(Entered("first")).log_id for _ in range(2))
    manager.reduce(cached)
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
    counters.reset()

    for _ in range(3):
        manager.reduce(other)  # cannot be kept
        manager.reduce(cached)

    assert statistics()["hits"] == 3
    assert statistics()["misses"]["unreachable"] == 0
    assert statistics()["errors"]["unwritable"] == 3
