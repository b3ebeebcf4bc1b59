"""Fixtures of the plugin, as of pytest's own discovery, and read models that have tables."""

from __future__ import annotations

from eventlogs.testing import plugin
from tests.projections import conftest as of_projections

# By name, so that these tests also run where the package was installed before it had the plugin.
memory_logs = plugin.memory_logs
catch_up_projections = plugin.catch_up_projections
freeze_recorded_at = plugin.freeze_recorded_at
tables = of_projections.tables
declared = of_projections.declared
