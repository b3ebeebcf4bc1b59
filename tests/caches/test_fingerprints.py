"""
Fingerprints differ between different code, and are equal for equal code in every process.

Each kind of change is a package with two releases. A process imports all packages of a release
and prints their fingerprints; so a few processes answer for all kinds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import textwrap
import zipfile
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eventlogs.caches.fingerprints import code_fingerprint, covers, why_unknown
from tests.accounts import Account, Opened, Parcel
from tests.processes import output_of


class Kind(NamedTuple):
    """A package in which NEW is 1 in the first release, and 2 in the second one."""

    apply: str = "self.total += rate(record.event.amount)"
    top: str = ""  # of the aggregate's module
    rules: str = ""  # the module rules
    files: dict[str, str] = {}
    also: str = ""  # a module that only the process imports
    site: dict[str, str] = {}
    events: str = "Added"


RATE = "def rate(amount):\n    return amount * NEW\n"
IMPORTED = "from PKG.rules import rate"
RETIRED = """
from dataclasses import dataclass
from eventlogs import event, upcaster
@event("PKG.retired", version=2)
@dataclass(frozen=True)
class Retired:
    amount: int
    def net(self):
        return self.amount
"""
METADATA = "Metadata-Version: 2.1\nName: PKG_dist\nVersion: 1.0\n"

CHANGES = {
    "apply": Kind(apply="self.total += NEW"),
    "a function": Kind(top=IMPORTED, rules=RATE),
    "a lower-case constant": Kind(apply="self.total += step", top="step = NEW"),
    "a field's default": Kind(apply="pass", top="START = NEW"),
    "an import inside of apply": Kind(
        apply="from PKG.rules import rate; self.total += rate(1)", rules=RATE
    ),
    "a relative import": Kind(top="from .rules import rate", rules=RATE),
    "a relative import of a module": Kind(
        apply="self.total += rules.rate(1)", top="from . import rules", rules=RATE
    ),
    "a relative import from above": Kind(
        top="from .inner.deep import rate",
        files={"inner/__init__.py": "", "inner/deep.py": "from ..rules import rate"},
        rules=RATE,
    ),
    "an import of everything": Kind(top="from PKG.rules import *", rules=RATE),
    "an import of all modules of a package": Kind(
        apply="self.total += rates.rate(1)",
        top="from PKG.inner import *",
        files={"inner/__init__.py": "__all__ = ['rates']", "inner/rates.py": RATE},
    ),
    "a package that a module is in": Kind(
        apply="from PKG.inner import leaf; self.total += leaf.rate()",
        files={
            "inner/__init__.py": "RATE = NEW",
            "inner/leaf.py": "def rate():\n    from PKG import inner\n    return inner.RATE\n",
        },
    ),
    "a module by its package's attribute": Kind(
        apply="self.total += inner.rates.rate(1)",
        top="from PKG import inner",
        files={"inner/__init__.py": "", "inner/rates.py": RATE},
        also="PKG.inner.rates",
    ),
    "a module imported under another name": Kind(
        apply="self.total += r.rate(1)", top="import PKG.rules as r", rules=RATE
    ),
    "a namespace package": Kind(
        top="from PKG.space.rates import rate", files={"space/rates.py": RATE}
    ),
    "a module imported by its name": Kind(
        apply="self.total += rules.rate(1)",
        top="import importlib\nrules = importlib.import_module('PKG.rules')",
        rules=RATE,
    ),
    "a module imported by its relative name": Kind(
        apply="self.total += rules.rate(1)",
        top="from importlib import import_module\nrules = import_module('.rules', __package__)",
        rules=RATE,
    ),
    "a function imported by its path": Kind(
        top="from django.utils.module_loading import import_string\n"
        "rate = import_string('PKG.rules.rate')",
        rules=RATE,
    ),
    "an import that another one is tried for": Kind(
        top="try:\n    from PKG.quick import rate\n"
        "except ImportError:\n    from PKG.rules import rate",
        rules=RATE,
    ),
    "a function that another module hands on": Kind(
        top="from PKG.middle import rate", files={"middle.py": IMPORTED}, rules=RATE
    ),
    "an import that type checkers do not see": Kind(
        top="from typing import TYPE_CHECKING\n"
        "if not TYPE_CHECKING:\n    from PKG.rules import rate",
        rules=RATE,
    ),
    "functools.cache": Kind(top=IMPORTED, rules="import functools\n@functools.cache\n" + RATE),
    "functools.partial": Kind(
        top=IMPORTED,
        rules="import functools, operator\nrate = functools.partial(operator.mul, NEW)",
    ),
    "functools.partialmethod": Kind(
        apply="self.double(1)",
        top="from functools import partialmethod\nfrom PKG.rules import Mixin",
        rules="from functools import partialmethod\nclass Mixin:\n"
        "    def add(self, factor, amount):\n        self.total += factor * amount\n"
        "    double = partialmethod(add, NEW)\n",
    ),
    "an object of a class of the project": Kind(
        apply="self.total += RATES.of(1)",
        top="from PKG.rules import RATES",
        rules="class Rates:\n    def of(self, a):\n        return a * NEW\nRATES = Rates()\n",
    ),
    "a decorator that is a class": Kind(
        top=IMPORTED,
        rules="class times:\n    def __init__(self, f): self.f = f\n"
        "    def __call__(self, a): return self.f(a) * NEW\n@times\ndef rate(a):\n    return a\n",
    ),
    "a registry that the aggregate's modules fill": Kind(
        apply="self.total += handlers['a'](1)",
        top="from PKG.registry import handlers\nimport PKG.rules",
        files={"registry.py": "handlers = {}\n"},
        rules="from PKG.registry import handlers\n" + RATE + "handlers['a'] = rate\n",
    ),
    "a registry that others fill": Kind(
        apply="self.total += handlers['a'](1)",
        top="from PKG.registry import handlers",
        files={"registry.py": "handlers = {}\n"},
        rules="from PKG.registry import handlers\n" + RATE + "handlers['a'] = rate\n",
        also="PKG.rules",
    ),
    "a registry of modules that others fill": Kind(
        apply="self.total += modules[0].rate(1)",
        top="from PKG.registry import modules",
        files={"registry.py": "modules = []\n"},
        rules="import sys\nfrom PKG.registry import modules\n"
        + RATE
        + "modules.append(sys.modules[__name__])\n",
        also="PKG.rules",
    ),
    "a module that others replaced by theirs": Kind(
        apply="self.total += rates.rate(1)",
        top="from PKG import rates",
        files={"rates.py": "def rate(amount):\n    return amount\n"},
        rules="import sys\nfrom PKG import shop\n" + RATE + "shop.rates = sys.modules[__name__]\n",
        also="PKG.rules",
    ),
    **{
        f"a registry that is a {kind}": Kind(
            apply="self.total += sum(each(1) for each in registry.values())",
            top="from PKG.registry import registry",
            files={"registry.py": f"import collections, weakref\nregistry = {kind}()\n"},
            rules="from PKG.registry import registry\n" + RATE + "registry['a'] = rate\n",
            also="PKG.rules",
        )
        for kind in (
            "collections.OrderedDict",
            "collections.ChainMap",
            "collections.UserDict",
            "weakref.WeakValueDictionary",
        )
    },
    "a registry of weak references to methods": Kind(
        apply="self.total += registry[0]()(1)",
        top="from PKG.registry import registry",
        files={"registry.py": "registry = []\n"},
        rules="import weakref\nfrom PKG.registry import registry\n"
        "class Rates:\n    def rate(self, a):\n        return a * NEW\n"
        "rates = Rates()\nregistry.append(weakref.WeakMethod(rates.rate))\n",
        also="PKG.rules",
    ),
    "an object's registry that others fill": Kind(
        apply="self.total += registry.all[0](1)",
        top="from PKG.registry import registry",
        files={
            "registry.py": "class Registry:\n    __slots__ = ('all',)\n    def __init__(self):\n"
            "        self.all = []\nregistry = Registry()\n"
        },
        rules="from PKG.registry import registry\n" + RATE + "registry.all.append(rate)\n",
        also="PKG.rules",
    ),
    "a function dispatched by others": Kind(
        apply="self.total += rate(1)",
        top="from PKG.registry import rate",
        files={
            "registry.py": "import functools\n@functools.singledispatch\ndef rate(a): return 0\n"
        },
        rules="from PKG import registry\n@registry.rate.register\ndef _(a: int):\n    return NEW\n",
        also="PKG.rules",
    ),
    "a method that others replaced": Kind(
        apply="pass",
        rules="from PKG import shop\ndef apply(self, record):\n    self.total += NEW\n"
        "shop.Vat.apply = apply\n",
        also="PKG.rules",
    ),
    "a base class": Kind(
        apply="self.add(1)",
        top="from PKG.rules import Mixin",
        rules="class Mixin:\n    def add(self, a):\n        self.total += a * NEW\n",
    ),
    "the class of a field": Kind(
        apply="self.total += record.event.price.net()",
        top="from PKG.rules import Money\n@event('PKG.priced')\n@dataclass(frozen=True)\n"
        "class Priced:\n    price: Money\n",
        rules="from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Money:\n"
        "    amount: int\n    def net(self):\n        return self.amount - NEW\n",
        events="Added, Priced",
    ),
    "an event of another module": Kind(
        apply="self.total += record.event.net()",
        top="from PKG.rules import Retired",
        rules=RETIRED.replace("return self.amount", "return self.amount * NEW")
        + "@upcaster('PKG.retired', from_version=1)\ndef up(data):\n    return data\n",
        events="Added, Retired",
    ),
    "an upcaster in a module that is not imported": Kind(
        top="from PKG.retired import Retired",
        apply="pass",
        files={"retired.py": RETIRED},
        rules="from eventlogs import upcaster\n@upcaster('PKG.retired', from_version=1)\n"
        "def up(data):\n    return {'amount': NEW}\n",
        also="PKG.rules",
        events="Added, Retired",
    ),
    "an upcaster that a function makes": Kind(
        top="from PKG.retired import Retired",
        apply="pass",
        files={
            "retired.py": RETIRED,
            "makers.py": "def to(n):\n    return lambda data: {'amount': n}\n",
        },
        rules="from eventlogs import upcaster\nfrom PKG.makers import to\n"
        "upcaster('PKG.retired', from_version=1)(to(NEW))\n",
        also="PKG.rules",
        events="Added, Retired",
    ),
    "an event that is no longer named": Kind(
        top="import PKG.rules",
        apply="self.total += record.event.net()",
        rules=RETIRED.replace("return self.amount", "return self.amount * NEW"),
    ),
    "a package installed beside": Kind(
        top="from PKG_dist.rules import rate",
        site={"PKG_dist/__init__.py": "", "PKG_dist/rules.py": RATE},
    ),
    "an installed distribution of the same version": Kind(
        top="from PKG_dist import rate",
        site={
            "PKG_dist/__init__.py": "from PKG_dist.rules import rate",
            "PKG_dist/rules.py": RATE,
            "PKG_dist-1.0.dist-info/METADATA": METADATA,
        },
    ),
    "a distribution whose files were changed in their place": Kind(
        top="from PKG_dist.rules import rate",
        site={
            "PKG_dist/__init__.py": "",
            "PKG_dist/rules.py": RATE,
            "PKG_dist-1.0.dist-info/METADATA": METADATA,
            "PKG_dist-1.0.dist-info/RECORD": "PKG_dist/rules.py,sha256=old,1\n"
            "PKG_dist/__init__.py,sha256=old,0\n",
        },
    ),
    "a distribution from a directory, and another that it uses": Kind(
        top="from PKG_dist import rate",
        site={
            "PKG_dist/__init__.py": "from PKG_more import rate",
            "PKG_dist-1.0.dist-info/METADATA": METADATA,
            "PKG_dist-1.0.dist-info/direct_url.json": '{"url": "file:///x", "dir_info": {}}',
            "PKG_more/__init__.py": RATE,
        },
    ),
    "a distribution that another one requires": Kind(
        top="from PKG_dist import rate",
        site={
            "PKG_dist/__init__.py": "from PKG_more import rate",
            "PKG_dist-1.0.dist-info/METADATA": METADATA + "Requires-Dist: PKG-MORE>=1\n\nx",
            "PKG_more/__init__.py": RATE,
            "PKG_more-1.0.dist-info/METADATA": METADATA.replace("dist", "more"),
        },
    ),
}

SAME = {
    "a set of functions": Kind(
        top=f"{IMPORTED}\nrates = {{rate, len, print}}\nnames = frozenset('abcdef')", rules=RATE
    ),
    "a default that is a set": Kind(top="from PKG.rules import rate", rules=RATE),
    "an assert": Kind(
        top=IMPORTED, rules='def rate(a):\n    """Doc."""\n    assert a\n    return a\n'
    ),
    "what only type checkers import": Kind(
        top="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PKG.rules import rate",
        rules=RATE,
    ),
    "a module that the process imports besides": Kind(rules=RATE, also="PKG.rules", apply="pass"),
    "a module of the project that uses the aggregate": Kind(
        apply="pass", rules="from PKG.shop import Vat\nSTEP = NEW\n", also="PKG.rules"
    ),
}

SHOP = """
from dataclasses import dataclass, field
from eventlogs import Aggregate, event

