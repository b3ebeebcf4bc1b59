"""A log, and functions that run the commands: in this process, and in others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

from eventlogs import LogId, LogManager
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.processes import Program

ACCOUNTS: LogManager[Account] = Account.logs


@pytest.fixture
def run() -> Callable[..., str]:
    """A function that runs a subcommand and returns its output."""

    def run(*arguments: Any, **options: Any) -> str:
        out = StringIO()
        call_command("eventlogs", *map(str, arguments), stdout=out, **options)
        return out.getvalue()

    return run


@pytest.fixture
def run_json(run: Callable[..., str]) -> Callable[..., Any]:
    """A function that runs a subcommand with ``--json`` and returns the decoded output."""

    def run_json(*arguments: Any, **options: Any) -> Any:
        return json.loads(run(*arguments, "--json", **options))

    return run_json


@pytest.fixture
def start(transactional_db: None) -> Iterator[Callable[..., Program]]:
    """A function that starts a subcommand in a process; ``settings`` are of its database."""
    with ExitStack() as stack:

        def start(
            *arguments: Any, database: str = "default", moment: str = "", **settings: Any
        ) -> Program:
            return stack.enter_context(
                Program(
                    *manage(database, moment),
                    *map(str, arguments),
                    stdin=subprocess.PIPE,
                    environ={"EVENTLOGS_TEST_SETTINGS": json.dumps(settings)},
                )
            )

        yield start


def manage(database: str = "default", moment: str = "") -> list[str]:
    """
    Return the arguments of Python for ``manage.py eventlogs`` on a database of the test.

    ``moment`` is one of signalled.py, at which the process gets a signal.
    """
    module = ["tests.management.signalled", moment] if moment else ["tests.management.manage"]
    name = str(connections[database].settings_dict["NAME"])
    return ["-W", "error", "-m", *module, name, "eventlogs"]


@pytest.fixture
def account(db: None) -> LogId:
    """The log of an account: opened, deposited 100 with a key, withdrawn 30 with metadata."""
    state = ACCOUNTS.create(Opened(owner="Ada"))
    state = ACCOUNTS.append(state, Deposited(amount=100), idempotency_key="pay-1")
    ACCOUNTS.append(state, Withdrawn(amount=30), metadata={"user": "grace", "till": 7})
    return state.log_id
