"""
Run the benchmarks that are named, or all. Exit with 1 if a figure misses its target.

``table`` before the names also prints all figures as the Markdown table of docs/performance.md.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime

from benchmarks.bench import (
    ROUNDS,
    SECONDS,
    drop_scratch,
    make_scratch,
    print_table,
    server_facts,
)

NAMES = (
    *("appends", "batches", "streaming", "feed", "growth", "caching"),
    *("projections", "verify", "admin"),
)


def main(names: list[str]) -> int:
    """Run benchmarks by name."""
    as_table = names[:1] == ["table"]
    names = names[1:] if as_table else names
    unknown = set(names) - set(NAMES)
    if unknown:
        sys.exit(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(NAMES)}.")
    begin, load = time.monotonic(), os.getloadavg()[0]
    make_scratch()
    print(server_facts())
    from benchmarks.admin import run_admin
    from benchmarks.appends import run_appends, run_batches
    from benchmarks.caching import run_caching
    from benchmarks.feed import run_feed
    from benchmarks.growth import run_growth
    from benchmarks.projections import run_projections
    from benchmarks.streaming import run_streaming
    from benchmarks.verify import run_verify

    runs = {
        "appends": run_appends,
        "batches": run_batches,
        "streaming": run_streaming,
        "feed": run_feed,
        "growth": run_growth,
        "caching": run_caching,
        "projections": run_projections,
        "verify": run_verify,
        "admin": run_admin,
    }
    reached = {}
    try:
        for name in names or NAMES:
            reached[name] = runs[name]()
    finally:  # a run that is interrupted shows what it has measured
        from django.db import connections

        connections.close_all()
        drop_scratch()
        if as_table:
            minutes = (time.monotonic() - begin) / 60
            print_table(
                f"{datetime.now(UTC):%Y-%m-%d}, {server_facts()}; up to {ROUNDS} rounds of "
                f"{SECONDS:g} s; load {load:.1f} at the beginning and {os.getloadavg()[0]:.1f} at "
                f"the end; {minutes:.0f} minutes for: {' '.join(reached)}."
            )
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
