"""
A process that forks while it is connected: python -m tests.stores.forks DATABASE [atomic]

It has appended before, and goes on to append beside its children, all at once. Each prints a JSON
object: how many of its logs are wrong, and the error that it met. EVENTLOGS_TEST_SETTINGS holds
settings of the database, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack

import django
from django.conf import settings

LOGS = 40


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    own = json.loads(os.environ.get("EVENTLOGS_TEST_SETTINGS", "{}"))
    settings.DATABASES["default"].update(own, NAME=sys.argv[1])
    django.setup()
    from django.db import connection, transaction

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
        try:
            answer["wrong"] = work(name)
        except Exception as error:
            answer["error"] = type(error).__name__
        os.write(1, f"{json.dumps(answer)}\n".encode())  # whole, beside others

    assert work("before") == 0
    if own.get("OPTIONS", {}).get("pool"):
        connection.close()  # back into the pool, as after a request
    with ExitStack() as stack:
        if sys.argv[2:] == ["atomic"]:
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
