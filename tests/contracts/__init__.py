"""
Contracts that every implementation of an abstraction keeps, including the fakes for tests.

A contract is a class of tests. The test of an implementation subclasses it and provides the
fixture that it asks for; ``test_stores.py`` does so for the stores of this package.
"""

import pytest

# Before anything imports it, so that its assertions show the compared values.
pytest.register_assert_rewrite(
    "tests.contracts.refreshers", "tests.contracts.stores", "tests.contracts.transactions"
)
