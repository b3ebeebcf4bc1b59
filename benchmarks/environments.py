"""
Environments of the packages that eventlogs is compared with, each made once in .benchmarks/.

Their Python is that of the benchmarks, so that nobody has a faster one. An environment that cannot
be made leaves its contestants out, with a line in the table that says why.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import client_environment
from benchmarks.contests import CHECKOUT, Absent, BenchmarkFailed, Contestant, Team

PLACE = Path(os.environ.get("BENCHMARK_ENVIRONMENTS", CHECKOUT / ".benchmarks"))
TIMEOUT = 600  # seconds, to install one


class Peer(NamedTuple):
    """Something to compare with."""

    name: str
    module: str  # in benchmarks/peers/
    requirements: tuple[str, ...]

    @property
    def distribution(self) -> str:
        """The distribution whose version the table shows."""
        return self.requirements[0].partition("[")[0].partition("=")[0].partition(">")[0]


BY_HAND = Peer(
    "plain Django by hand",
    "by_hand",
    (f"Django=={version('Django')}", f"psycopg[binary]=={version('psycopg')}"),
)
EVENTSOURCING = Peer(
    "eventsourcing",
    "eventsourcing_postgres",
    ("eventsourcing[postgres]>=9.5,<9.6", f"psycopg[binary]=={version('psycopg')}"),
)
EVENTSOURCING_DJANGO = Peer(
    "eventsourcing-django",
    "eventsourcing_django",
    ("eventsourcing-django>=0.6,<0.7", "psycopg[binary]>=3.2"),  # takes its own Django
)

VERSIONS: dict[str, str] = {}  # by distribution, of the environments that were used


def python_of(peer: Peer) -> str:
    """Return the interpreter of a peer's environment, which is made where there is none."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    told = "\n".join([base, sys.version, *peer.requirements])
    place = PLACE / f"{peer.module}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        print(f"making an environment: {', '.join(peer.requirements)}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
        run([base, "-m", "venv", str(place)])
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run([str(python), *install, *peer.requirements])
        (place / "ready").touch()
    ask = f"from importlib.metadata import version; print(version({peer.distribution!r}))"
    VERSIONS[peer.distribution] = run([str(python), "-c", ask]).strip()
    return str(python)


def run(command: Sequence[str], **variables: str) -> str:
    """Run a command and return what it prints; raise BenchmarkFailed with its last line."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            cwd=CHECKOUT,
            env={**client_environment(), **variables},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkFailed(str(error)) from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        raise BenchmarkFailed(f"{' '.join(command[:4])}: {lines[-1]}")
    return done.stdout


def contestants_of(
    stack: ExitStack, peer: Peer, functions: Mapping[str, str]
) -> dict[str, Contestant]:
    """Return a peer's contestants: name and function in its module. ``stack`` ends its clients."""
    module = f"benchmarks.peers.{peer.module}"
    try:
        python = python_of(peer)
        run([python, "-c", f"import {module} as peer; peer.create_tables()"])
        team = stack.enter_context(Team(python=python, setup=""))
        return {name: team.work(f"{module}:{function}") for name, function in functions.items()}
    except BenchmarkFailed as error:
        return dict.fromkeys(functions, Absent(str(error)))
