"""The statements of the PostgreSQL store, as text."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from eventlogs.stores import statements
from eventlogs.stores.statements import Statement, is_watched

pytestmark = pytest.mark.postgresql

NAMES = sorted(
    path.name.removesuffix(".sql")
    for path in (files(statements.__package__) / "sql").iterdir()
    if path.name.endswith(".sql")
)


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_says_why_it_is_right(name):
    text = (files(statements.__package__) / "sql" / f"{name}.sql").read_text()

    assert text.startswith("-- ")
    assert Statement(name).sql.strip()
    assert "--" not in Statement(name).sql


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_bound_and_has_a_type(name):
    untyped = re.findall(r"%\(\w+\)s(?!::)", Statement(name).sql)

    assert untyped == []


@pytest.mark.django_db
@pytest.mark.parametrize("name", NAMES)
def test_postgresql_accepts_a_statement_as_it_stands(name):
    numbered = Statement(name)._numbered.decode()

    with connection.cursor() as cursor:
        cursor.execute(f"PREPARE {name}_as_it_stands AS {numbered.replace('%', '%%')}", ())


@pytest.mark.django_db
def test_a_statement_answers_its_rows_with_their_types():
    rows = Statement("version").rows(connection, {"log": None, "log_type": "account"})

    assert rows == []


@pytest.mark.django_db
def test_who_watches_is_noticed():
    wrapper = connections["default"]
    assert not is_watched(wrapper)

    with wrapper.execute_wrapper(lambda execute, *arguments: execute(*arguments)):
        assert is_watched(wrapper)
    with CaptureQueriesContext(wrapper):
        assert is_watched(wrapper)

    assert not is_watched(wrapper)
