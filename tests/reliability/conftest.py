"""The fixtures of tests/races serve here as well."""

from __future__ import annotations

from tests.races.conftest import new_logs, violations

__all__ = ["new_logs", "violations"]
