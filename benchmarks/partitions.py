"""
Speed of a table of 10,000,000 events in 16 partitions, beside the same table in one.

Two databases are filled alike. One is partitioned by the command, while clients append to it: how
long their slowest append took is printed. Then both are measured in turns, by the same work.
"""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from benchmarks.bench import (
    CLIENTS,
    ROUNDS,
    SCRATCH,
    client_environment,
    configure,
    databases,
    heading,
    keep,
    left_out,
    server_url,
)
from benchmarks.contests import CHECKOUT, BenchmarkFailed, Team, contest, report_contest
from benchmarks.environments import run
from benchmarks.growth import EVENTS, FLAT, LONG, PAGE, fill
from benchmarks.tables import Row

PARTITIONS = 16
ONE, PARTS = f"{SCRATCH}_one", f"{SCRATCH}_parts"
PAGES = {
    "the newest events": "eventlogs/event/",
    "events in the middle": "eventlogs/event/?before={middle}",
    "the newest logs": "eventlogs/eventlog/",
    "the longest log": "eventlogs/eventlog/{log}/change/",
}


def environment(name: str) -> dict[str, str]:
    """Return the variables of a process whose database is this one."""
    return {"BENCHMARK_DATABASE": name, "PGDATABASE": name}


def run_partitions() -> bool:
    """Print how fast work on the partitioned table is, beside the other."""
    with databases(ONE, PARTS):
        for name in (ONE, PARTS):
            run(
                [sys.executable, "-c", "from benchmarks.growth import migrate as m; m()"],
                **environment(name),
            )
            fill(urlunsplit(urlsplit(server_url())._replace(path=f"/{name}")), EVENTS, LONG)
        partition()
        return measure()


def partition() -> None:
    """Partition one of the tables beside a client that appends, and print what it took."""
    client = subprocess.Popen(
        [sys.executable, "-c", "from benchmarks.partitions import append_all_the_time as a; a()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
        env={**client_environment(), **environment(PARTS)},
        text=True,
    )
    assert client.stdout is not None
    client.stdout.readline()  # it has begun
    begin = time.monotonic()
    try:
        run(
            [sys.executable, "-c", "from benchmarks.partitions import command as c; c()"],
            **environment(PARTS),
        )
        seconds = time.monotonic() - begin
    finally:
        text, _ = client.communicate("end")
    count, median, slowest = json.loads(text)
    rate = EVENTS / seconds
    waited = f"its slowest append {slowest * 1e3:,.0f} ms, the median {median * 1e3:.1f} ms"
    print(
        f"\npartitioned {EVENTS:,} events in {seconds:,.0f} s, {rate:,.0f} a second, beside a "
        f"client with {count:,} appends: {waited}",
        flush=True,
    )
    keep(
        Row(
            "partition a table, beside a client that appends",
            f"{rate:,.0f} events/s",
            waited,
            "",
            "",
        )
    )


def command() -> None:
    """Run the command; in a process whose database is the one to partition."""
    from django.core.management import call_command

    configure()
    call_command("eventlogs", "partition", partitions=PARTITIONS)


def append_all_the_time() -> None:
    """Append until the input ends; print how often, and the median and slowest in seconds."""
    configure()
    from benchmarks.appends import one_append

    append, times = one_append(), []
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        begin = time.perf_counter()
        append()
        times.append(time.perf_counter() - begin)
    print(json.dumps([len(times), statistics.median(times), max(times)]))


def measure() -> bool:
    """Print each kind of work on both tables."""
    print(
        f"\n{EVENTS:,} events, {LONG:,} of them in one log: {PARTITIONS} partitions, and one table"
    )
    heading("partitions", "one table")
    reached = True
    works = [
        ("append to a new log", "benchmarks.growth:append_to_a_new_log", [], 1),
        ("append to the longest log", "benchmarks.growth:append_to_the_longest", [], 1),
        (
            f"appends to logs at random, {CLIENTS} clients",
            "benchmarks.growth:append_anywhere",
            [],
            CLIENTS,
        ),
        (f"a page of {PAGE} of the longest log", "benchmarks.growth:page_of_the_longest", [], 1),
        (f"a page of {PAGE} of the feed, anywhere", "benchmarks.growth:page_of_the_feed", [], 1),
        (
            f"the next page of {PAGE} of the feed",
            "benchmarks.partitions:next_page_of_the_feed",
            [],
            1,
        ),
        ("a look at the end of the feed", "benchmarks.partitions:end_of_the_feed", [], 1),
        *(
            (f"the admin's page of {name}", "benchmarks.partitions:page_of_the_admin", [name], 1)
            for name in PAGES
        ),
    ]
    for what, work, arguments, clients in works:
        try:
            with (
                Team(clients=clients, env=environment(ONE)) as one,
                Team(clients=clients, env=environment(PARTS)) as parts,
            ):
                found = contest(
                    {"one": one.work(work, *arguments), "parts": parts.work(work, *arguments)},
                    limit="one",
                    rounds=max(1, ROUNDS * 2 // 3),
                )
            reached &= report_contest(what, found, "parts", "a second", FLAT)
        except BenchmarkFailed as error:
            left_out(what, str(error))
            reached = False
    return reached


# The work, in the clients of both


def next_page_of_the_feed() -> Callable[[], Any]:
    """Read the feed page by page, as a projection does that catches up."""
    import benchmarks.domain  # noqa: F401  # registers the events
    from eventlogs import Feed

    feed, after = Feed(), 0

    def read() -> None:
        nonlocal after
        page = feed.read(after=after, limit=PAGE)
        after = page.next_after if page.more else 0

    return read


def end_of_the_feed() -> Callable[[], Any]:
    """Ask for the events after the last one, as a projection does that has read all."""
    from eventlogs import Feed

    feed = Feed()
    last = feed.settled()
    return lambda: feed.read(after=last)


def page_of_the_admin(name: str) -> Callable[[], Any]:
    """Request a page of the admin."""
    from django.contrib.auth.models import User
    from django.test import Client

    from benchmarks.growth import longest
    from eventlogs.models import Event

    user, _ = User.objects.get_or_create(username="ada", is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(user)
    middle = Event.objects.order_by("-position")[0].position // 2
    page = "/admin/" + PAGES[name].format(middle=middle, log=longest())

    def request() -> None:
        response = client.get(page)
        if response.status_code != 200:
            raise BenchmarkFailed(f"{page}: {response.status_code}")

    return request
