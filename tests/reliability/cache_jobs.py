"""The jobs of the processes in cache campaigns: write, read, and compare with the log."""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from typing import Any, NamedTuple

from django.db import transaction
from django.utils.module_loading import import_string

from eventlogs import ANY, ConcurrentAppend, LogId, LogManager
from eventlogs.caches.backends import BaseReductionCache, statistics
from eventlogs.reductions.reader import ReductionReader
from eventlogs.reductions.worker import worker
from tests.processes import Place
from tests.reliability.ledgers import Entered, Ledger
from tests.reliability.redises import MORTAL

READER = "eventlogs.reductions.reader.ReductionReader"
WRONG = 10  # maximum number of findings of one process
ENOUGH = "enough"  # said once, by a reader that has found something or met enough
MET = 3  # reasons of misses, of those that a disturbed Redis leads to
DISTURBED = {"absent", "behind", "bad_signature", "foreign_log", "unreachable"}


class Unwanted(Exception):
    """An error that rolls a transaction back."""


class Report(NamedTuple):
    """The report of a process: its counts and findings."""

    done: int
    wrong: list[str]
    slowest: float  # seconds
    statistics: dict[str, Any]


def ledgers(variant: str = READER, cache: str = "", **options: Any) -> LogManager[Ledger]:
    """Return the ledgers on the mortal Redis; ``variant`` and ``cache`` are paths of classes."""
    kept: str | BaseReductionCache = import_string(cache)(MORTAL) if cache else MORTAL
    manager = LogManager(Ledger, cache=kept, **options)
    reader: type[ReductionReader[Any]] = import_string(variant)
    manager._reduction_readers["default"] = reader(
        Ledger, using="default", cache=kept, policy=manager._policy
    )
    return manager


class Watch:
    """Compare reductions with the log, and count them."""

    def __init__(self, manager: LogManager[Ledger]) -> None:
        self.manager = manager
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0

    def reduce(self, log_id: LogId) -> None:
        """Reduce through the cache, and by a full replay to the same version."""
        at_least = self.manager.version(log_id)
        began = time.monotonic()
        found = self.manager.reduce(log_id)
        self.slowest = max(self.slowest, time.monotonic() - began)
        truth = self.manager.reduce(log_id, version=found.version)
        if (found.aggregate, found.position) != (truth.aggregate, truth.position):
            self.wrong.append(f"{found} is not {truth}")
        if found.version < at_least:
            self.wrong.append(f"{found} is older than version {at_least}")
        self.counts["reduced"] += 1

    def has_met(self, reductions: int) -> bool:
        """Return whether it has compared so many, used entries, and had misses of some reasons."""
        counts = statistics()
        met = {reason for reason in DISTURBED if counts["misses"].get(reason)}
        used = counts["hits"] + counts["misses"]["behind"]
        return self.counts["reduced"] >= reductions and len(met) >= MET and used > 0

    def report(self) -> Report:
        worker.flush(5)
        return Report(self.counts["reduced"], self.wrong, self.slowest, statistics())


def read(place: Place, log_ids: list[LogId], reductions: int, *variant: str) -> Report:
    """
    Reduce one log after the other, and say so when that was enough: ``reductions`` at least.

    Without ``reductions``, only a finding is enough.
    """
    watch, choices = Watch(ledgers(*variant)), random.Random(f"reader {place.number}")
    has_said = False
    while not place.is_set() and len(watch.wrong) < WRONG:
        log_id = choices.choice(log_ids)
        try:
            if choices.random() < 0.1:
                with transaction.atomic():
                    watch.reduce(log_id)
            else:
                watch.reduce(log_id)
        except Exception:
            watch.wrong.append(traceback.format_exc())
        if not has_said and (watch.wrong or (reductions and watch.has_met(reductions))):
            place.say(ENOUGH)
            has_said = True
        place.wait(0.002)
    return watch.report()


def write(place: Place, log_ids: list[LogId], *variant: str) -> Report:
    """Append by every method; roll some appends back after they were reduced."""
    manager = ledgers(*variant, refresh_on_append=True)
    watch, choices = Watch(manager), random.Random(f"writer {place.number}")
    while not place.is_set() and len(watch.wrong) < WRONG:
        log_id = choices.choice(log_ids)
        try:
            _write_once(watch, log_id, choices)
        except (Unwanted, ConcurrentAppend):
            watch.counts["taken back"] += 1
        except Exception:
            watch.wrong.append(traceback.format_exc())
        place.wait(choices.random() * 0.03)
    return watch.report()


def _write_once(watch: Watch, log_id: LogId, choices: random.Random) -> None:
    text = f"{choices.random()}"
    match choices.randrange(5):
        case 0:
            watch.manager.append(log_id, Entered(text), expected_version=ANY)
        case 1:
            watch.manager.append(log_id, Entered(text), Entered("and"), expected_version=ANY)
        case 2:
            watch.manager.execute(log_id, lambda ledger: [Entered(text, ledger.entries)])
        case 3:
            with transaction.atomic():
                watch.manager.append(log_id, Entered(text), expected_version=ANY)
                watch.reduce(log_id)
        case 4:
            with transaction.atomic():
                watch.manager.append(log_id, Entered(text), expected_version=ANY)
                watch.reduce(log_id)
                raise Unwanted
