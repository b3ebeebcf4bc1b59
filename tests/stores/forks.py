"""
A process that forks while it is connected: python -m tests.stores.forks DATABASE [atomic | shared]

The process has appended before, and appends beside its children, all at once. Each prints a JSON
object: how many of its logs are wrong, and the error that it met. EVENTLOGS_TEST_SETTINGS holds
settings of the database, as JSON. With "shared" the children use the parent's connection.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack
from typing import NoReturn

import django
from django.conf import settings

LOGS = 40
PATIENCE = 5  # seconds, of a process that shares its connection


def give_up(*_: object) -> NoReturn:
    raise TimeoutError("no answer: another process may have read it")


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    own = json.loads(os.environ.get("EVENTLOGS_TEST_SETTINGS", "{}"))
    settings.DATABASES["default"].update(own, NAME=sys.argv[1])
    django.setup()
    how = sys.argv[2:]
    from django.db import connection, transaction
    from django.db.utils import ConnectionHandler

    from eventlogs.stores import psycopg_connections
    from tests.accounts import Account, Deposited, Opened

    def work(name: str) -> int:
        wrong = 0
        with transaction.atomic():  # the first use of the database may be Django's
            Account.logs.create(Opened(name))
        for _ in range(LOGS):
            state = Account.logs.create(Opened(name), idempotency_key=os.urandom(8).hex())
            state = Account.logs.append(state, Deposited(1))
            with transaction.atomic():
                Account.logs.append(state, Deposited(2))
            found = Account.logs.reduce(state.log_id)
            wrong += (found.version, found.aggregate.balance, found.aggregate.owner) != (3, 3, name)
        return wrong

    def told(name: str) -> None:
        answer: dict[str, object] = {"name": name, "wrong": None, "error": None}
        if how == ["shared"]:
            signal.signal(signal.SIGALRM, give_up)
            signal.alarm(PATIENCE)
        try:
            answer["wrong"] = work(name)
        except Exception as error:
            answer["error"] = type(error).__name__
        os.write(1, f"{json.dumps(answer)}\n".encode())  # whole, beside others

    assert work("before") == 0
    if own.get("OPTIONS", {}).get("pool"):
        connection.close()  # back into the pool, as after a request
    if how == ["shared"]:
        vars(psycopg_connections)["connections"] = ConnectionHandler()  # it has none
    with ExitStack() as stack:
        if how == ["atomic"]:
            stack.enter_context(transaction.atomic())
        children = []
        for number in range(3):
            pid = os.fork()
            if not pid:
                told(f"child {number}")
                os._exit(0)
            children.append(pid)
        told("parent")
        for pid in children:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
