"""The fingerprint of a class that is at work: it is that of its code, and of nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from eventlogs import LogManager
from eventlogs.fingerprints import _Digest
from eventlogs.testing import MemoryStore, RecordingCache
from tests.reliability.ledgers import Entered, Ledger


def digest() -> str:
    """Take the fingerprint as a process does that has not taken it yet."""
    return _Digest(Ledger).hexdigest()


def test_it_is_the_same_before_and_after_the_class_was_used():
    """A writer takes it after it has encoded events, a reader before, a worker at another time."""
    for cls in (Ledger, Entered):
        if "__msgspec_cache__" in vars(cls):
            del cls.__msgspec_cache__
    before = digest()
    manager = LogManager(Ledger, store=MemoryStore(), cache=RecordingCache())

    log_id = manager.create(Entered("a")).log_id
    manager.reduce(log_id)
    msgspec.json.encode(Ledger())
    msgspec.json.decode(b"{}", type=Ledger)

    assert "__msgspec_cache__" in vars(Entered)
    assert digest() == before


STALL = """
import functools
from dataclasses import dataclass
from datetime import timedelta, timezone

from eventlogs import Aggregate, EventRecord

import {package}.rates
from tests.reliability.ledgers import Entered


@dataclass(frozen=True)
class Terms:
    discount: int = 0

    def __call__(self, amount):
        return amount - self.discount


TERMS = Terms(1)
PICK = max
ZONE = timezone(timedelta(hours=1))
handlers = {{}}


def handles(cls):
    def register(function):
        handlers[cls] = function
        return function
    return register


@handles(Entered)
def entered(stall, event):
    stall.handled += 1


@dataclass
class Stall(Aggregate, log_type="stall", events=[Entered]):
    total: int = 0
    handled: int = 0
    failed: int = 0

    def apply(self, record: EventRecord) -> None:
        handlers[type(record.event)](self, record.event)
        self.total += PICK(TERMS(record.event.amount), 2)
        self.total += {package}.rates.vat(record.event.amount)
        self.total += record.recorded_at.astimezone(ZONE).hour
        self.when(record.event)

    @functools.singledispatchmethod
    def when(self, event) -> None:
        self.failed += 1

    @when.register
    def _(self, event: Entered) -> None:
        try:
            amount = int(event.text)
            self.total += amount
        except ValueError:
            pass

    @when.register
    def _(self, event: int) -> None:
        self.total += event
"""
RATES = "def vat(amount):\n    return amount * 19 // 100\n"
ONE_TRY = """
            amount = int(event.text)
            self.total += amount
        except ValueError:
            pass
"""
OTHER_TRY = """
            amount = int(event.text)
        except ValueError:
            pass
        else:
            self.total += amount
"""


@pytest.fixture
def stall(scratch_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that returns the fingerprint of a stall whose source was changed."""
    package = f"stalls{uuid4().hex[:8]}"

    def take(old: str = "", new: str = "") -> str:
        for name, source in (("", ""), ("rates", RATES), ("shop", STALL)):
            full = f"{package}.{name}" if name else package
            module = ModuleType(full)
            module.__file__ = str(tmp_path / f"{name or '__init__'}.py")
            module.__path__ = []
            monkeypatch.setitem(sys.modules, full, module)
            source = source.format(package=package)
            if old and old in source:
                source = source.replace(old, new)
                assert new in source
            exec(compile(source, module.__file__, "exec"), module.__dict__)
            if name:
                setattr(sys.modules[package], name, module)
        return _Digest(sys.modules[f"{package}.shop"].Stall).hexdigest()

    return take


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("stall.handled += 1", "stall.handled += 2", id="a registered handler"),
        pytest.param("Terms(1)", "Terms(2)", id="a constant of a dataclass"),
        pytest.param("amount - self.discount", "amount + self.discount", id="its method"),
        pytest.param("PICK = max", "PICK = min", id="a builtin function"),
        pytest.param("hours=1", "hours=2", id="a time zone"),
        pytest.param("* 19 //", "* 20 //", id="a module inside of a package"),
        pytest.param("amount = int(event.text)", "amount = len(event.text)", id="a dispatch"),
        pytest.param("self.failed += 1", "self.failed += 2", id="what is dispatched to last"),
        pytest.param(
            ONE_TRY,
            OTHER_TRY,
            id="the end of a try",
        ),
    ],
)
def test_a_changed_fold_is_seen(stall, old, new):
    before = stall()

    assert before == stall()
    assert before != stall(old, new)
