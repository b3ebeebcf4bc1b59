"""Run the benchmarks that are named, or all; exit with 1 where a figure is missed."""

from __future__ import annotations

import sys

from benchmarks.bench import drop_scratch, make_scratch, server_facts

NAMES = (
    *("appends", "batches", "streaming", "feed", "growth", "caching"),
    *("projections", "verify", "admin"),
)


def main(names: list[str]) -> int:
    """Run benchmarks by name."""
    unknown = set(names) - set(NAMES)
    if unknown:
        sys.exit(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(NAMES)}.")
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
    try:
        reached = [runs[name]() for name in names or NAMES]
    finally:
        from django.db import connections

        connections.close_all()
        drop_scratch()
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
