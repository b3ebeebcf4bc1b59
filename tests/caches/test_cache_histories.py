"""
Cached reductions of a history that the log does not have are rejected.

A transaction rolled back, a restored database, an erased log, another release of the code.
Each test also runs, and fails, on a deliberately broken version that lacks the check.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from eventlogs import ANY, ConcurrentAppend, LogId, LogManager, LogNotFound, LogState
from eventlogs.caches.backends import RedisReductionCache, cache_for, statistics
from eventlogs.caches.counters import counters
from eventlogs.reductions.reader import ReductionReader
from eventlogs.reductions.worker import worker
from tests.accounts import Account, Deposited, Opened
from tests.processes import ROOT, Program
from tests.reliability import broken
from tests.servers import Redis

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])

IMMEDIATE = "eventlogs.refreshers.ImmediateRefresher"
ALIASES = ["default", pytest.param("redis", marks=pytest.mark.redis)]


@pytest.fixture(params=ALIASES)
def alias(request: pytest.FixtureRequest) -> str:
    """The cache: local memory, and Redis."""
    counters.reset()
    return request.param


def accounts(
    alias: str, variant: type[ReductionReader[Any]] = ReductionReader
) -> LogManager[Account]:
    """Return the accounts, whose reductions are written at once."""
    manager = LogManager(Account, cache=alias, refresher=IMMEDIATE)
    manager._reduction_readers["default"] = variant(Account, using="default", cache=alias)
    return manager


def misses() -> dict[str, int]:
    return {reason: count for reason, count in statistics()["misses"].items() if count}


def cached_version(manager: LogManager[Any], log_id: LogId) -> int | None:
    return manager._reductions().versions([log_id]).get(log_id)


class Unwanted(Exception):
    """An error that rolls a transaction back."""


# A transaction that is rolled back. On SQLite, positions are given out again.


def roll_back_and_append(manager: LogManager[Account]) -> LogId:
    """Cache what a transaction sees that is then rolled back; append other events instead."""
    log_id = manager.create(Opened("Ada"), Deposited(1)).log_id
    connection.set_autocommit(False)  # no on_commit: the refresher gets its job at once
    try:
        manager.append(log_id, Deposited(40), Deposited(5), expected_version=2)
        assert manager.reduce(log_id).aggregate.balance == 46
    finally:
        connection.rollback()
        connection.set_autocommit(True)
    assert cached_version(manager, log_id) == 4 or connection.vendor == "sqlite"
    manager.append(log_id, Deposited(70), Deposited(5), expected_version=2)
    return log_id


def test_a_cached_reduction_of_a_rolled_back_transaction_is_rejected(alias):
    manager = accounts(alias)
    log_id = roll_back_and_append(manager)

    reduction = manager.reduce(log_id)

    assert (reduction.version, reduction.aggregate.balance) == (4, 76)
    assert manager.reduce(log_id).aggregate == manager.reduce(log_id, fresh=True).aggregate
    assert statistics()["hits"] == 1


@pytest.mark.postgresql
def test_a_broken_version_without_the_proof_uses_a_rolled_back_reduction(alias):
    manager = accounts(alias, broken.WithoutProof)

    log_id = roll_back_and_append(manager)

    assert manager.reduce(log_id).aggregate.balance == 46  # and the log says 76


@pytest.mark.parametrize("depth", [1, 2])
def test_cached_reductions_of_a_rolled_back_block_are_rejected(alias, depth):
    manager = accounts(alias)
    log_id = manager.create(Opened("Ada")).log_id
    with transaction.atomic():
        manager.append(log_id, Deposited(1), expected_version=1)
        try:
            with transaction.atomic():
                manager.append(log_id, Deposited(40), expected_version=2)
                if depth == 1:
                    manager.reduce(log_id)
                else:
                    manager.execute(log_id, lambda account: [Deposited(account.balance)])
                raise Unwanted
        except Unwanted:
            pass
        assert manager.reduce(log_id).aggregate.balance == 1
    manager.append(log_id, Deposited(70), expected_version=2)

    assert manager.reduce(log_id).aggregate.balance == 71
    assert cached_version(manager, log_id) == 3


# A database that is restored to an earlier moment.


@pytest.fixture
def restore(tmp_path: Path) -> Callable[[], Callable[[], None]]:
    """Remember the state of the database, and return a function that restores it."""
    if connection.vendor == "sqlite":
        file, copy = Path(connection.settings_dict["NAME"]), tmp_path / "backup"

    def remember() -> Callable[[], None]:
        if connection.vendor == "sqlite":
            connection.close()
            shutil.copy(file, copy)

            def restore() -> None:
                connection.close()
                shutil.copy(copy, file)

            return restore
        with connection.cursor() as cursor:
            cursor.execute("SELECT coalesce(max(position), 0) FROM eventlogs_event")
            (position,) = cursor.fetchone()
            cursor.execute("SELECT id, version FROM eventlogs_eventlog")
            versions = cursor.fetchall()
        return lambda: take_back(position, versions)

    return remember


def change_history(*statements: tuple[str, list[Any]]) -> None:
    """Run statements that the triggers would refuse."""
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_refuse_change"
            )
        for statement, parameters in statements:
            cursor.execute(statement, parameters)
        if connection.vendor == "postgresql":
            cursor.execute(
                "ALTER TABLE eventlogs_event ENABLE ALWAYS TRIGGER eventlogs_event_refuse_change"
            )


def take_back(position: int, versions: list[tuple[Any, int]]) -> None:
    """Delete everything after ``position`` from the database, as a restored backup does."""
    change_history(
        ("DELETE FROM eventlogs_event WHERE position > %s", [position]),
        *(
            ("UPDATE eventlogs_eventlog SET version = %s WHERE id = %s", [version, log])
            for log, version in versions
        ),
        ("SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'), %s)", [position]),
    )


def restore_and_append(manager: LogManager[Account], restore: Any, *amounts: int) -> LogId:
    """Cache events, restore the database to before, and append others at their positions."""
    state = manager.create(Opened("Ada"), Deposited(1))
    back = restore()
    lost = manager.append(state, Deposited(40), Deposited(5))
    assert manager.reduce(state.log_id).aggregate.balance == 46
    assert cached_version(manager, state.log_id) == 4
    back()
    if amounts:
        again = manager.append(state, *map(Deposited, amounts))
        assert again.position - lost.position == len(amounts) - 2  # the very same positions
    return state.log_id


@pytest.mark.parametrize("amounts", [(), (70,), (70, 5), (70, 5, 9)])
def test_a_cached_reduction_from_before_a_restore_is_rejected(alias, restore, amounts):
    manager = accounts(alias)
    log_id = restore_and_append(manager, restore, *amounts)

    reduction = manager.reduce(log_id)

    assert reduction.version == 2 + len(amounts)
    assert reduction.aggregate.balance == 1 + sum(amounts)
    assert misses() == {"absent": 1, "foreign_history": 1}
    assert manager.reduce(log_id).aggregate.balance == 1 + sum(amounts)
    assert cached_version(manager, log_id) == reduction.version
    assert statistics()["hits"] == 1


@pytest.mark.parametrize("variant", [broken.WithoutProof, broken.ProofByPosition])
def test_a_broken_version_that_proves_only_the_position_uses_a_lost_reduction(
    alias, restore, variant
):
    manager = accounts(alias, variant)

    log_id = restore_and_append(manager, restore, 70, 5)

    assert manager.reduce(log_id).aggregate.balance == 46  # and the log says 76


def test_a_decider_sees_the_restored_log(alias, restore):
    manager = accounts(alias)
    log_id = restore_and_append(manager, restore, 70, 5)
    seen = []

    manager.execute(log_id, lambda account: seen.append(account.balance))

    assert seen == [76]


def test_atomic_requests_replace_an_entry_from_before_a_restore(alias, restore):
    """ATOMIC_REQUESTS: no reader is ever outside of a transaction."""
    manager = LogManager(Account, cache=alias)  # the thread
    log_id = restore_and_append(accounts(alias), restore)
    for _ in range(2):
        with transaction.atomic():
            assert manager.reduce(log_id).aggregate.balance == 1
        assert worker.flush(10)
    counters.reset()

    with transaction.atomic():
        manager.reduce(log_id)

    assert statistics()["hits"] == 1


# A state from the lost time is not accepted as expected version.


def others_append(manager: LogManager[Account]) -> None:
    """Let the log's next event have another position than the one that was lost."""
    manager.create(Opened("Bob"))


