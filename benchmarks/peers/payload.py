"""What each of them stores: the payload of benchmarks/domain.py."""

from __future__ import annotations

AMOUNT, REFERENCE = 4_000, "till 7, receipt 20231"
TYPE = "benchmark.captured"
BATCH = 100
