"""
Contestants beside their limit: persistent clients, who take turns in short windows.

All processes of a contest are started, connected and warm before its first window. In a round,
each contestant and the limit work for one window, in an order that is drawn anew. See ratios.py
for what becomes of the rounds::

    with Team() as team, Limit(insert(1), table=BARE) as limit:
        found = contest({"single": team.work("benchmarks.appends:one_append"), "limit": limit})
    report_contest("single appends", found, "single", "appends/s", target=0.5)
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import psycopg

from benchmarks.bench import (
    CLIENTS,
    ROUNDS,
    SECONDS,
    client_environment,
    dropped,
    find_program,
    left_out,
    report,
    scratch_url,
    server_pids,
)
from benchmarks.machine import Usage, usage, watch
from benchmarks.ratios import Contest, Window

CHECKOUT = Path(__file__).resolve().parent.parent
PATIENCE = 300.0  # seconds, for a client to get ready, or to answer after its window
SETTLING = 0.02  # seconds, for transactions that run when a limit is stopped


class BenchmarkFailed(Exception):
    """A contestant cannot continue; the message says why."""


class Contestant(Protocol):
    """Something that works for a window."""

    def window(self, seconds: float) -> Window: ...


class Team:
    """Client processes of one environment, which can do several kinds of work in turn."""

    def __init__(
        self,
        *,
        clients: int = CLIENTS,
        setup: str = "benchmarks.bench:configure",
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.processes = [
            subprocess.Popen(
                [python, "-m", "benchmarks.client_process", setup],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=CHECKOUT,
                env={**client_environment(), **(env or {})},
                text=True,
            )
            for _ in range(clients)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()

    def work(self, name: str, *arguments: Any) -> Work:
        """Let all clients get ready for "module:function", and return it as a contestant."""
        key = f"{name}{arguments}"
        self.ask({"prepare": name, "as": key, "arguments": arguments})
        return Work(self, key)

    def ask(self, request: dict[str, Any], seconds: float = 0.0) -> list[dict[str, Any]]:
        """Send a line to all, and return what each answers."""
        line = json.dumps(request) + "\n"
        for process in self.processes:
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:  # its earlier output is read below
                pass
        deadline = time.monotonic() + seconds + PATIENCE
        return [self._answer(process, deadline) for process in self.processes]

    def _answer(self, process: subprocess.Popen[str], deadline: float) -> dict[str, Any]:
        assert process.stdout is not None
        wait = max(0.0, deadline - time.monotonic())
        if not select.select([process.stdout], [], [], wait)[0]:
            raise BenchmarkFailed("a client does not answer")
        line = process.stdout.readline()
        if not line:
            raise BenchmarkFailed(f"a client ended with status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            print(answer["error"], file=sys.stderr, flush=True)
            raise BenchmarkFailed(answer["error"].strip().splitlines()[-1])
        return answer


class Work:
    """A kind of work that the clients of a team are ready for."""

    def __init__(self, team: Team, key: str) -> None:
        self.team, self.key = team, key

    def window(self, seconds: float) -> Window:
        """Let all clients work at the same time."""
        before = usage()
        begin = time.monotonic() + 0.01
        answers = self.team.ask({"run": self.key, "begin": begin, "end": begin + seconds}, seconds)
        after = saw(before)
        done = sum(answer["done"] for answer in answers)
        return Window(
            sum(answer["done"] / answer["seconds"] for answer in answers),
            sum(answer["failed"] for answer in answers),
            sum(answer["cpu"] for answer in answers) / max(1, done),
            server_seconds(before, after) / max(1, done),
        )


class Limit:
    """
    A script that pgbench runs, prepared, and that inserts rows into a table with an identity.

    One pgbench lives as long as the contest, and is stopped between windows: its connections stay
    warm like everybody's. What it has inserted is read from the table's sequence.
    """

    def __init__(
        self,
        script: str,
        *,
        table: str,
        rows: int = 1,
        clients: int = CLIENTS,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.rows = rows  # by each transaction
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".sql"))
            file.write(script)
            file.flush()
            self.connection = stack.enter_context(psycopg.connect(scratch_url(), autocommit=True))
            [[self.sequence]] = self.connection.execute(
                "SELECT pg_get_serial_sequence(%s, 'position')", [table]
            ).fetchall()
            self.errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            self.process = subprocess.Popen(
                [
                    find_program("pgbench"),
                    *("--no-vacuum", "--protocol=prepared", "--time=1000000"),
                    *(f"--client={clients}", f"--jobs={min(2, clients)}"),
                    f"--file={file.name}",
                    *(f"--define={name}={value}" for name, value in (variables or {}).items()),
                    scratch_url(),
                ],
                stdout=self.errors,
                stderr=self.errors,
                # A process group of its own: the kernel sends SIGHUP and SIGCONT to a stopped one
                # when its parent dies, whatever killed that.
                process_group=0,
            )
            stack.callback(self._end)
            self._warm_up()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _warm_up(self) -> None:
        begin, until = self.count(), time.monotonic() + PATIENCE
        while self.count() < begin + 200 * self.rows:
            self._check()
            if time.monotonic() > until:
                raise BenchmarkFailed("pgbench does not begin")
            time.sleep(0.02)
        self.process.send_signal(signal.SIGSTOP)

    def _check(self) -> None:
        if self.process.poll() is not None:
            self.errors.seek(0)
            lines = [line for line in self.errors if "ERROR" in line or "error" in line]
            raise BenchmarkFailed(f"pgbench failed: {''.join(lines[:1]).strip()}")

    def count(self) -> int:
        """Return how many rows the sequence has numbered."""
        [[last]] = self.connection.execute(f"SELECT last_value FROM {self.sequence}").fetchall()
        return int(last)

    def window(self, seconds: float) -> Window:
        """Let pgbench go on for a while."""
        self._check()
        before, first = usage(), self.count()
        begin = time.monotonic()
        self.process.send_signal(signal.SIGCONT)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGSTOP)
        took = time.monotonic() - begin
        # A running transaction is counted as a whole, to the limit's advantage.
        time.sleep(SETTLING)
        self._check()
        done = (self.count() - first) / self.rows
        after = saw(before)
        of_client = after.of_family(self.process.pid) - before.of_family(self.process.pid)
        return Window(
            done / took,
            client_cpu=of_client / max(1, done),
            server_cpu=server_seconds(before, after) / max(1, done),
        )


@dataclass
class Local:
    """Work of this process: a function that returns a rate, with its own duration."""

    measure: Any

    def window(self, seconds: float) -> Window:
        """Measure once."""
        before = usage()
        rate = self.measure()
        saw(before)
        return Window(rate)


@dataclass
class Absent:
    """A contestant that could not be made."""

    why: str

    def window(self, seconds: float) -> Window:
        """Say why."""
        raise BenchmarkFailed(self.why)


def saw(before: Usage) -> Usage:
    """Tell the watch of a window that ends now."""
    after = usage()
    watch.saw(before, after, os.getpid(), *server_pids())
    return after


def server_seconds(before: Usage, after: Usage) -> float:
    """Return the usage of the servers' processes; 0 if they are not visible."""
    servers = server_pids()
    return after.of_family(*servers) - before.of_family(*servers)


