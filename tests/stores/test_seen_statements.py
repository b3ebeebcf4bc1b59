"""
Tools that observe statements see ours: Sentry, django-debug-toolbar, django-prometheus.

Each runs in a process of its own, because Sentry replaces methods of Django for good. Without a
tool, appends go to psycopg below Django's cursor.
"""

from __future__ import annotations

import json

import pytest

from tests.contrib.installed import environ
from tests.processes import output_of

pytestmark = [pytest.mark.postgresql, pytest.mark.django_db(transaction=True)]

WORK = """
import asyncio, json, os, sys
import django
django.setup()
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from tests.accounts import Account, Deposited, Opened, withdraw

def work():
    key = os.urandom(8).hex()
    state = Account.logs.create(Opened("a secret"), Deposited(5), idempotency_key=key)
    state = Account.logs.append(state, Deposited(1))
    with transaction.atomic():
        Account.logs.append(state, Deposited(1))
    Account.logs.reduce(state.log_id)
    Account.logs.execute(state.log_id, withdraw, 1)

    async def main():
        await asyncio.gather(*(Account.logs.acreate(Opened("eve")) for _ in range(5)))

    async_to_sync(main)()

work()  # what is done once in a process is done
"""

# An append of each kind, two reads, and one statement for five appends of async code.
STATEMENTS = ["WITH"] * 3 + ["SELECT"] * 2 + ["WITH"] * 2


def seen(program: str, *apps: str) -> list[str]:
    """Return the statements, by their first words, that a program has seen."""
    found = json.loads(output_of("-c", WORK + program, environ=environ(*apps)))
    return [each.split()[0] for each in found]


@pytest.mark.fence
def test_sentry_sees_each_statement():
    assert (
        seen(
            """
import sentry_sdk
found = []
sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1",
    traces_sample_rate=1.0,
    before_send_transaction=lambda event, hint: found.append(event),
)
with sentry_sdk.start_transaction(name="work", op="test"):
    work()
spans = [each["description"] for each in found[0]["spans"] if each["op"] == "db"]
assert "a secret" not in json.dumps(found)  # no parameter is sent
print(json.dumps([each for each in spans if each not in ("BEGIN", "COMMIT")]))
"""
        )
        == STATEMENTS
    )


@pytest.mark.fence
def test_the_debug_toolbar_sees_each_statement():
    assert (
        seen(
            """
from debug_toolbar.toolbar import DebugToolbar
from django.http import HttpResponse
from django.test import RequestFactory

def get_response(request):
    work()
    return HttpResponse()

request = RequestFactory().get("/")
toolbar = DebugToolbar(request, get_response)
panel = toolbar.get_panel_by_id("SQLPanel")
panel.enable_instrumentation()
response = get_response(request)
panel.disable_instrumentation()
panel.generate_stats(request, response)
assert "a secret" in json.dumps(panel.get_stats()["queries"], default=str)  # it shows data
print(json.dumps([each["raw_sql"] for each in panel.get_stats()["queries"]]))
""",
            "debug_toolbar",
        )
        == STATEMENTS
    )


@pytest.mark.parametrize(
    "watching",
    [
        """
def note(execute, sql, *rest):
    found.append(sql)
    return execute(sql, *rest)

found = []
with connection.execute_wrapper(note):
    work()
""",
        """
from django.test.utils import CaptureQueriesContext
with CaptureQueriesContext(connection) as queries:
    work()
found = [each["sql"] for each in queries.captured_queries]
""",
        """
from django.conf import settings
from django.db import reset_queries
settings.DEBUG = True
reset_queries()
work()
found = [each["sql"] for each in connection.queries]
""",
    ],
    ids=["execute_wrapper", "CaptureQueriesContext", "DEBUG"],
)
@pytest.mark.fence
def test_django_sees_each_statement(watching):
    only = "print(json.dumps([each for each in found if each not in ('BEGIN', 'COMMIT')]))"

    assert seen(watching + only) == STATEMENTS
