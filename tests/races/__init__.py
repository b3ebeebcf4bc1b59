"""Races of processes: helpers, and the tests that use them (as do those of tests/reliability)."""

from __future__ import annotations

import pytest

# Tests that commit, and have only our tables emptied afterwards: emptying the tables of all other
# apps would take longer than most races.
COMMITS = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])