@event("PKG.added")
@dataclass(frozen=True)
class Added:
    amount: int

{top}

@dataclass
class Vat({base}Aggregate, log_type="PKG", events=[{events}]):
    total: int = {start}

    def apply(self, record):
        {apply}
"""

PROGRAM = """
import importlib, json, sys
from django.conf import settings
settings.configure(SECRET_KEY="k", INSTALLED_APPS=["eventlogs"], USE_TZ=True)
import django
django.setup()
if "trace" in sys.argv:
    sys.settrace(lambda *args: None)
from eventlogs.caches.fingerprints import code_fingerprint, why_unknown
found = {}
for name, also in json.load(open(sys.argv[1])).items():
    shop = importlib.import_module(name + ".shop")
    if also:
        importlib.import_module(also)
    found[name] = code_fingerprint(shop.Vat) or "?" + why_unknown(shop.Vat)
print(json.dumps(found))
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def install(root: Path, kinds: dict[str, Kind], new: int) -> None:
    """Write a release of each kind's package, and the distributions installed with it."""
    also = {}
    for name, kind in kinds.items():

        def filled(text: str, name: str = name) -> str:
            return text.replace("PKG", name).replace("NEW", str(new))

        mixin = "Mixin, " if "Mixin" in kind.top else ""
        start = "START" if "START" in kind.top else "0"
        shop = SHOP.format(
            top=kind.top, apply=kind.apply, events=kind.events, base=mixin, start=start
        )
        files = {"__init__.py": "", "shop.py": shop, "rules.py": kind.rules, **kind.files}
        for path, text in files.items():
            write(root / "project" / name / path, filled(text))
        site = {filled(path): filled(text) for path, text in kind.site.items()}
        for path in list(site):
            package, dot, _ = path.partition("-1.0.dist-info/METADATA")
            if dot:
                site.setdefault(
                    f"{package}-1.0.dist-info/RECORD",
                    "".join(
                        f"{each},sha256={digest(text)},{len(text)}\n"
                        for each, text in site.items()
                        if each.startswith(f"{package}/")
                    ),
                )
        for path, text in site.items():
            write(root / "site-packages" / path, text)
        also[name] = filled(kind.also)
    (root / "kinds.json").write_text(json.dumps(also))


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def run(
    root: Path, program: str, *args: str, options: tuple[str, ...] = (), seed: str = "0"
) -> str:
    """Run a program in a process of its own, and return what it prints."""
    paths = (root / "project", root / "site-packages", *filter(None, sys.path))
    paths_of = os.pathsep.join(map(str, paths))
    return output_of(
        *(*options, "-c", textwrap.dedent(program), *args),
        cwd=root,
        environ={"PYTHONPATH": paths_of, "PYTHONHASHSEED": seed},
    ).strip()


