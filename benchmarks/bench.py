"""Shared by the benchmarks: a scratch database, client processes, pgbench, the table."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from benchmarks.machine import usage, watch
from benchmarks.ratios import kept_rounds, ratios, spread
from benchmarks.tables import Row

SCRATCH = os.environ.get("BENCHMARK_DATABASE", "eventlogs_benchmarks")
CLIENTS = 8
SECONDS = float(os.environ.get("BENCHMARK_SECONDS", "1"))  # of each window
ROUNDS = int(os.environ.get("BENCHMARK_ROUNDS", "15"))  # of a contest
SCALE = float(os.environ.get("BENCHMARK_SCALE", "1"))  # of the numbers of logs and events
LONG_ROUNDS = max(1, ROUNDS // 3)  # of measures with their own duration


def server_url() -> str:
    """Return DATABASE_URL, or stop with what to do."""
    url = os.environ.get("DATABASE_URL", "")
    if not url.startswith("postgres"):
        sys.exit("Set DATABASE_URL to a PostgreSQL server, e.g. postgresql://postgres@localhost/.")
    return url


def scratch_url() -> str:
    """Return the URL of the benchmarks' own database."""
    return urlunsplit(urlsplit(server_url())._replace(path=f"/{SCRATCH}"))


@contextmanager
def databases(*names: str) -> Iterator[None]:
    """Create databases beside the scratch one, for the block."""
    with psycopg.connect(server_url(), autocommit=True) as connection:

        def drop() -> None:
            for name in names:
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

        drop()
        try:
            for name in names:
                connection.execute(f"CREATE DATABASE {name}")
            yield
        finally:
            drop()


def configure() -> None:
    """Set Django up on the scratch database; in every process."""
    import django
    from django.conf import settings

    if not settings.configured:
        with closing(psycopg.connect(scratch_url(), connect_timeout=5)) as connection:
            info = connection.info
            where = {"HOST": info.host, "PORT": info.port, "USER": info.user}
            where["PASSWORD"] = info.password
        settings.configure(
            SECRET_KEY="benchmarks",
            CACHES=_caches(),
            EVENTLOGS=json.loads(os.environ.get("BENCHMARK_SETTINGS", "{}")),
            USE_TZ=True,
            ALLOWED_HOSTS=["testserver"],
            ROOT_URLCONF="benchmarks.urls",
            STATIC_URL="static/",
            INSTALLED_APPS=[
                "django.contrib.admin",
                "django.contrib.auth",
                "django.contrib.contenttypes",
                "django.contrib.messages",
                "django.contrib.sessions",
                "django.contrib.staticfiles",
                "eventlogs",
            ],
            MIDDLEWARE=[
                "django.middleware.security.SecurityMiddleware",
                "django.contrib.sessions.middleware.SessionMiddleware",
                "django.middleware.common.CommonMiddleware",
                "django.middleware.csrf.CsrfViewMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "django.contrib.messages.middleware.MessageMiddleware",
            ],
            TEMPLATES=[
                {
                    "BACKEND": "django.template.backends.django.DjangoTemplates",
                    "APP_DIRS": True,
                    "OPTIONS": {
                        "context_processors": [
                            "django.template.context_processors.request",
                            "django.contrib.auth.context_processors.auth",
                            "django.contrib.messages.context_processors.messages",
                        ]
                    },
                }
            ],
            DATABASES={
                "default": {
                    "ENGINE": "django.db.backends.postgresql",
                    "NAME": SCRATCH,
                    **where,
                }
            },
        )
        django.setup()


def _caches() -> dict[str, Any]:
    local = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    if "REDIS_URL" not in os.environ:
        return local
    redis = {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": os.environ["REDIS_URL"],
        "KEY_PREFIX": SCRATCH,
        "OPTIONS": {"SOCKET_TIMEOUT": 2, "SOCKET_CONNECT_TIMEOUT": 2},  # seconds
    }
    return {**local, "redis": redis}


def redis_url() -> str:
    """Return REDIS_URL, or stop with what to do."""
    url = os.environ.get("REDIS_URL", "")
    if not url:
        sys.exit("Set REDIS_URL to a Redis server, e.g. redis://localhost:6379/15.")
    return url


