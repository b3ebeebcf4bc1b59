"""
Run the benchmarks that are named, or all. Exit with 1 if a figure misses its target.

``table`` before the names also writes all figures, and plots, into docs/performance.md. A part
that fails leaves the others; an interrupted run writes what it has measured.
"""

from __future__ import annotations

import sys
import time
import traceback
from importlib import import_module

from benchmarks import bench, tables
from benchmarks.bench import ROWS, drop_scratch, left_out, make_scratch, server_facts
from benchmarks.machine import watch

RUNS = {  # name: the function, in the order in which they run
    "appends": "benchmarks.appends:run_appends",
    "batches": "benchmarks.appends:run_batches",
    "streaming": "benchmarks.streaming:run_streaming",
    "feed": "benchmarks.feed:run_feed",
    "caching": "benchmarks.caching:run_caching",
    "projections": "benchmarks.projections:run_projections",
    "verify": "benchmarks.verify:run_verify",
    "growth": "benchmarks.growth:run_growth",
    "admin": "benchmarks.admin:run_admin",
}


def main(names: list[str]) -> int:
    """Run benchmarks by name."""
    as_table = names[:1] == ["table"]
    names = names[1:] if as_table else names
    unknown = set(names) - set(RUNS)
    if unknown:
        sys.exit(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(RUNS)}.")
    watch.look_before()
    begin = time.monotonic()
    print(server_facts())
    print(tables.verdict(watch), flush=True)
    reached: dict[str, bool] = {}
    try:
        for name in names or RUNS:
            reached[name] = run(name)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        reached["interrupted"] = False
    finally:
        drop_scratch()
        if ROWS:
            text = "\n\n".join(
                [
                    tables.verdict(watch),
                    tables.facts((time.monotonic() - begin) / 60, list(reached), bench.DROPPED),
                    tables.table(ROWS),
                ]
            )
            print(f"\n{text}")
            if as_table:
                tables.write(text)
    return 0 if all(reached.values()) else 1


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
