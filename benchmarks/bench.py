"""What the benchmarks share: a scratch database, client processes, pgbench, the table."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg

SCRATCH = os.environ.get("BENCHMARK_DATABASE", "eventlogs_benchmarks")
CLIENTS = 8
SECONDS = float(os.environ.get("BENCHMARK_SECONDS", "5"))  # of each measurement
ROUNDS = int(os.environ.get("BENCHMARK_ROUNDS", "5"))


def server_url() -> str:
    """Return DATABASE_URL, or stop with what to do."""
    url = os.environ.get("DATABASE_URL", "")
    if not url.startswith("postgres"):
        sys.exit("Set DATABASE_URL to a PostgreSQL server, e.g. postgresql://postgres@localhost/.")
    return url


def scratch_url() -> str:
    """Return the URL of the benchmarks' own database."""
    return urlunsplit(urlsplit(server_url())._replace(path=f"/{SCRATCH}"))


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
    """Make the scratch database anew, migrated."""
    drop_scratch()
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {SCRATCH}")
    configure()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def drop_scratch() -> None:
    """Remove the scratch database."""
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {SCRATCH} WITH (FORCE)")


def server_facts() -> str:
    """Return a line about what is measured: the server, and the interpreter of its clients."""
    with psycopg.connect(server_url()) as connection:
        facts = [
            connection.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
            for name in ("server_version", "fsync", "synchronous_commit")
        ]
    server = "PostgreSQL {}, fsync {}, synchronous_commit {}".format(*facts)
    return f"{server}, Python {platform.python_version()}, {os.cpu_count()} CPUs"


def pgbench(script: str, *, payload: str, seconds: float = SECONDS) -> float:
    """Return the transactions per second of a pgbench script, prepared, at eight clients."""
    program = shutil.which("pgbench") or _beside_pg_config("pgbench")
    if program is None:
        sys.exit("pgbench is not installed: install PostgreSQL's client programs.")
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

    ``work`` is called once in each, and what it returns over and over.
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
    rates = [answers.get(timeout=seconds + 60) for _ in processes]
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
    """Return what ``measure`` answers in a process that has done nothing else."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=configure) as pool:
        return pool.apply(measure, args)


def in_turns(*measures: Callable[[], float], rounds: int = ROUNDS) -> list[list[float]]:
    """Return the results of each measure, taken in turns."""
    results: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, found in zip(measures, results, strict=True):
            found.append(measure())
    return results


class Row(NamedTuple):
    """A row of the table in docs/performance.md, as text."""

    what: str
    figure: str
    beside: str  # what it is compared with
    ratio: str  # the median of the rounds' ratios, and the lowest and highest
    target: str


ROWS: list[Row] = []  # of this run
beside = ""  # the name of what `report` compares with, set by `heading`


def report(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
    target: float | None = None,
) -> bool:
    """Print and keep a row: medians, and the median of the ratios of each round."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    reached = target is None or ratio >= target
    verdict = "" if target is None else f">= {target:g} {'reached' if reached else 'MISSED'}"
    print(
        f"{name:<44} {statistics.median(ours):>11,.0f} {statistics.median(theirs):>11,.0f} "
        f"{unit:<9} {ratio:>6.2f} ({min(ratios):.2f}-{max(ratios):.2f})  "
        f"{verdict}",
        flush=True,
    )
    ROWS.append(
        Row(
            name,
            f"{statistics.median(ours):,.0f} {unit}",
            f"{beside}: {statistics.median(theirs):,.0f}",
            f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            "" if target is None else f"at least {target:g}" + ("" if reached else ", missed"),
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
    ROWS.append(Row(name, f"{value:,.{digits}f} {unit}".strip(), "", "", target + missed))
    return reached


def print_table(facts: str) -> None:
    """Print the rows of this run as Markdown, below a line of ``facts`` about it."""
    print(f"\n{facts}\n")
    print("| what | measured | beside | ratio (lowest-highest) | target |")
    print("| --- | --- | --- | --- | --- |")
    for row in ROWS:
        print("|", " | ".join(row), "|")


def heading(ours: str, theirs: str) -> None:
    """Print the heading of rows that compare ``ours`` with ``theirs``."""
    global beside
    beside = theirs
    print(f"\n{'':<44} {ours:>11} {theirs:>11} {'':<9} {'ratio':>6} (min-max)", flush=True)
