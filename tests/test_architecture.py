"""Imports run down only, and third parties are imported where they belong."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import eventlogs

ROOT = Path(eventlogs.__file__).parent

# DESIGN, section 11: a module imports from floors below its own, and, on its own floor, from
# modules that do not import it, directly or not. "a/" stands for the package and all in it.
FLOORS = [
    ["conf", "exceptions", "utils/"],
    ["ids", "events/", "fields"],
    ["aggregates", "pages", "deciders", "policies"],
    ["stores/", "managers", "models"],
    ["feed/", "caches/"],
    ["reductions/", "refreshers"],
    ["logs"],
    ["projections/", "checks/", "operations/"],
    [
        *["tasks", "contrib/", "admin/", "management/", "templatetags/"],
        *["testing/", "migrations/", "apps"],
    ],
]

THIRD_PARTIES = {
    # package: the modules that may import it
    "psycopg": {
        "stores/postgresql",
        "feed/postgresql",
        "stores/statements",
        "stores/sessions",
        "stores/direct",
    },
    "celery": {"tasks"},
    "typeid": {"ids"},
    "uuid_utils": {"ids"},
    "msgspec": {
        "aggregates",
        "events/codec",
        "events/registry",
        "events/validation",
        "pages",
        "reductions/timeline",
        "caches/entries",
        "operations/jsonl",
    },
    "tqdm": {"management/progress"},
    "asgiref": None,
    "django": None,
}


class Import(NamedTuple):
    module: str  # which imports
    imported: str  # dotted name
    line: int
    inside_function: bool
    for_types_only: bool


def name_of(path: Path) -> str:
    """Return a file's name as above: stores/base, and stores for stores/__init__.py."""
    return path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")


MODULES = {
    name_of(path): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py" and "__pycache__" not in path.parts
}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_in(name: str, tree: ast.AST) -> Iterator[Import]:
    def walk(node: ast.AST, inside_function: bool, for_types_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            function = inside_function or isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            )
            types = for_types_only or is_type_checking(child)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(name, alias.name, child.lineno, function, types)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name}, line {child.lineno}: a relative import"
                for alias in child.names:
                    imported = f"{child.module}.{alias.name}"
                    yield Import(name, imported, child.lineno, function, types)
            yield from walk(child, function, types)

    return walk(tree, False, False)


IMPORTS = [
    each for name, path in MODULES.items() for each in imports_in(name, ast.parse(path.read_text()))
]


def module_of(dotted: str) -> str | None:
    """Return the module of this package that a dotted name is in, or None for others."""
    if dotted.split(".")[0] != "eventlogs":
        return None
    parts = dotted.split(".")[1:]
    while parts:
        if "/".join(parts) in MODULES:
            return "/".join(parts)
        parts.pop()
    return ""  # the package's own lazy door


def floor_of(module: str) -> int | None:
    for number, floor in enumerate(FLOORS):
        for each in floor:
            if module == each.rstrip("/") or (each.endswith("/") and module.startswith(each)):
                return number
    return None


INTERNAL = [(each, module) for each in IMPORTS if (module := module_of(each.imported)) is not None]


def describe(each: Import) -> str:
    return f"eventlogs/{each.module}, line {each.line}: imports {each.imported}"


def test_every_module_has_a_floor():
    assert len(MODULES) > 15
    assert [module for module in MODULES if floor_of(module) is None] == []


def test_imports_run_down_only():
    upwards = [
        describe(each)
        for each, imported in INTERNAL
        if imported and not each.for_types_only and floor_of(imported) > floor_of(each.module)
    ]

    assert upwards == []


def test_no_imports_go_in_circles():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for each, imported in INTERNAL:
        if imported and not each.for_types_only:
            graph[each.module].add(imported)

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in graph:
        visit(module, ())


# From the bottom up: a file imports from those before it, for types, too.
PROJECTIONS = [
    *["actions", "databases", "deadlines", "defaults", "error_text", "held_causes", "mysql"],
    *["base", "constraints", "rows", "releases", "log_events", "held_logs"],
    *["checkpoints", "leases", "starting"],
    *["lost_connections", "partitions", "failed_events", "one_by_one"],
    *["replays", "inline", "inline_bulk", "inline_batches", "row_batches", "reactions", "batches"],
    *["catch_up", "verify", "shadow_tables", "rebuild", "held_actions", "from_now"],
    *["lags", "waiting", "status", "workers"],
    *["operations", "kinds", "", "declarations"],
]


