"""
Contract suites: tests that every store, cache and refresher must pass, also those of projects.

A contract is a class of pytest tests. To test an implementation, subclass it in a module of tests,
and define the fixture that it asks for::

    from eventlogs.testing.contracts.stores import StoreContract

    class TestDictStore(StoreContract):
        @pytest.fixture
        def store(self):
            return DictStore()

A test of a contract may be added in any release: it is a promise that was not tested before.
"""

from __future__ import annotations

from typing import Final

import pytest

SUITES: Final = (
    *("caches", "key_stores", "refreshers", "restoring", "rows", "stores", "transactions"),
)
"""The names of the modules with suites."""

# Before anything imports them, so that their assertions say what they compared.
pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in SUITES))
