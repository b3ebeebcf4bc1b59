"""
What every implementation of an abstraction has to keep, the fakes for tests included.

A contract is a class of tests. Whoever writes an implementation subclasses it and provides the
fixture that it asks for; ``test_stores.py`` does so for the stores of this package.
"""

import pytest

# Before anything imports it, so that its assertions say what they compared.
pytest.register_assert_rewrite(
    "tests.contracts.refreshers", "tests.contracts.stores", "tests.contracts.transactions"
)