def positions_are_moved_on(manager: LogManager[Account]) -> None:
    """Do as docs/storage.md says after a restore."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                "UPDATE sqlite_sequence SET seq = seq + 1000000 WHERE name = 'eventlogs_event'"
            )
        else:
            cursor.execute(
                "SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'),"
                " nextval(pg_get_serial_sequence('eventlogs_event', 'position')) + 1000000)"
            )


@pytest.mark.parametrize("meanwhile", [others_append, positions_are_moved_on])
@pytest.mark.parametrize("amounts", [(70,), (70, 9)])
@pytest.mark.parametrize("key", [None, "k"])
def test_a_state_that_a_restore_lost_is_refused_at_the_same_version(
    alias, restore, meanwhile, amounts, key
):
    manager = accounts(alias)
    state = manager.create(Opened("Ada"), Deposited(1))
    back = restore()
    lost = manager.append(state, *(Deposited(40) for _ in amounts))
    folded = manager.reduce(state.log_id)
    cached = manager.reduce(state.log_id)
    assert statistics()["hits"] == 1
    back()
    meanwhile(manager)
    again = manager.append(state, *map(Deposited, amounts))
    assert again.version == lost.version

    for seen in (lost, folded, cached):
        for events in ([Deposited(5)], [Deposited(5), Deposited(6)]):
            with pytest.raises(ConcurrentAppend) as caught:
                manager.append(seen, *events, idempotency_key=key)
            assert caught.value.expected_version == caught.value.actual_version == again.version
            assert caught.value.expected_position == lost.position
            assert caught.value.actual_position == again.position
    today = manager.reduce(state.log_id)
    assert not today.matches(lost.etag)
    assert today.matches(again.etag)
    assert today.aggregate.balance == 1 + sum(amounts)
    assert manager.append(today, Deposited(5), idempotency_key=key).version == today.version + 1


def test_a_decider_decides_again_after_a_restore(alias, restore):
    manager = accounts(alias)
    state = manager.create(Opened("Ada"), Deposited(1))
    back = restore()
    manager.append(state, Deposited(40))
    seen = []

    def decide(account: Account):
        seen.append(account.balance)
        if len(seen) == 1:
            back()
            others_append(manager)
            manager.append(state, Deposited(70))
        yield Deposited(account.balance)

    manager.execute(state.log_id, decide)

    assert seen == [41, 71]
    assert manager.reduce(state.log_id).aggregate.balance == 142


def test_a_state_without_a_position_is_compared_by_version_only(restore):
    manager = LogManager(Account)
    state = manager.create(Opened("Ada"), Deposited(1))
    back = restore()
    manager.append(state, Deposited(40))
    back()
    others_append(manager)
    manager.append(state, Deposited(70))

    manager.append(state.log_id, Deposited(5), expected_version=3)
    manager.append(LogState(state.log_id, 4, 0), Deposited(5))

    assert manager.version(state.log_id) == 5


# A log that is erased, and one with the same id.


def erase(log_id: LogId) -> None:
    """Do as docs/storage.md says."""
    log = log_id.uuid if connection.vendor == "postgresql" else log_id.uuid.hex
    change_history(
        ("DELETE FROM eventlogs_event WHERE log_id = %s", [log]),
        ("DELETE FROM eventlogs_idempotencykey WHERE log_id = %s", [log]),
        ("DELETE FROM eventlogs_eventlog WHERE id = %s", [log]),
    )


def test_the_cached_reduction_of_an_erased_log_is_rejected(alias):
    manager = accounts(alias)
    log_id = manager.create(Opened("Ada"), Deposited(40)).log_id
    manager.reduce(log_id)
    erase(log_id)

    with pytest.raises(LogNotFound):
        manager.reduce(log_id)
    manager.create(Opened("Bob"), log_id=log_id)

    assert manager.reduce(log_id).aggregate == Account(owner="Bob")
    assert cached_version(manager, log_id) == 1
    manager.append(log_id, Deposited(3), expected_version=1)
    assert manager.reduce(log_id).aggregate == Account(owner="Bob", balance=3)


def test_a_broken_version_without_the_proof_uses_the_reduction_of_an_erased_log(alias):
    manager = accounts(alias, broken.WithoutProof)
    log_id = manager.create(Opened("Ada"), Deposited(40)).log_id
    manager.reduce(log_id)
    erase(log_id)
    manager.create(Opened("Bob"), Deposited(3), log_id=log_id)

    assert manager.reduce(log_id).aggregate == Account(owner="Ada", balance=40)


def test_a_redacted_event_is_gone_from_reductions_once_their_entry_is_deleted(alias):
    """As docs/storage.md says, the log does not show that an earlier event has changed."""
    manager = accounts(alias)
    log_id = manager.create(Opened("Ada"), Deposited(40)).log_id
    manager.reduce(log_id)
    data = "jsonb_set(data, '{owner}', '\"erased\"')"
    if connection.vendor == "sqlite":
        data = "json_set(data, '$.owner', 'erased')"
    log = log_id.uuid if connection.vendor == "postgresql" else log_id.uuid.hex
    change_history(
        (f'UPDATE eventlogs_event SET data = {data} WHERE log_id = %s AND "index" = 0', [log])
    )
    assert manager.reduce(log_id).aggregate.owner == "Ada"

    cache_for(alias).delete(manager._reductions().key(log_id))

    assert manager.reduce(log_id).aggregate == Account(owner="erased", balance=40)


# Reducing before creating, and a warm cache.


def test_reducing_a_log_before_its_creation_does_not_prevent_caching_it(alias):
    manager = accounts(alias)
    log_id = manager.new_id()
    for _ in range(3):
        with pytest.raises(LogNotFound):
            manager.reduce(log_id)

    manager.create(Opened("Ada"), log_id=log_id)

    assert manager.reduce(log_id).version == 1
    assert manager.reduce(log_id).version == 1
    assert statistics()["hits"] == 1


@pytest.mark.parametrize("refresher", [IMMEDIATE, "eventlogs.refreshers.ThreadRefresher"])
def test_reducing_a_hundred_times_changes_nothing_and_asks_the_database_once_each(alias, refresher):
    manager = LogManager(Account, cache=alias, refresher=refresher, refresh_on_append=True)
    log_id = manager.create(Opened("Ada"), *map(Deposited, range(50))).log_id
    first = manager.reduce(log_id)
    assert worker.flush(10)
    entry = cache_for(alias).get(manager._reductions().key(log_id))
    counters.reset()

    with CaptureQueriesContext(connection) as queries:
        answers = [manager.reduce(log_id) for _ in range(100)]

    assert len(queries) == 100
    assert {(each.version, each.aggregate.balance) for each in answers} == {
        (51, first.aggregate.balance)
    }
    assert statistics()["hits"] == 100
    assert (misses(), statistics()["refreshes"]) == ({}, 0)
    assert worker.flush(10)
    assert cache_for(alias).get(manager._reductions().key(log_id)) == entry


@pytest.mark.redis
@pytest.mark.parametrize(
    "backend", ["django_redis.cache.RedisCache", "django.core.cache.backends.redis.RedisCache"]
)
def test_reducing_a_hundred_times_asks_redis_once_each(settings, backend):
    with Redis() as server:
        settings.CACHES = {
            **settings.CACHES,
            "private": {"BACKEND": backend, "LOCATION": server.url},
        }
        manager = accounts("private")
        client, _ = RedisReductionCache("private").client_for("any", write=True)
        log_id = manager.create(Opened("Ada"), *map(Deposited, range(50))).log_id
        manager.reduce(log_id)
        manager.reduce(log_id)
        before = commands(client)

        for _ in range(100):
            manager.reduce(log_id)

        after = commands(client)
    assert {
        name: calls - before.get(name, 0)
        for name, calls in after.items()
        if calls != before.get(name, 0)
    } in ({"get": 100}, {"mget": 100})


def commands(client: Any) -> dict[str, int]:
    """Return how often each command was called, without this one."""
    stats = client.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): values["calls"]
        for name, values in stats.items()
        if name != "cmdstat_info"
    }


# Two releases of one aggregate class, side by side.

RELEASE = """
from dataclasses import dataclass

