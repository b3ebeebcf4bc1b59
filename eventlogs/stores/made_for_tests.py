"""
Whether Django made a database for tests.

There ``TransactionTestCase`` and ``flush`` empty tables by TRUNCATE, so the trigger that refuses it
is left out (migration 0002), and the check of triggers does not ask for it.
"""

from __future__ import annotations

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.creation import TEST_DATABASE_PREFIX


def is_test_database(connection: BaseDatabaseWrapper) -> bool:
    """Return whether Django made this database for tests: it has the connection's test name."""
    name = str(connection.settings_dict["NAME"])
    test_name = connection.settings_dict["TEST"]["NAME"]
    # While tests run, NAME is the test name itself; by default that is NAME with the prefix.
    return name == str(test_name) if test_name else name.startswith(TEST_DATABASE_PREFIX)