def make_scratch() -> None:
    """Create the scratch database again, migrated."""
    drop_scratch()
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {SCRATCH}")
    configure()
    from django.core.management import call_command
    from django.db import connections

    connections.close_all()  # those to the database that was there before
    call_command("migrate", verbosity=0)


def drop_scratch() -> None:
    """Remove the scratch database."""
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {SCRATCH} WITH (FORCE)")


@cache
def client_environment() -> dict[str, str]:
    """Return the environment of client processes: that of this one, with the database."""
    with closing(psycopg.connect(scratch_url(), connect_timeout=5)) as connection:
        info = connection.info
        where = {"PGHOST": info.host, "PGPORT": str(info.port), "PGUSER": info.user}
        where |= {"PGPASSWORD": info.password, "PGDATABASE": SCRATCH}
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **where, "PYTHONPATH": path.rstrip(os.pathsep)}


@cache
def server_pids() -> tuple[int, ...]:
    """Return the pids of PostgreSQL's and Redis' main processes, as far as they run here."""
    found = []
    with psycopg.connect(server_url()) as connection:
        [[backend]] = connection.execute("SELECT pg_backend_pid()").fetchall()
        if is_named(backend, "postgres"):
            found.append(usage().of_each[backend][0])
    if "REDIS_URL" in os.environ:
        import redis

        with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
            pid = int(client.info("server")["process_id"])
        if is_named(pid, "redis") or is_named(pid, "valkey"):
            found.append(pid)
    return tuple(found)


def is_named(pid: int, name: str) -> bool:
    """Return whether a process of this machine has a name that begins so."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").startswith(name)
    except OSError:
        return False


def server_facts() -> str:
    """Return a line about the server and the interpreter of its clients."""
    with psycopg.connect(server_url()) as connection:
        facts = [
            connection.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
            for name in ("server_version", "fsync", "synchronous_commit")
        ]
    server = "PostgreSQL {}, fsync {}, synchronous_commit {}".format(*facts)
    return f"{server}, Python {platform.python_version()}, {os.cpu_count()} CPUs"


def pgbench(script: str, *, payload: str, seconds: float = SECONDS) -> float:
    """Return the transactions per second of a pgbench script, prepared, at eight clients."""
    program = find_program("pgbench")
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [
            program,
            "--no-vacuum",
            "--protocol=prepared",
            f"--client={CLIENTS}",
            "--jobs=2",
            f"--time={max(1, round(seconds))}",
            f"--file={file.name}",
            "--define=n=0",
            f"--define=payload={payload}",
            scratch_url(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("tps = "):
            return float(line.split()[2])
    sys.exit(f"pgbench failed: {done.stderr.strip()}")


@cache
def find_program(name: str) -> str:
    """Return the path of a client program of PostgreSQL."""
    program = shutil.which(name) or _beside_pg_config(name)
    if program is None:
        sys.exit(f"{name} is not installed: install PostgreSQL's client programs.")
    return program


def _beside_pg_config(name: str) -> str | None:
    config = shutil.which("pg_config")
    if config is None:
        return None
    bindir = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
    program = Path(bindir.stdout.strip()) / name
    return str(program) if program.exists() else None


def clients(work: Callable[[], Callable[[], Any]], *, seconds: float = SECONDS) -> float:
    """
    Return the calls per second of ``work()()`` in eight processes.

    ``work`` is called once in each, and its result is called repeatedly.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(CLIENTS)
    answers = context.Queue()
    processes = [
        context.Process(target=_client, args=(work, barrier, answers, seconds))
        for _ in range(CLIENTS)
    ]
    for process in processes:
        process.start()
    rates = [answers.get(timeout=seconds + 300) for _ in processes]
    for process in processes:
        process.join()
    return float(sum(rates))


def _client(work: Any, barrier: Any, answers: Any, seconds: float) -> None:
    configure()
    call = work()
    for _ in range(20):
        call()  # connect and prepare
    barrier.wait()
    answers.put(calls_per_second(call, seconds))


