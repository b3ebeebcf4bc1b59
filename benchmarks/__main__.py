"""
Run the benchmarks that are named, or all. Exit with 1 if a figure misses its target.

``table`` before the names also writes all figures, and plots, into docs/performance.md. A part
that fails leaves the others; an interrupted run writes what it has measured.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from importlib import import_module

from benchmarks import bench, plots, tables
from benchmarks.bench import (
    ROUNDS,
    ROWS,
    SCALE,
    SECONDS,
    drop_scratch,
    left_out,
    make_scratch,
    server_facts,
)
from benchmarks.machine import watch

RUNS = {  # name: the function, in the order in which they run
    "appends": "benchmarks.appends:run_appends",
    "batches": "benchmarks.appends:run_batches",
    "asynchronous": "benchmarks.asynchronous:run_async",
    "streaming": "benchmarks.streaming:run_streaming",
    "hot_log": "benchmarks.hot_log:run_hot_log",
    "feed": "benchmarks.feed:run_feed",
    "replicas": "benchmarks.replicas:run_replicas",
    "caching": "benchmarks.caching:run_caching",
    "projections": "benchmarks.projections:run_projections",
    "verify": "benchmarks.verify:run_verify",
    "chain": "benchmarks.chain:run_chain",
    "publisher": "benchmarks.publisher:run_publisher",
    "growth": "benchmarks.growth:run_growth",
    "partitions": "benchmarks.partitions:run_partitions",
    "layouts": "benchmarks.layouts:run_layouts",
    "admin": "benchmarks.admin:run_admin",
}
PLOTS = {  # name: what its ratios are; what they are compared with; what a ratio of 1 is
    "appends": (
        "Appends of one event by 8 clients, as a share of the bare INSERT",
        "pgbench",
        "the bare INSERT, by pgbench",
    ),
    "batches": (
        "Appends of 100 events by 8 clients, as a share of the bare INSERT of 100 rows",
        "pgbench",
        "the bare INSERT of 100 rows, by pgbench",
    ),
    "growth": ("Speed with many events, as a share of that with few", "few events", "few events"),
}


def main(names: list[str]) -> int:
    """Run benchmarks by name."""
    as_table = names[:1] == ["table"]
    names = names[1:] if as_table else names
    unknown = set(names) - set(RUNS)
    if unknown:
        sys.exit(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(RUNS)}.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    watch.look_before()
    begin = time.monotonic()
    print(server_facts())
    print(tables.verdict(watch), flush=True)
    reached: dict[str, bool] = {}
    interrupted = False
    try:
        for name in names or RUNS:
            reached[name] = run(name)
            if as_table:  # results are kept even if the next part fails
                write(time.monotonic() - begin)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        interrupted = True
    finally:
        drop_scratch()
        print("\n" + page(time.monotonic() - begin))
        if as_table:
            write(time.monotonic() - begin)
    return 0 if all(reached.values()) and not interrupted else 1


def page(seconds: float) -> str:
    """Return the text for docs/performance.md between its markers."""
    parts = list(dict.fromkeys(row.part for row in ROWS))
    paragraphs = [
        tables.verdict(watch),
        tables.facts(server_facts(), parts, seconds / 60),
        others(),
        tables.rounds(ROUNDS, SECONDS, SCALE, bench.DROPPED),
        tables.table(ROWS),
        *(f"![{PLOTS[name][0]}](performance-{name}.svg)" for name in PLOTS if name in parts),
    ]
    return "\n\n".join(each for each in paragraphs if each)


def write(seconds: float) -> None:
    """Write the page and its plots; nothing, if nothing was measured."""
    if not ROWS:
        return
    for name, (title, beside, limit) in PLOTS.items():
        rows = [row for row in ROWS if row.part == name]
        if rows:
            path = tables.PAGE.with_name(f"performance-{name}.svg")
            tables.write_whole(path, plots.bars(title, rows, beside=beside, limit=limit))
    tables.write(page(seconds))


def run(name: str) -> bool:
    """Run one part in a database of its own; keep a row that says so where it fails."""
    bench.part = name
    print(f"\n=== {name}", flush=True)
    module, _, function = RUNS[name].partition(":")
    try:
        make_scratch()
        return bool(getattr(import_module(module), function)())
    except Exception as error:
        traceback.print_exc()
        left_out(name, str(error).strip().splitlines()[0] if str(error) else type(error).__name__)
        return False
    finally:
        from django.db import connections

        connections.close_all()


def others() -> str:
    """Return a line with the versions of the packages compared with."""
    found = sys.modules.get("benchmarks.environments")
    versions = found.VERSIONS if found else {}
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    return told and f"Compared with: {told}, each in an environment of its own."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
