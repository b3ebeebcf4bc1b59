"""
Reductions are right while Redis fails and its values are corrupted.

Writers and readers work while Redis is emptied, stopped, hung and filled with wrong values. Each
reduction equals a full replay at its version, no caller gets an error, and in the end the cache
has hits again.
"""

from __future__ import annotations

import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from eventlogs import LogId, LogManager
from eventlogs.caches.backends import statistics
from eventlogs.caches.counters import counters
from eventlogs.caches.entries import SIGNATURE_BYTES, version_in
from eventlogs.reductions.worker import worker
from tests.processes import PATIENCE, Process, Processes
from tests.processes.waiting import stories
from tests.races import COMMITS
from tests.reliability import cache_jobs
from tests.reliability.cache_jobs import ENOUGH, READER, Report, ledgers
from tests.reliability.ledgers import Entered, Ledger
from tests.reliability.redises import MortalRedis

pytestmark = [pytest.mark.redis, COMMITS]

BROKEN = "tests.reliability.broken."
LENGTHS = (1, 3, 20, 20, 600)  # events; the last log is long enough for the lock between processes


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Corrupter:
    """Overwrites our entries in a Redis with values that are not."""

    def __init__(self, client: Any, bomb: Path, choices: random.Random) -> None:
        self.client = client
        self.bomb = pickle.dumps(Bomb(bomb))
        self.choices = choices
        self.seen: dict[bytes, list[bytes]] = {}  # earlier genuine entries, by key
        self.kinds: list[Callable[[bytes, bytes], bytes | None]] = [
            self.garbage,
            self.cut_off,
            self.of_another_log,
            self.flipped,
            self.other_state,
            self.badly_signed,
            self.older,
            self.bomb_under,
            self.other_version,
            self.of_another_type,
        ]

    def entries(self) -> list[tuple[bytes, bytes]]:
        found = []
        for key in self.client.scan_iter("*eventlogs.reduction.*"):
            if (
                key.endswith((b".lock", b".sent", b".declined"))
                or self.client.type(key) != b"string"
            ):
                continue
            value = self.client.get(key)
            if value is not None:
                found.append((key, value))
        return found

    def corrupt(self) -> int:
        """Corrupt the value of each of our keys, and return how many were written."""
        written = 0
        for key, entry in self.entries():
            if version_in(entry) > 0:
                self.seen.setdefault(key, []).append(entry)
            value = self.choices.choice(self.kinds)(key, entry)
            if value is not None:
                self.client.set(key, value)
                written += 1
        return written

    def garbage(self, key: bytes, entry: bytes) -> bytes:
        return self.choices.randbytes(self.choices.choice((0, 1, 8, 40, 500)))

    def cut_off(self, key: bytes, entry: bytes) -> bytes:
        return entry[: self.choices.randrange(len(entry) or 1)]

    def of_another_log(self, key: bytes, entry: bytes) -> bytes:
        return self.choices.choice(self.choices.choice(list(self.seen.values()) or [[entry]]))

    def flipped(self, key: bytes, entry: bytes) -> bytes:
        if not entry:
            return b"\0"
        at = self.choices.randrange(len(entry))
        return entry[:at] + bytes([entry[at] ^ 1 << self.choices.randrange(8)]) + entry[at + 1 :]

    def other_state(self, key: bytes, entry: bytes) -> bytes:
        """Change a digit of the aggregate: still an entry, but for the signature."""
        body = entry[:-SIGNATURE_BYTES]
        return body.replace(b'"entries":', b'"entries":1') + entry[-SIGNATURE_BYTES:]

    def badly_signed(self, key: bytes, entry: bytes) -> bytes:
        return entry[:-SIGNATURE_BYTES] + self.choices.randbytes(SIGNATURE_BYTES)

    def older(self, key: bytes, entry: bytes) -> bytes:
        return self.choices.choice(self.seen.get(key, [entry]))

    def bomb_under(self, key: bytes, entry: bytes) -> bytes:
        return self.bomb

    def other_version(self, key: bytes, entry: bytes) -> bytes:
        return entry[:3] + b"\x7f\xff\xff\xff" + entry[7:]

    def of_another_type(self, key: bytes, entry: bytes) -> None:
        with self.client.pipeline() as together:
            together.delete(key)
            together.lpush(key, b"a list")
            together.execute()


CYCLE = 20  # steps, after which each kind of disturbance has been there


def disturb(server: MortalRedis, corrupter: Corrupter, is_over: Callable[[int, int], bool]) -> int:
    """
    Disturb Redis in every way until ``is_over(steps, written)``.

    Return how many values were corrupted.
    """
    written, step, last = 0, 0, time.monotonic() + PATIENCE
    while not is_over(step, written):
        assert time.monotonic() < last, stories(f"{step} steps and {written} values: no end")
        step += 1
        match step % CYCLE:
            case 1 | 9 | 17:
                corrupter.client.flushall()
            case 5:
                server.stop(signal.SIGKILL if step % (2 * CYCLE) == 5 else signal.SIGTERM)
                time.sleep(0.2)
                server.start()
            case 12:
                server.hang()
                time.sleep(0.5)
                server.wake()
            case _:
                written += corrupter.corrupt()
        time.sleep(corrupter.choices.random() * 0.2)
    return written