def calls_per_second(call: Callable[[], Any], seconds: float) -> float:
    """Return the calls per second in this process."""
    count = 0
    begin = now = time.perf_counter()
    while now - begin < seconds:
        call()
        count += 1
        now = time.perf_counter()
    return count / (now - begin)


def in_new_process(measure: Callable[..., float], *args: Any) -> float:
    """Return the result of ``measure`` in a new process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=configure) as pool:
        return pool.apply(measure, args)


def in_turns(*measures: Callable[[], float], rounds: int = LONG_ROUNDS) -> list[list[float]]:
    """Return the results of each measure, taken in turns."""
    results: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, found in zip(measures, results, strict=True):
            before = usage()
            found.append(measure())
            watch.saw(before, usage(), os.getpid(), *server_pids())
    return results


ROWS: list[Row] = []  # of this run
DROPPED: dict[str, tuple[int, int]] = {}  # by part: rounds that do not count, and all of them
part = ""  # the name of the benchmark that runs
beside = ""  # the name of what `report` compares with, set by `heading`


def keep(row: Row) -> None:
    """Keep a row for the table."""
    ROWS.append(row._replace(part=part))


def dropped(count: int, rounds: int) -> None:
    """Keep how many rounds of a contest do not count."""
    before = DROPPED.get(part, (0, 0))
    DROPPED[part] = (before[0] + count, before[1] + rounds)
    if count:
        print(f"{count} of {rounds} rounds are dropped: their limit was slow", flush=True)


def report(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
    target: float | None = None,
    *,
    cpu: tuple[float, float] | None = None,
    note: str = "",
) -> bool:
    """
    Print and keep a row: medians, and the median and quartiles of the ratios of each round.

    Rounds in which ``theirs`` was slow do not count. ``cpu`` is the seconds of processor time for
    one, of the client and of the server.
    """
    rounds = kept_rounds(theirs)
    ratio = spread(ratios(ours, theirs, rounds))
    measured, limit = (spread([rates[n] for n in rounds]).median for rates in (ours, theirs))
    reached = target is None or ratio.median >= target
    verdict = "" if target is None else f">= {target:g} {'reached' if reached else 'MISSED'}"
    used = "" if cpu is None else f"{cpu[0] * 1e6:,.0f} + {cpu[1] * 1e6:,.0f}"
    print(
        f"{name:<44} {measured:>11,.0f} {limit:>11,.0f} {unit:<11} {ratio!s:<18} {used:>13} "
        f"{verdict}{note and '  '}{note}".rstrip(),
        flush=True,
    )
    keep(
        Row(
            name,
            f"{measured:,.0f} {unit}" + (f"; {note}" if note else ""),
            f"{beside}: {limit:,.0f}",
            str(ratio),
            "" if target is None else f"at least {target:g}" + ("" if reached else ", missed"),
            used,
            ratio,
        )
    )
    return reached


def figure(
    name: str,
    value: float,
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    digits: int = 0,
) -> bool:
    """Print and keep a row without a ratio; return whether ``value`` is within its bounds."""
    reached = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    target = ""
    if at_least is not None:
        target = f"at least {at_least:,g}"
    elif at_most is not None:
        target = f"at most {at_most:,g}"
    verdict = target and f"{target} {'reached' if reached else 'MISSED'}"
    print(f"{name:<44} {value:>11,.{digits}f} {unit:<21} {verdict}", flush=True)
    missed = "" if reached else ", missed"
    keep(Row(name, f"{value:,.{digits}f} {unit}".strip(), "", "", target + missed))
    return reached


def left_out(name: str, why: str) -> None:
    """Print and keep a row for a figure that could not be measured."""
    why = " ".join(why.split())
    print(f"{name:<44} left out: {why}", flush=True)
    keep(Row(name, f"left out: {why}", "", "", ""))


def heading(ours: str, theirs: str) -> None:
    """Print the heading of rows that compare ``ours`` with ``theirs``."""
    global beside
    beside = theirs
    print(
        f"\n{'':<44} {ours:>11} {theirs:>11} {'':<11} {'ratio (quartiles)':<18} {'µs of CPU':>13}",
        flush=True,
    )