def contest(
    contestants: Mapping[str, Contestant],
    *,
    limit: str = "limit",
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> Contest:
    """
    Let contestants take turns, and return their windows.

    A contestant that cannot go on is left out from then on, unless it is the limit.
    """
    found = Contest({name: [] for name in contestants}, limit)
    for _ in range(rounds):
        order = [name for name in contestants if name not in found.failures]
        random.shuffle(order)
        taken: dict[str, Window] = {}
        for name in order:
            try:
                taken[name] = contestants[name].window(seconds)
            except BenchmarkFailed as error:
                if name == limit:
                    raise
                found.failures[name] = str(error)
        for name, window in taken.items():
            found.windows[name].append(window)
    dropped(found.dropped, rounds)
    return found


def report_contest(
    what: str,
    found: Contest,
    name: str,
    unit: str,
    target: float | None = None,
    *,
    beside: str | None = None,
) -> bool:
    """Print and keep the row of a contestant, beside the limit or another contestant."""
    if name not in found.windows:
        return target is None
    if name in found.failures:
        left_out(what, found.failures[name])
        return target is None
    failed, others = found.failed(name), found.failed(beside or found.limit)
    return report(
        what,
        found.rates(name),
        found.rates(beside or found.limit),
        unit,
        target,
        cpu=found.cpu(name),
        note=f"{failed:,} failed, {others:,} of those beside" if failed or others else "",
    )
