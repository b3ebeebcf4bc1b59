"""A session of the application's role, and chained logs to attack."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import pytest
from django.db import DatabaseError, connection

from eventlogs import LogState
from eventlogs.management.subcommands import grants
from eventlogs.operations.chaining import ChainVerifier
from eventlogs.operations.triggers import TriggerVerifier
from eventlogs.operations.verification import Scope, verify
from tests.accounts import Account, Deposited, Opened
from tests.management.test_grants import connected_as
from tests.seals.histories import SECRET

ROLE = f"eventlogs_attacker_{os.getpid()}"
OWNER = (connection.settings_dict["USER"], connection.settings_dict["PASSWORD"])

collect_ignore_glob = [] if find_spec("cryptography") else ["test_*.py"]


def sql(statement: str, *parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def chained(transactional_db: None, settings: Any) -> None:
    """New logs are chained, and the project has a key for seals."""
    settings.EVENTLOGS = {"CHAIN": True, "SEAL_KEY": SECRET}


@pytest.fixture
def log(chained: None) -> LogState:
    """A chained log of three events, before another one."""
    state = Account.logs.create(Opened(owner="Ann"), Deposited(amount=5), Deposited(amount=7))
    Account.logs.create(Opened(owner="Bob"), Deposited(amount=1))
    return state


@pytest.fixture
def as_application(log: LogState) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """A context manager, in which this process is connected with the printed grants only."""
    sql(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'secret'")
    try:
        statements, _ = grants.grants("default", ROLE)
        sql("\n".join(statements))
        yield lambda: connected_as(ROLE, "secret")
    finally:
        sql(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


@pytest.fixture
def refused() -> Callable[..., str]:
    """A function that returns the error that a statement gives."""

    def run(statement: str, *parameters: Any) -> str:
        with pytest.raises(DatabaseError) as caught:
            sql(statement, *parameters)
        return str(caught.value)

    return run


@pytest.fixture
def seen() -> Callable[[], set[str]]:
    """A function that returns the checks of ``verify --chain`` that have findings."""

    def run() -> set[str]:
        verifiers = (TriggerVerifier(), ChainVerifier())
        return {each.check for each in verify(Scope("default"), verifiers)}

    return run
