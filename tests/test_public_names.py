"""The package: its public names, loaded when they are first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from django.apps import apps

import eventlogs


@pytest.mark.parametrize("name", eventlogs.__all__)
def test_every_public_name_can_be_imported(name):
    namespace: dict[str, object] = {}

    exec(f"from eventlogs import {name}", namespace)

    assert namespace[name] is getattr(eventlogs, name)


def test_names_are_listed_once_and_in_order_everywhere():
    tree = ast.parse(Path(eventlogs.__file__).read_text())
    for_types = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        for each in node.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }

    assert len(eventlogs.__all__) == len(set(eventlogs.__all__))
    assert set(eventlogs.__all__) == for_types == set(eventlogs._HOME)
    assert set(eventlogs.__all__) <= set(dir(eventlogs))


def test_the_names_of_the_contract_are_public():
    contract = {
        "ANY",
        "Aggregate",
        "EventPage",
        "EventRecord",
        "LogId",
        "LogManager",
        "LogState",
        "Reduction",
        "event",
        "fold",
        "upcaster",
    }

    assert contract <= set(eventlogs.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'eventlogs' has no attribute 'Unknown'"):
        _ = eventlogs.Unknown
    with pytest.raises(ImportError):
        exec("from eventlogs import Unknown")


def test_importing_the_package_loads_nothing():
    program = (
        "import sys, eventlogs;"
        "print([name for name in sys.modules"
        " if name.split('.')[0] in ('django', 'msgspec', 'psycopg') or 'eventlogs.' in name])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(eventlogs.__file__).parents[1],
    )

    assert done.stdout.strip() == "[]"


def test_the_package_is_typed_and_has_a_version():
    assert (Path(eventlogs.__file__).parent / "py.typed").exists()
    assert eventlogs.__version__.count(".") == 2


def test_the_app_has_its_label_and_its_checks():
    config = apps.get_app_config("eventlogs")

    assert (config.label, config.name) == ("eventlogs", "eventlogs")
    assert {model.__name__ for model in config.get_models()} >= {
        "Event",
        "EventLog",
        "IdempotencyKey",
    }
    assert "eventlogs.checks" in sys.modules
