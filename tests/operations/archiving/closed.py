"""The rule of the tests: accounts without money are closed."""

from __future__ import annotations

from datetime import timedelta

from eventlogs.archives import Retention
from tests.accounts import Account


def is_closed(account: Account) -> bool:
    """Return whether nothing will happen to an account any more."""
    return account.balance == 0


closed_accounts = Retention("account", timedelta(microseconds=1), when=is_closed)