from eventlogs import Aggregate, EventRecord, event

VAT = {vat}


@event("till.sold")
@dataclass(frozen=True, slots=True)
class Sold:
    amount: int


@dataclass
class Till(Aggregate, log_type="till", events=[Sold]):
    total: int = 0

    def apply(self, record: EventRecord) -> None:
        self.total += record.event.amount * (100 + VAT) // 100
"""

PROCESS = """
import json, logging, sys

import django
django.setup()
from django.conf import settings
from django.db import connection
from django.utils.module_loading import import_string

from eventlogs import LogManager
from eventlogs.caches import statistics
from tillrelease import Till

connection.settings_dict["NAME"] = settings.DATABASES["default"]["TEST"]["NAME"]
manager = LogManager(Till, cache="redis", refresher="eventlogs.refreshers.ImmediateRefresher")
variant = import_string(sys.argv[1])
manager._reduction_readers["default"] = variant(Till, using="default", cache="redis")
for line in sys.stdin:
    reduction = manager.reduce(line.strip())
    answer = [reduction.version, reduction.aggregate.total, statistics()["hits"]]
    print(json.dumps(answer), flush=True)
"""


class Release(Program):
    """A process that runs one release of ``tillrelease.Till``."""

    def __init__(self, directory: Path, vat: int, variant: str) -> None:
        directory.mkdir()
        (directory / "tillrelease.py").write_text(RELEASE.format(vat=vat))
        paths = os.pathsep.join([str(directory), str(ROOT)])
        super().__init__(
            "-c", PROCESS, variant, stdin=subprocess.PIPE, environ={"PYTHONPATH": paths}
        )

    def reduce(self, log_id: LogId) -> tuple[int, int]:
        self.write_line(str(log_id))
        version, total, self.hits = json.loads(self.line())
        return version, total


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[Callable[[str], list[Release]]]:
    with ExitStack() as stack:
        yield lambda variant: [
            stack.enter_context(Release(tmp_path / f"vat{vat}", vat, variant)) for vat in (0, 20)
        ]


def interleave(releases: list[Release]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Have both releases reduce one log, in turn, while it grows; return answers and truth."""
    manager = till(0).Till.logs
    log_id = manager.create(manager.aggregate.event_types[0].cls(100)).log_id
    answers, truth = [], []
    for version in range(1, 6):
        for _ in range(2):
            for release, factor in zip(releases, (100, 120), strict=True):
                answers.append(release.reduce(log_id))
                truth.append((version, version * factor))
        manager.append(log_id, manager.aggregate.event_types[0].cls(100), expected_version=ANY)
    return answers, truth


