"""The package: its public names, loaded when they are first used."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

import pytest
from django.apps import apps

import eventlogs
from tests.processes import output_of


def printed_by(program: str) -> str:
    """Return the output of a process without Django set up."""
    return output_of("-c", program, environ={"DJANGO_SETTINGS_MODULE": None}).strip()


@pytest.mark.parametrize("name", eventlogs.__all__)
def test_every_public_name_can_be_imported(name):
    namespace: dict[str, object] = {}

    exec(f"from eventlogs import {name}", namespace)

    assert namespace[name] is getattr(eventlogs, name)


def test_each_name_is_listed_by_the_one_module_that_is_its_home():
    lists = [import_module(f"eventlogs.{home}").__all__ for home in eventlogs.HOMES]
    names = [name for each in lists for name in each]

    assert sorted(names) == eventlogs.__all__
    assert len(names) == len(set(names))
    assert all(each == sorted(each) for each in map(list, lists))
    assert set(names) <= set(dir(eventlogs))


def test_the_imports_for_type_checkers_match_the_lazy_imports():
    tree = ast.parse(Path(eventlogs.__file__).read_text())
    [block] = [each for each in tree.body if isinstance(each, ast.If)]
    for_types = [
        (each.module, [alias.name for alias in each.names])
        for each in block.body
        if isinstance(each, ast.ImportFrom)
    ]

    assert for_types == sorted((f"eventlogs.{home}", ["*"]) for home in eventlogs.HOMES)


@pytest.mark.parametrize("name", ["EventLogError", "LogId", "LogLengthPolicy", "event", "fold"])
def test_settings_may_import_a_name_that_needs_no_models(name):
    program = f"from eventlogs import {name}; import sys; print('eventlogs.models' in sys.modules)"

    assert printed_by(program) == "False"


def test_importing_a_module_loads_no_other():
    program = (
        "from eventlogs import conf; import sys;"
        "print([name for name in sys.modules if name.startswith('eventlogs.')])"
    )

    assert printed_by(program) == "['eventlogs.conf']"


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
        _ = eventlogs.Unknown  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from eventlogs import Unknown")


def test_importing_the_package_loads_nothing():
    program = (
        "import sys, eventlogs;"
        "print([name for name in sys.modules"
        " if name.split('.')[0] in ('django', 'msgspec', 'psycopg') or 'eventlogs.' in name])"
    )

    assert printed_by(program) == "[]"


def test_dir_of_the_package_works_before_django_is_set_up():
    program = "import eventlogs; print('__version__' in dir(eventlogs))"

    assert printed_by(program) == "True"


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
        "UniqueValue",
    }
    assert "eventlogs.checks" in sys.modules