LETTERS = map("".join, product("abcdefgh", repeat=2))
NAMES = dict(zip({**CHANGES, **SAME}, (f"kind_{each}" for each in LETTERS), strict=False))


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The fingerprints of all kinds: of two releases, and of the first one in other processes."""
    kinds = {NAMES[kind]: each for kind, each in {**CHANGES, **SAME}.items()}
    found = []
    for new, options, args, seed in (
        (1, (), (), "0"),
        (2, (), (), "0"),
        (1, ("-O",), (), "1"),
        (1, ("-OO", "-B"), ("trace",), "2"),
    ):
        root = tmp_path_factory.mktemp("release")
        install(root, kinds, new)
        answer = run(root, PROGRAM, str(root / "kinds.json"), *args, options=options, seed=seed)
        found.append(json.loads(answer))
    return found


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_code_has_another_fingerprint(releases, kind):
    one, two = (release[NAMES[kind]] for release in releases[:2])

    assert not one.startswith("?")
    assert not two.startswith("?")
    assert one != two


@pytest.mark.parametrize("kind", [*CHANGES, *SAME])
def test_the_same_code_has_the_same_fingerprint_in_every_process(releases, kind):
    found = {release[NAMES[kind]] for release in (releases[0], *releases[2:])}

    assert len(found) == 1
    assert len(found.pop()) == 32


@pytest.mark.parametrize("kind", list(SAME)[3:])
def test_code_that_an_aggregate_does_not_reach_does_not_change_its_fingerprint(releases, kind):
    assert releases[0][NAMES[kind]] == releases[1][NAMES[kind]]


UNKNOWN = {
    "an import by a name that is made at run time": (
        Kind(
            apply="import importlib; importlib.import_module('PKG.' + 'rules')", rules="VAT = NEW\n"
        ),
        "runs code that is only known at run time",
    ),
    "an import by a name, relative to one that is written out": (
        Kind(
            apply="importlib.import_module(self.name, 'PKG')",
            top="import importlib",
        ),
        "runs code that is only known at run time",
    ),
    "an import under another name": (
        Kind(apply="load(self.name)", top="from importlib import import_module as load"),
        "runs code that is only known at run time",
    ),
    "an import that is handed on": (
        Kind(
            apply="list(map(import_module, self.names))", top="from importlib import import_module"
        ),
        "runs code that is only known at run time",
    ),
    "exec": (Kind(apply="exec(self.code)"), "runs code that is only known at run time"),
    "a module without source": (
        Kind(
            apply="from PKG import built; self.total += built.rate(1)",
            files={"built.so": "\x7fELF"},
        ),
        "has no source that can be read",
    ),
}


def test_code_that_cannot_be_analyzed_has_no_fingerprint(tmp_path):
    kinds = {
        f"unknown_{'abcdefgh'[number]}": kind for number, (kind, _) in enumerate(UNKNOWN.values())
    }
    install(tmp_path, kinds, 1)

    found = json.loads(run(tmp_path, PROGRAM, str(tmp_path / "kinds.json")))

    for answer, (_, why) in zip(found.values(), UNKNOWN.values(), strict=True):
        assert answer.startswith("?")
        assert why in answer


START = """
import os, sys
from pathlib import Path
from django.conf import settings
settings.configure(SECRET_KEY="k", INSTALLED_APPS=["eventlogs"], USE_TZ=True)
import django
django.setup()
from eventlogs.caches.fingerprints import code_fingerprint, covers, why_unknown
rules = Path("project/k/rules.py")
def deploy(path=rules):
    path.with_suffix(".new").write_text(path.read_text().replace("* 1", "* 2"))
    path.with_suffix(".new").rename(path)