def till(vat: int, sold: type | None = None) -> Any:
    """Return the module of a release, in this process."""
    module = ModuleType("tillrelease")
    sys.modules["tillrelease"] = module
    source = RELEASE.format(vat=vat)
    if sold is not None:
        head, _, rest = source.partition("@event")
        source = head + rest[rest.index("\n\n\n") :]
        module.__dict__["Sold"] = sold
    try:
        exec(compile(source, "tillrelease.py", "exec"), module.__dict__)
    finally:
        del sys.modules["tillrelease"]
    return module


@pytest.mark.redis
def test_two_releases_side_by_side_have_their_own_entries(releases, scratch_registry):
    both = releases("eventlogs.reductions.reader.ReductionReader")

    answers, truth = interleave(both)

    assert answers == truth
    assert [release.hits for release in both] == [5, 5]


@pytest.mark.redis
def test_releases_use_each_others_entries_without_a_fingerprint(releases, scratch_registry):
    answers, truth = interleave(releases("tests.reliability.broken.WithoutFingerprint"))

    assert answers != truth


@pytest.mark.redis
def test_releases_evict_each_others_entries_without_the_fingerprint_in_the_key(
    releases, scratch_registry
):
    both = releases("tests.reliability.broken.FingerprintNotInKey")

    answers, truth = interleave(both)

    assert answers == truth  # the entry itself names its code
    assert [release.hits for release in both] == [0, 0]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [(ReductionReader, [100, 120]), (broken.WithoutFingerprint, [100, 100])],
)
def test_classes_without_a_source_file_do_not_share_entries(
    alias, scratch_registry, variant, expected
):
    one = till(0)
    classes = [one.Till, till(20, one.Sold).Till]
    managers = [LogManager(cls, cache=alias, refresher=IMMEDIATE) for cls in classes]
    for manager in managers:
        manager._reduction_readers["default"] = variant(
            manager.aggregate, using="default", cache=alias
        )
    log_id = managers[0].create(one.Sold(100)).log_id

    for _ in range(3):
        assert [each.reduce(log_id).aggregate.total for each in managers] == expected
