"""What the campaigns about projections share: workers as processes, histories, the truth."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, connections

from eventlogs import ANY, ConcurrentAppend, LogId
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.management.test_eventlogs import ROOT
from tests.projections.readmodels import Balance

WORKER = "tests.reliability.projection_worker"
QUICK = {"timeout": 1.0, "grace": 0.3, "backoff": 0.05}


class Workers:
    """Worker processes; what is left of them is killed in the end."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        self.started = 0

    def start(self, *names: str, **told: Any) -> subprocess.Popen[bytes]:
        """Start a worker; see ``projection_worker`` for what it can be told."""
        told = {**QUICK, "names": names or ("balances",), **told}
        database = str(connection.settings_dict["NAME"])
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER, database, json.dumps(told)],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        self.running.append(process)
        self.started += 1
        return process

    def stop(self) -> None:
        """Let all of them end as they should."""
        for each in self.running:
            each.send_signal(signal.SIGCONT)
            each.terminate()
        for each in self.running:
            assert each.wait(30) in (0, -signal.SIGTERM, -signal.SIGKILL), each.args
        self.running.clear()

    def kill(self) -> None:
        """End all of them at once."""
        for each in self.running:
            each.kill()
            each.wait()
        self.running.clear()


@contextmanager
def workers() -> Iterator[Workers]:
    """Give a place to start workers from."""
    crew = Workers()
    try:
        yield crew
    finally:
        crew.kill()


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> bool:
    """Wait until something is so; return whether it is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def new_accounts(count: int) -> list[LogId]:
    """Return new logs of accounts."""
    return [Account.logs.create(Opened(f"owner {each}")).log_id for each in range(count)]


def append_some(log_ids: list[LogId], count: int, choices: random.Random) -> None:
    """Append events to logs at random."""
    for _ in range(count):
        amount = choices.randrange(1, 1_000)
        event = Deposited(amount) if choices.random() < 0.6 else Withdrawn(amount)
        Account.logs.append(choices.choice(log_ids), event, expected_version=ANY)


def write(stop: Any, number: int, log_ids: list[LogId]) -> int:
    """Append until told to stop; the job of a process, see ``team``."""
    choices, count = random.Random(f"writer {number}"), 0
    while not stop.is_set():
        try:
            append_some(log_ids, 1, choices)
            count += 1
        except ConcurrentAppend:
            continue
        time.sleep(0.002)
    connections.close_all()
    return count


def wrong(model: Any = Balance) -> list[str]:
    """Return in what the rows differ from a replay; an event that counts twice, or not at all."""
    found = []
    rows = {row.pk: row for row in model.objects.all()}
    for log in logs():
        row, balance, seen = rows.pop(log, None), 0, 0
        for record in Account.logs.stream(log):
            seen += 1
            if isinstance(record.event, Deposited):
                balance += record.event.amount
            elif isinstance(record.event, Withdrawn):
                balance -= record.event.amount
        if row is None:
            found.append(f"{log} has no row")
        elif (row.balance, row.seen) != (balance, seen):
            found.append(f"{log}: {row.seen} events seen of {seen}, {row.balance} of {balance}")
    return found + [f"{log} has a row and no log" for log in rows]


def logs() -> list[LogId]:
    """Return all logs of accounts."""
    from eventlogs.models import EventLog

    return [log.log_id for log in EventLog.objects.of_type("account")]