def test_the_files_of_projections_import_from_below():
    ranks = {f"projections/{name}".rstrip("/"): at for at, name in enumerate(PROJECTIONS)}

    upwards = [
        describe(each)
        for each, imported in INTERNAL
        if each.module in ranks and imported in ranks and ranks[imported] >= ranks[each.module]
    ]

    assert upwards == []
    assert {module for module in MODULES if module.startswith("projections")} == set(ranks)


def test_the_lazy_door_is_used_by_aggregates_only():
    through_the_door = {each.module for each, imported in INTERNAL if imported == ""}

    assert through_the_door <= {
        "aggregates",
        "caches/fingerprints",
    }  # which reads the version there


def test_nothing_is_imported_inside_of_a_function():
    assert [describe(each) for each in IMPORTS if each.inside_function] == []


def test_nothing_is_imported_for_types_that_is_not_upwards():
    needless = [
        describe(each)
        for each, imported in INTERNAL
        if imported and each.for_types_only and floor_of(imported) < floor_of(each.module)
    ]

    assert needless == []


def test_the_package_itself_imports_nothing_but_the_standard_library():
    tree = ast.parse((ROOT / "__init__.py").read_text())

    found = [each for each in imports_in("__init__", tree) if not each.for_types_only]

    assert {each.imported.split(".")[0] for each in found} <= set(sys.stdlib_module_names)


def test_third_parties_are_imported_where_they_belong():
    astray = [
        describe(each)
        for each in IMPORTS
        for package in [each.imported.split(".")[0]]
        if package != "eventlogs"
        and package not in sys.stdlib_module_names
        and (
            package not in THIRD_PARTIES
            or (
                THIRD_PARTIES[package] is not None
                and each.module not in (THIRD_PARTIES[package] or ())
            )
        )
    ]

    assert astray == []


def test_settings_are_read_in_conf_only():
    readers = {
        each.module
        for each in IMPORTS
        if each.imported == "django.conf.settings" or each.imported == "django.conf"
    }

    assert readers <= {"conf", "checks/rules"}


NAMED_TUPLES = {"_asdict", "_fields", "_replace"}  # have public names that begin like this


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLES


def private_names_in(tree: ast.AST) -> set[str]:
    """Return the private names that a module defines: functions, classes, variables, attributes."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                found.add(node.attr)
            case ast.Call(func=ast.Name(id="setattr" | "getattr")):
                found |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    return {name for name in found if isinstance(name, str) and is_private(name)}


def private_names_used(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the private names that a module imports, or asks an object or a module for."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute() if is_private(node.attr):
                yield node.attr, node.lineno
            case ast.ImportFrom():
                yield from (
                    (each.name, node.lineno) for each in node.names if is_private(each.name)
                )


def test_private_names_are_used_in_their_own_file_only():
    """Names that no file of the package defines are Django's or Python's: ``model._meta``."""
    trees = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}
    defined = {module: private_names_in(tree) for module, tree in trees.items()}
    anywhere = set[str]().union(*defined.values())

    foreign = [
        f"eventlogs/{module}, line {line}: uses {name}"
        for module, tree in trees.items()
        for name, line in private_names_used(tree)
        if name in anywhere - defined[module]
    ]

    assert foreign == []


@pytest.mark.parametrize(
    "source", ["from eventlogs.x import _a", "x._a()", "class C:\n    def f(self): self.b._a = 1"]
)
def test_a_private_name_that_is_used_would_be_seen(source):
    assert [name for name, _ in private_names_used(ast.parse(source))] == ["_a"]


def test_every_module_says_what_it_is():
    silent = [
        name
        for name, path in MODULES.items()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]

    assert silent == []


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    import eventlogs.logs\n",
        "class C:\n    async def f(self):\n        from eventlogs import LogId\n",
        "f = lambda: None\ndef g():\n    if True:\n        import psycopg\n",
    ],
)
def test_an_import_inside_of_a_function_would_be_seen(source):
    assert [each.inside_function for each in imports_in("x", ast.parse(source))] == [True]


def test_the_floors_are_apart():
    for lower, upper in pairwise(FLOORS):
        assert not set(lower) & set(upper)
