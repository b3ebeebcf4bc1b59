"""Drafts of upcasters."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from eventlogs.events.registry import registry
from eventlogs.operations.event_locks.drafts import draft
from eventlogs.operations.event_locks.locks import COMPATIBLE, UPCASTER, Lock, compare

pytestmark = pytest.mark.usefixtures("scratch_registry")

HEAD = '''"""Events of a shop."""

from dataclasses import dataclass

from eventlogs import event


@event({decorator})
@dataclass(frozen=True, slots=True)
class Placed:
{fields}
'''


class Module:
    """A module of events that is written, imported and changed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = folder / f"{name}.py", name

    def load(self) -> Any:
        registry._by_name.clear()
        registry._upcasters.clear()
        sys.modules.pop(self.name, None)
        importlib.invalidate_caches()
        module = importlib.import_module(self.name)
        found = registry.by_class(module.Placed)
        assert found is not None
        return found

    def write(self, fields: str, decorator: str = '"shop.placed"') -> Any:
        self.path.write_text(HEAD.format(decorator=decorator, fields=fields))
        return self.load()


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Module(tmp_path, "shop_events_of_drafts")
    yield made
    sys.modules.pop(made.name, None)


def drafted(module: Module, old: str, new: str, decorator: str = '"shop.placed"') -> str:
    """Return the module's source after a draft, and look whether it is a whole one."""
    _, lock = compare(Lock(module.path), [module.write(old)])
    [change], _ = compare(lock, [module.write(new, decorator)])
    assert change.verdict == UPCASTER

    draft(change, lock.events["shop.placed"]["shapes"]["1"])

    event_type = module.load()
    assert event_type.version == 2
    [accepted], _ = compare(lock, [event_type])
    assert accepted.verdict == COMPATIBLE
    return module.path.read_text()


def upcast(data: dict[str, Any]) -> Any:
    upcaster = registry.upcaster(["shop.placed"], 1)
    assert upcaster is not None
    return upcaster(data)


def test_a_renamed_field_is_moved(module):
    drafted(module, "    total: int", "    amount: int")

    assert upcast({"total": 7}) == {"amount": 7}


def test_a_changed_type_is_converted_where_that_is_known(module):
    drafted(module, "    total: int\n    note: str = ''", "    total: str\n    note: str = ''")

    assert upcast({"total": 7, "note": "x"}) == {"total": "7", "note": "x"}


def test_what_has_to_be_decided_is_said_and_does_not_run(module):
    source = drafted(module, "    total: int\n    old: str", "    total: int\n    tax: list[int]")

    assert 'data.pop("old", None)  # read no more' in source
    assert 'data["tax"] = ...  # array of integer: what do old events have?' in source
    with pytest.raises(NotImplementedError, match="Decide"):
        upcast({"total": 7})


@pytest.mark.parametrize(
    "decorator",
    [
        '"shop.placed"',
        '"shop.placed",',
        '"shop.placed", version=1',
        '\n    "shop.placed",  # an order, für Kunden\n    aliases=["shop.ordered"],\n',
    ],
)
def test_the_version_is_raised_in_any_form_of_the_decorator(module, decorator):
    source = drafted(module, "    total: int", "    amount: int", decorator)

    ast.parse(source)
    assert source.count("version=2") == 1
    assert "für Kunden" in source or "für" not in decorator
    assert source.count("import upcaster") == 1


def test_a_decorator_that_is_not_there_is_a_mistake_and_nothing_is_written(module):
    _, lock = compare(Lock(module.path), [module.write("    total: int")])
    event_type = module.write("    amount: int", "f\"shop.{'placed'}\"")
    [change], _ = compare(lock, [event_type])
    before = module.path.read_text()

    with pytest.raises(ValueError, match="by hand"):
        draft(change, lock.events["shop.placed"]["shapes"]["1"])
    assert module.path.read_text() == before