"""


@pytest.mark.parametrize(
    ("kind", "program"),
    [
        pytest.param(
            CHANGES["a function"],
            """
            from k.shop import Vat
            deploy()
            print(code_fingerprint(Vat), why_unknown(Vat))
            """,
            id="after it was loaded",
        ),
        pytest.param(
            CHANGES["an import inside of apply"],
            """
            from k.shop import Vat
            before = code_fingerprint(Vat)
            deploy()
            assert code_fingerprint(Vat) != before
            import k.rules
            print(code_fingerprint(Vat), why_unknown(Vat))
            """,
            id="before it was loaded",
        ),
        pytest.param(
            CHANGES["a package installed beside"],
            """
            from k.shop import Vat
            deploy(Path("site-packages/k_dist/rules.py"))
            print(code_fingerprint(Vat), why_unknown(Vat))
            """,
            id="in an installed package",
        ),
    ],
)
def test_a_file_that_changed_after_the_process_began_gives_no_fingerprint(tmp_path, kind, program):
    """The old code must not have the fingerprint of the new code, nor vice versa."""
    install(tmp_path, {"k": kind}, 1)

    answer = run(tmp_path, START + textwrap.dedent(program))

    assert answer.startswith("None the file of the module k")
    assert answer.endswith("changed after it was loaded")


def test_a_directory_whose_symlink_has_changed_gives_no_fingerprint(tmp_path):
    for new in (1, 2):
        install(tmp_path / str(new), {"k": CHANGES["a function"]}, new)
    (tmp_path / "project").symlink_to(tmp_path / "1" / "project")

    answer = run(
        tmp_path,
        START
        + textwrap.dedent(
            """
            import k.rules  # nothing of eventlogs has looked since
            os.symlink("2/project", "next")
            os.rename("next", "project")
            from k.shop import Vat
            assert "1" in Vat.__module__ or k.rules.rate(1) == 1
            print(code_fingerprint(Vat), why_unknown(Vat))
            """
        ),
    )

    assert answer.startswith("None the file of the module k")


def test_a_fingerprint_stays_the_same_when_its_files_are_replaced(tmp_path):
    """A process goes on with the code that it has loaded, and with the entries of that code."""
    install(tmp_path, {"k": CHANGES["a function"]}, 1)

    assert (
        run(
            tmp_path,
            START
            + textwrap.dedent(
                """
                from k.shop import Vat
                before = code_fingerprint(Vat)
                deploy()
                import wave  # whatever is loaded now
                print(before is not None and code_fingerprint(Vat) == before)
                """
            ),
        )
        == "True"
    )


def test_a_script_has_a_fingerprint_and_code_without_a_file_has_none(tmp_path):
    install(tmp_path, {"k": CHANGES["a function"]}, 1)
    shop = (tmp_path / "project" / "k" / "shop.py").read_text()
    program = START + shop + "\nprint(code_fingerprint(Vat), why_unknown(Vat))\n"

    script = tmp_path / "script.py"
    script.write_text(program)

    answer = run(tmp_path, f"import runpy; runpy.run_path({str(script)!r}, run_name='shop')")
    assert answer.startswith("None")
    assert run(tmp_path, program).startswith("None the module __main__ has no file")
    paths = os.pathsep.join(["project", *filter(None, sys.path)])
    found = output_of(script, cwd=tmp_path, environ={"PYTHONPATH": paths})
    assert found.strip().endswith(" None")


def test_a_module_in_a_zip_archive_has_the_same_fingerprint(tmp_path):
    install(tmp_path, {"k": CHANGES["a function"]}, 1)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (tmp_path / "project").rglob("*.py"):
            archive.write(path, path.relative_to(tmp_path / "project"))

    program = START + "from k.shop import Vat\nprint(code_fingerprint(Vat))"
    unpacked = run(tmp_path, program)
    (tmp_path / "project").rename(tmp_path / "away")
    (tmp_path / "all.zip").rename(tmp_path / "project")

    assert run(tmp_path, program) == unpacked


def test_events_of_modules_that_are_not_reached_are_not_covered(tmp_path):
    install(tmp_path, {"k": CHANGES["an event that is no longer named"]}, 1)
    (tmp_path / "project" / "legacy.py").write_text(RETIRED.replace("PKG.retired", "k.older"))

    answer = run(
        tmp_path,
        START
        + "from k.shop import Vat\nimport legacy\n"
        + "names = ('k.added', 'k.retired', 'k.older', 'k.unheard_of')\n"
        + "print(why_unknown(Vat), [covers(Vat, name) for name in names])",
    )

    # k.retired lacks its upcaster, so decoding raises with and without a cache.
    assert answer == "None [True, True, False, False]"


def test_a_fingerprint_does_not_change_within_a_process():
    assert code_fingerprint(Account) == code_fingerprint(Account)
    assert code_fingerprint(Account) != code_fingerprint(Parcel)
    assert covers(Account, "account.opened")
    assert not covers(Account, "parcel.sent") or "tests.accounts" in str(Parcel)


def test_a_class_that_a_function_makes_has_no_fingerprint(scratch_registry):
    """The class may depend on the arguments of the function."""
    from dataclasses import dataclass

    from eventlogs import Aggregate

    @dataclass
    class Local(Aggregate, log_type="local", events=[Opened]):
        n: int = 0

    assert code_fingerprint(Local) is None
    assert "inside of a function" in str(why_unknown(Local))


def test_the_types_of_fields_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Fields may follow from more than the source."""
    kind = Kind(
        apply="pass", top="import os\nAmount: type = {'i': int, 'f': float}[os.environ['KIND']]"
    )
    install(tmp_path, {"k": kind}, 1)
    path = tmp_path / "project" / "k" / "shop.py"
    path.write_text(path.read_text().replace("total: int", "total: Amount"))
    program = START + "from k.shop import Vat\nprint(code_fingerprint(Vat))"
    found: set[Any] = set()
    for each in ("i", "f"):
        found.add(run(tmp_path, f"import os; os.environ['KIND'] = {each!r}\n" + program))

    assert len(found) == 2


def test_the_distribution_of_an_aggregate_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    """Modules that no import reaches count too: they may change objects that are used."""
    registry = "handlers = {}\n"
    found = set()
    for new in ("1", "2"):
        site = tmp_path / new / "site-packages"
        shop = SHOP.format(
            top="from k.registry import handlers",
            apply="self.total += handlers['a'](1)",
            events="Added",
            base="",
            start="0",
        ).replace("PKG", "k")
        rules = "from k.registry import handlers\n" + RATE + "handlers['a'] = rate\n"
        files = {
            "k/__init__.py": "",
            "k/shop.py": shop,
            "k/registry.py": registry,
            "k/rules.py": rules.replace("NEW", new),
        }
        for path, text in files.items():
            write(site / path, text)
        write(site / "k-1.0.dist-info/METADATA", METADATA.replace("PKG_dist", "k"))
        write(
            site / "k-1.0.dist-info/RECORD",
            "".join(f"{path},sha256={digest(text)},1\n" for path, text in files.items()),
        )
        program = START + "import k.rules\nfrom k.shop import Vat\nprint(code_fingerprint(Vat))"
        found.add(run(tmp_path / new, program))

    assert len(found) == 2
    assert "None" not in found
