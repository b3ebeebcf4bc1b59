"""Logs to look at, and ways to run the commands: in this process, or in a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from eventlogs import LogId, LogManager
from tests.accounts import Account, Deposited, Opened, Withdrawn

ACCOUNTS: LogManager[Account] = Account.logs


@pytest.fixture
def run() -> Callable[..., str]:
    """A function that runs a subcommand and returns what it wrote."""

    def run(*arguments: Any, **options: Any) -> str:
        out = StringIO()
        call_command("eventlogs", *map(str, arguments), stdout=out, **options)
        return out.getvalue()

    return run


@pytest.fixture
def run_json(run: Callable[..., str]) -> Callable[..., Any]:
    """A function that runs a subcommand with ``--json`` and returns what that holds."""

    def run_json(*arguments: Any, **options: Any) -> Any:
        return json.loads(run(*arguments, "--json", **options))

    return run_json


@pytest.fixture
def account(db: None) -> LogId:
    """The log of an account: opened, deposited 100 with a key, withdrawn 30 by somebody."""
    state = ACCOUNTS.create(Opened(owner="Ada"))
    state = ACCOUNTS.append(state, Deposited(amount=100), idempotency_key="pay-1")
    ACCOUNTS.append(state, Withdrawn(amount=30), metadata={"user": "grace", "till": 7})
    return state.log_id
