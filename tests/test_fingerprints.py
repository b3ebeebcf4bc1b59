"""Fingerprints: other code has another one, the same code has the same in every process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from itertools import combinations, product

import pytest

from eventlogs.fingerprints import fingerprint
from tests.accounts import Account, Parcel

MODULE = '''
from __future__ import annotations
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from functools import cached_property, partial
import re
import {shop}_helpers as helpers
from {shop}_helpers import rounded, Money, Kind
from eventlogs import Aggregate, event, upcaster

FEE = 3
FEES = {{"a": 1, "b": 2}}
STATE = []
lower_case = 1

def tax(amount):
    return amount * 2

@event("{shop}.sold", version=2)
@dataclass(frozen=True)
class Sold:
    amount: int
    kind: Kind = Kind.GOOD
    price: Money | None = None

    def net(self):
        return self.amount - 1

@upcaster("{shop}.sold", from_version=1)
def add_kind(data):
    return {{**data, "kind": "good"}}

class Base(Aggregate):
    rate = 5

    def helper(self, amount):
        return amount + FEE

@dataclass
class Shop(Base, log_type="{shop}", events=[Sold], version=1):
    sold: int = 0
    names: list[str] = field(default_factory=list)

    def apply(self, record):
        """Apply."""
        if record.type in {{"x", "y", "z", "{shop}.sold"}}:
            self.sold += rounded(tax(record.event.amount)) + helpers.discount(1) + FEES["a"]
            self.sold += sum(map(lambda n: n * 2, [1]))

    @property
    def twice(self):
        return self.sold * 2

    @staticmethod
    def three():
        return 3

    @classmethod
    def four(cls):
        return 4

    @cached_property
    def five(self):
        return 5
'''
HELPERS = """
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

def rounded(amount):
    return inner(amount)

def inner(amount):
    return amount // 1

def discount(amount):
    return amount - 1

def unused(amount):
    return 0

@dataclass(frozen=True)
class Money:
    amount: Decimal

    def double(self):
        return self.amount * 2

class Kind(Enum):
    GOOD = "good"
    BAD = "bad"
"""


NAMES = map("".join, product("abcdefg", repeat=3))  # each module is imported once


@pytest.fixture
def shop(tmp_path, monkeypatch, scratch_registry):
    """Return a function that gives the fingerprint of the shop, some of its code replaced."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(*changes):
        # A module of its own each time; the names in it are taken out of the comparison.
        name = f"shop_{next(NAMES)}"
        module, helpers = MODULE.format(shop=name), HELPERS
        for old, new in changes:
            assert old in module + helpers, old
            module, helpers = module.replace(old, new), helpers.replace(old, new)
        (tmp_path / f"{name}_helpers.py").write_text(helpers)
        (tmp_path / f"{name}.py").write_text(module)
        return name

    return made


def printed(tmp_path, name, **environ):
    """Return the fingerprint of a shop as a process of its own computes it."""
    script = textwrap.dedent(
        f"""
        import django; django.setup()
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        import importlib
        from eventlogs.fingerprints import fingerprint
        print(fingerprint(importlib.import_module({name!r}).Shop))
        """
    )
    import os

    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, **environ},
    )
    return done.stdout.strip()


def test_it_is_the_same_in_every_process(shop, tmp_path):
    name = shop()

    found = {printed(tmp_path, name, PYTHONHASHSEED=str(seed)) for seed in range(3)}

    assert len(found) == 1
    assert len(found.pop()) == 32


def test_it_is_the_same_for_the_rest_of_a_process():
    assert fingerprint(Account) == fingerprint(Account)
    assert fingerprint(Account) != fingerprint(Parcel)


CHANGES = {
    "the declared version": ("version=1)", "version=2)"),
    "a field": ("sold: int = 0", "sold: int = 0\n    more: int = 0"),
    "a field's type": ("sold: int = 0", "sold: float = 0"),
    "a field's default": ("sold: int = 0", "sold: int = 1"),
    "a field's default factory": ("default_factory=list", "default_factory=lambda: ['x']"),
    "apply": ("self.sold += rounded", "self.sold -= rounded"),
    "a constant in apply": ('"x", "y", "z"', '"x", "y", "w"'),
    "a lambda in apply": ("lambda n: n * 2", "lambda n: n * 3"),
    "a property": ("return self.sold * 2", "return self.sold * 3"),
    "a static method": ("return 3", "return 33"),
    "a class method": ("return 4", "return 44"),
    "a cached property": ("return 5", "return 55"),
    "a base class' method": ("return amount + FEE", "return amount - FEE"),
    "a base class' attribute": ("rate = 5", "rate = 6"),
    "a constant of the module": ("FEE = 3", "FEE = 4"),
    "a dict of the module": ('"a": 1', '"a": 2'),
    "a function of the module": ("amount * 2\n\n@event", "amount * 3\n\n@event"),
    "a function of another module": ("return inner(amount)", "return inner(amount + 1)"),
    "a function that one calls": ("amount // 1", "amount // 2"),
    "a function by its module": ("return amount - 1\n\ndef unused", "return amount\n\ndef unused"),
    "an event's field": ("amount: int\n    kind", "amount: float\n    kind"),
    "an event's method": ("return self.amount - 1", "return self.amount - 2"),
    "an event's version": ('sold", version=2', 'sold", version=1'),
    "an event's alias": (", version=2)", ", version=2, aliases=['bought'])"),
    "an upcaster": ('"kind": "good"', '"kind": "bad"'),
    "a class in a field's type": ("amount: Decimal\n", "amount: Decimal = Decimal(1)\n"),
    "a method of such a class": ("return self.amount * 2", "return self.amount * 3"),
    "an enum's value": ('BAD = "bad"', 'BAD = "worse"'),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_code_has_another_one(shop, change):
    assert digest(shop()) != digest(shop(change))


IRRELEVANT = {
    "a comment": ("FEE = 3", "FEE = 3  # of the shop"),
    "lines moved": ("FEE = 3", "\n\n\nFEE = 3"),
    "a function that nobody calls": ("return 0", "return 1"),
    "a variable": ("lower_case = 1", "lower_case = 2"),
    "how it is printed": (
        "    def helper",
        "    def __repr__(self):\n        return 'x'\n\n    def helper",
    ),
}


@pytest.mark.parametrize("change", IRRELEVANT.values(), ids=IRRELEVANT)
def test_the_same_code_has_the_same_one(shop, change):
    assert digest(shop()) == digest(shop(change))


def test_all_of_these_differ_from_one_another(shop):
    some = list(CHANGES.values())[:8]
    digests = [digest(shop(change)) for change in some]

    assert all(one != other for one, other in combinations(digests, 2))


def digest(name):
    """
    Return the fingerprint of a shop, as if each shop's module had the same name.

    A module's name is part of it, so what is told apart here has to be loaded in turn.
    """
    import importlib

    from eventlogs import fingerprints

    module = importlib.import_module(name)
    written = []

    class Recorder(fingerprints._Digest):
        def _write(self, *texts):
            written.extend(text.replace(name, "shop") for text in texts)
            # Bytecode is written in hexadecimal: names do not stand in it.
            super()._write(*texts)

    Recorder(module.Shop)
    return tuple(written)