@pytest.fixture
def server() -> Iterator[MortalRedis]:
    with MortalRedis() as server, override_settings(CACHES=server.caches):
        counters.reset()
        yield server


def new_logs() -> list[LogId]:
    manager = LogManager(Ledger)
    return [
        manager.create(*(Entered(f"{number}") for number in range(length))).log_id
        for length in LENGTHS
    ]


def campaign(
    server: MortalRedis,
    log_ids: list[LogId],
    bomb: Path,
    size: int,
    *variant: str,
    reductions: int = 0,
    cycles: int = 0,
) -> tuple[list[Report], int]:
    """
    Have writers and readers at work while Redis is disturbed; return their reports.

    The end comes with events, not with time, so that a busy machine finds as much: after so many
    cycles, once each reader has made ``reductions`` and met enough. A variant ends at the first
    finding of a reader.
    """
    settings = {"CACHES": server.caches}
    with Processes(settings=settings) as team, server.client() as client:
        writers = team.line_up(size, cache_jobs.write, log_ids, *variant)
        readers = team.line_up(size, cache_jobs.read, log_ids, reductions, *(variant or [READER]))
        team.go()
        enough = all if reductions else any

        def is_over(steps: int, written: int) -> bool:
            return (
                steps >= cycles * CYCLE
                and written >= 10 * cycles
                and enough(reader.pipe.poll() for reader in readers)
            )

        written = disturb(server, Corrupter(client, bomb, random.Random()), is_over)
        for process in writers + readers:
            process.tell_to_end()
        return [report_of(process) for process in writers + readers], written


def report_of(process: Process) -> Report:
    """Return the report of a process, after what else it may have said."""
    while (said := process.heard()) == ENOUGH:
        pass
    process.join()
    assert isinstance(said, Report)
    return said


def converge(log_ids: list[LogId], manager: LogManager[Ledger]) -> None:
    """Read as readers do, so that the cached reductions equal the logs."""
    for _ in range(2):
        for log_id in log_ids:
            manager.reduce(log_id)
        assert worker.flush(20)


@pytest.mark.parametrize(("cycles", "size"), [(1, 3), pytest.param(10, 8, marks=pytest.mark.long)])
def test_each_reduction_equals_the_log_while_redis_is_corrupted(
    server, tmp_path, cycles, size, record_property
):
    log_ids, bomb = new_logs(), tmp_path / "bomb"

    reports, written = campaign(server, log_ids, bomb, size, reductions=20 * cycles, cycles=cycles)

    record_property("corrupted", written)
    record_property("slowest", max(report.slowest for report in reports))
    for report in reports:
        record_property("report", str(report))

    assert [wrong for report in reports for wrong in report.wrong] == []
    assert not bomb.exists()


def test_after_corruption_the_cache_converges_and_has_hits_again(server, tmp_path):
    log_ids, bomb, manager = new_logs(), tmp_path / "bomb", ledgers()
    converge(log_ids, manager)
    with server.client() as client:
        corrupter = Corrupter(client, bomb, random.Random(1))
        for kind in corrupter.kinds:
            corrupter.kinds = [kind]
            assert corrupter.corrupt() or kind == corrupter.of_another_type, kind
            converge(log_ids, manager)
            counters.reset()

            found = [manager.reduce(log_id) for log_id in log_ids]

            assert statistics()["hits"] == len(log_ids), kind
            truth = [manager.reduce(log_id, fresh=True) for log_id in log_ids]
            assert [each.aggregate for each in found] == [each.aggregate for each in truth]
    assert not bomb.exists()


@pytest.mark.parametrize("variant", ["WithoutSignature"])
def test_a_broken_version_that_uses_corrupted_entries_is_found(server, tmp_path, variant):
    reports, _ = campaign(server, new_logs(), tmp_path / "bomb", 2, BROKEN + variant)

    assert any(report.wrong for report in reports), "no reader used a corrupted entry"


def test_a_broken_version_that_reads_pickles_is_found(server, tmp_path):
    log_ids, bomb = new_logs(), tmp_path / "bomb"
    variant = (READER, BROKEN + "Pickles")
    manager = ledgers(*variant)
    converge(log_ids, manager)
    with server.client() as client:
        corrupter = Corrupter(client, bomb, random.Random(1))
        corrupter.kinds = [corrupter.bomb_under]
        corrupter.corrupt()

    for log_id in log_ids:
        manager.reduce(log_id)

    assert bomb.exists()
