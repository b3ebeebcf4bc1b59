"""Histories that django-simple-history, django-pghistory and django-auditlog have kept."""

from __future__ import annotations

import json

import pytest
from django.db import connection

from eventlogs import RegistrationError
from eventlogs.operations.adoption import AuditLog, Change, PgHistory, SimpleHistory
from tests.operations.adoption.shop import LONG_AGO, Order
from tests.processes import output_of


@pytest.fixture
def empty_database(transactional_db, tmp_path):
    """The name of a database without tables: a file, or one of the server."""
    name = f"{connection.settings_dict['NAME']}_site"
    if connection.vendor == "sqlite":
        yield str(tmp_path / "site.sqlite3")
        return
    quoted = connection.ops.quote_name(name)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {quoted}")
    try:
        yield name
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {quoted}")


def adopted(package: str, database: str) -> tuple[dict, dict[str, list]]:
    environ = {"DATABASE_URL": None} if connection.vendor == "sqlite" else {}
    said = output_of("-m", "tests.operations.adoption.site", package, database, environ=environ)
    found = json.loads(said)
    logs = {
        number: [(each["kind"], each["total"], each["user"]) for each in events]
        for number, events in found["logs"].items()
    }
    return found, logs


@pytest.mark.parametrize(
    "package",
    ["simple_history", pytest.param("pghistory", marks=pytest.mark.postgresql), "auditlog"],
)
def test_each_row_of_a_history_becomes_an_event_in_order(empty_database, package):
    pytest.importorskip(package)
    found, logs = adopted(package, empty_database)

    assert logs["0"] == [("created", 0, None), ("changed", 10, found["user"])]
    assert logs["1"][0] == ("created", 1, None)
    assert logs["2"] == [("created", 2, None), ("deleted", 2, None)]
    assert logs["3"] == [("genesis", 3, None)]  # it has no history
    rest = {
        # QuerySet.update() passes by django-simple-history; a trigger has seen it.
        "simple_history": [("changed", 1, None), ("changed", 99, None)],
        "pghistory": [("changed", 1, None), ("changed", 99, None)],
        # It has texts, which cannot be compared with the row.
        "auditlog": [("changed", 1, None)],
    }
    assert logs["1"][1:] == rest[package]
    assert found["logs"]["0"][1]["changed"] == ["total"]
    assert found["logs"]["1"][1]["changed"] == ["customer"]
    marks = [each["mark"] for each in found["logs"]["1"]]
    assert {each["pk"] for each in marks} == {"2"}
    numbers = [int(each["history_pk"]) for each in marks if "history_pk" in each]
    assert numbers == sorted(numbers)
    assert len(numbers) == (3 if package == "pghistory" else 2)
    events = sum(map(len, logs.values()))
    assert found["adopted"] == [4, events, 0]
    assert found["again"] == [0, 0, 4]


@pytest.mark.parametrize("source", [SimpleHistory, PgHistory, AuditLog])
def test_a_model_without_a_history_is_refused(source):
    with pytest.raises(RegistrationError, match=source.package):
        source(Order)


def test_a_change_tells_the_values_that_it_changed():
    first = Change("created", {"total": 1, "customer": "ada"}, None, LONG_AGO)
    second = Change("changed", {"total": 2, "customer": "ada"}, first.values, LONG_AGO)

    assert first.changes == {"total": (None, 1), "customer": (None, "ada")}
    assert second.changes == {"total": (1, 2)}
