"""The payload that each of them stores, as in benchmarks/domain.py."""

from __future__ import annotations

AMOUNT, REFERENCE = 4_000, "till 7, receipt 20231"
TYPE = "benchmark.captured"
BATCH = 100
