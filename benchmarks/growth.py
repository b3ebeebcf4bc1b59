"""
Speed while a log grows to 1,000,000 events and the table to 10,000,000.

Two databases are measured in turns, a small one and a large one, by the same work.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from benchmarks.bench import (
    CLIENTS,
    ROUNDS,
    SCALE,
    SCRATCH,
    configure,
    figure,
    heading,
    left_out,
    scratch_url,
    server_url,
)
from benchmarks.contests import BenchmarkFailed, Team, contest, report_contest
from benchmarks.environments import run

EVENTS = int(10_000_000 * SCALE)  # of the large table
LONG = EVENTS // 10  # events of its longest log
SMALL = 10_000  # events of the small table
SHORT = 1_000  # events of its longest log
OF_EACH = 20  # events of the other logs
APART = 200  # logs that begin between two events of a log
CHUNK = 500_000  # events of one statement, about
PAGE = 100
CHOSEN = 20_000  # logs of each client that appends at random
FLAT = 0.83  # of the speed with few events: at most 1.2 times as long
LARGE = f"{SCRATCH}_large"
LARGE_ENV = {"BENCHMARK_DATABASE": LARGE, "PGDATABASE": LARGE}
MIGRATE = "from benchmarks.growth import migrate; migrate()"
LONGEST = "00000000-0000-7000-8000-000000000001"

# As appends would leave it: positions in the order of appends, a log's events among those of
# others that are as old, ids of version 7 in the order of creation. All triggers are on.
ID = """(lpad(to_hex(1780000000000 + n::bigint * 1000), 12, '0')
         || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid"""
LOGS = f"""
INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
SELECT {ID}, 'benchmark', %(of_each)s, to_timestamp(1780000000 + n),
       to_timestamp(1780000000 + n + %(apart)s * %(of_each)s)
FROM generate_series(0, %(logs)s - 1) AS n
"""
OTHERS = f"""
INSERT INTO eventlogs_event
    (log_type, log_id, index, type, schema_version, data, metadata, recorded_at)
SELECT 'benchmark', {ID}, index, 'benchmark.captured', 1,
       '{{"amount":4000,"reference":"till 7, receipt 20231"}}', '{{}}',
       to_timestamp(1780000000 + moment)
FROM generate_series(%(begin)s, %(end)s - 1) AS moment,
     generate_series(0, %(of_each)s - 1) AS index,
     LATERAL (SELECT moment - index * %(apart)s AS n) AS log
WHERE n BETWEEN 0 AND %(logs)s - 1
"""
LONGEST_LOG = """
WITH log AS (
    INSERT INTO eventlogs_eventlog (id, log_type, version, created_at, updated_at)
    VALUES (%(log)s::uuid, 'benchmark', %(events)s, now(), now())
)
INSERT INTO eventlogs_event
    (log_type, log_id, index, type, schema_version, data, metadata, recorded_at)
SELECT 'benchmark', %(log)s::uuid, index, 'benchmark.captured', 1,
       '{"amount":4000,"reference":"till 7, receipt 20231"}', '{}', now()
FROM generate_series(0, %(events)s - 1) AS index
"""
HOT = """
SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'eventlogs_eventlog'
"""


def run_growth() -> bool:
    """Print how fast work on the large database is, beside the small one."""
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {LARGE} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {LARGE}")
        try:
            fill(scratch_url(), SMALL, SHORT)
            run(
                [sys.executable, "-c", "from benchmarks.growth import migrate as m; m()"],
                **LARGE_ENV,
            )
            fill(large_url(), EVENTS, LONG)
            return measure()
        finally:
            connection.execute(f"DROP DATABASE IF EXISTS {LARGE} WITH (FORCE)")


def large_url() -> str:
    """Return the URL of the large database."""
    return urlunsplit(urlsplit(server_url())._replace(path=f"/{LARGE}"))


def migrate() -> None:
    """Make the tables; in a process whose database is the large one."""
    from django.core.management import call_command

    configure()
    call_command("migrate", verbosity=0)


def fill(url: str, events: int, longest: int) -> None:
    """Fill a database through SQL: a long log, and many short ones."""
    logs = (events - longest) // OF_EACH
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute(LOGS, {"logs": logs, "of_each": OF_EACH, "apart": APART})
        moments = logs + OF_EACH * APART
        step = max(1, CHUNK // OF_EACH)
        for begin in range(0, moments, step):
            connection.execute(
                OTHERS,
                {
                    "logs": logs,
                    "of_each": OF_EACH,
                    "apart": APART,
                    "begin": begin,
                    "end": min(moments, begin + step),
                },
            )
        connection.execute(LONGEST_LOG, {"log": LONGEST, "events": longest})
        connection.execute("VACUUM ANALYZE")
        with suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute("CHECKPOINT")  # the server writes now, not in the first windows
        [[found]] = connection.execute("SELECT count(*) FROM eventlogs_event").fetchall()
    if found != logs * OF_EACH + longest:
        raise BenchmarkFailed(f"{found} events were made, not {logs * OF_EACH + longest}")


def measure() -> bool:
    """Print each kind of work, and how many updates of logs stayed within their page."""
    print(f"\n{EVENTS:,} events, {LONG:,} of them in one log; beside {SMALL:,} and {SHORT:,}")
    heading("many events", "few events")
    reached = True
    for what, work, clients, target in (
        ("append to a new log", "append_to_a_new_log", 1, FLAT),
        ("append to the longest log", "append_to_the_longest", 1, FLAT),
        ("cached reduce of the longest log", "cached_reduce", 1, FLAT),
        (f"a page of {PAGE} of the longest log", "page_of_the_longest", 1, FLAT),
        (f"a page of {PAGE} of the feed", "page_of_the_feed", 1, FLAT),
        (f"appends to logs at random, {CLIENTS} clients", "append_anywhere", CLIENTS, 0.9),
    ):
        try:
            reached &= beside(what, work, clients, target)
        except BenchmarkFailed as error:
            left_out(what, str(error))
            reached = False
    with closing(psycopg.connect(large_url())) as connection:
        [[hot, updates]] = connection.execute(HOT).fetchall()
    share = hot / max(1, updates)
    reached &= figure("updates of logs that are HOT", share, "", at_least=0.98, digits=3)
    return reached


def beside(what: str, work: str, clients: int, target: float) -> bool:
    """Print one kind of work on both databases."""
    name = f"benchmarks.growth:{work}"
    with Team(clients=clients) as small_team, Team(clients=clients, env=LARGE_ENV) as large_team:
        found = contest(
            {"few": small_team.work(name), "many": large_team.work(name)},
            limit="few",
            rounds=max(1, ROUNDS * 2 // 3),
        )
    return report_contest(what, found, "many", "a second", target)


# The work, in the clients of both


def append_to_a_new_log() -> Callable[[], Any]:
    """Append single events to a log that was made just now."""
    from benchmarks.appends import one_append

    return one_append()


def longest() -> Any:
    """Return the id of the longest log."""
    from eventlogs.models import EventLog

    return EventLog.objects.get(pk=LONGEST).log_id


def append_to_the_longest() -> Callable[[], Any]:
    """Append single events to the longest log."""
    from benchmarks.domain import CAPTURED, Payment
    from eventlogs import ANY

    payments = Payment.logs
    state = payments.append(longest(), CAPTURED, expected_version=ANY)

    def append() -> None:
        nonlocal state
        state = payments.append(state, CAPTURED)

    return append


def append_anywhere() -> Callable[[], Any]:
    """Append single events to logs of its own choice, at random."""
    from benchmarks.domain import CAPTURED, Payment
    from eventlogs import ANY
    from eventlogs.models import EventLog

    payments = Payment.logs
    chosen = [each.log_id for each in EventLog.objects.order_by("?")[:CHOSEN]]

    def append() -> None:
        payments.append(random.choice(chosen), CAPTURED, expected_version=ANY)

    return append


def cached_reduce() -> Callable[[], Any]:
    """Reduce the longest log, whose reduction is in the cache."""
    from benchmarks.domain import cached_payments

    payments, log_id = cached_payments(), longest()
    payments.reduce(log_id)
    return lambda: payments.reduce(log_id)


def page_of_the_longest() -> Callable[[], Any]:
    """Load pages of the longest log, anywhere in it."""
    from benchmarks.domain import Payment

    payments, log_id = Payment.logs, longest()
    version = payments.version(log_id)
    return lambda: payments.load(log_id, start=random.randrange(version - PAGE), limit=PAGE)


def page_of_the_feed() -> Callable[[], Any]:
    """Read pages of the feed, anywhere in it."""
    import benchmarks.domain  # noqa: F401  # registers the events
    from eventlogs import Feed
    from eventlogs.models import Event

    feed = Feed()
    last = Event.objects.order_by("-position")[0].position
    return lambda: feed.read(after=random.randrange(last - PAGE), limit=PAGE)
