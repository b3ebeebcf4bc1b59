"""Imports run down only, and third parties are imported where they belong."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import eventlogs

ROOT = Path(eventlogs.__file__).parent

# DESIGN, section 11. Each floor is an ordered list: a module imports from the floors below its own
# and, on its own floor, only from what stands before it. Imports for types count like all others.
# "a/" stands for the package a and all in it; in there, imports must not go in circles.
FLOORS = [
    ["conf", "utils/", "ids", "values", "exceptions"],
    [
        *["privacy/aead", "privacy/encryption", "privacy/keys", "privacy/memory", "events/"],
        *["context", "observers", "fields", "aggregates", "pages", "deciders", "policies"],
    ],
    [
        *["stores/", "privacy/subject_logs", "privacy/database_keys", "privacy/sealing"],
        *["privacy/appends", "expectations", "idempotency", "managers", "models"],
        "routing",
    ],
    [
        *["feed/", "caches/", "archives/"],
        *["seals/documents", "seals/keys", "seals/leaves", "seals/merkle", "seals/signing"],
    ],
    ["reductions/", "refreshers", "cache_jobs", "observed_appends"],
    ["logs"],
    ["projections/", "checks/", "operations/", "seals/", "privacy/"],
    [
        *["middleware", "signals", "contrib/", "tasks", "templatetags/", "admin/", "management/"],
        *["testing/", "migrations/", "apps"],
    ],
]
MOST_FLOORS = 9

CONTRACTS = (
    *("", "/caches", "/key_stores", "/refreshers", "/restoring", "/stores", "/transactions"),
)
THIRD_PARTIES = {
    # package: the modules that may import it
    "psycopg": {
        "stores/postgresql",
        "stores/group_commit",
        "feed/postgresql",
        "stores/statements",
        "stores/psycopg_connections",
    },
    "celery": {"tasks", "contrib/celery"},
    "typeid": {"ids"},
    "uuid_utils": {"ids"},
    "msgspec": {
        "values",
        "events/codec",
        "contrib/nats",
        "contrib/sending",
        "events/personal",
        "events/redaction",
        "events/schemas",
        "events/sealed",
        "events/validation",
        "pages",
        "reductions/timeline",
        "caches/entries",
        "stores/export_lines",
        "operations/archiving/manifests",
        "seals/documents",
        "seals/appended",
        "admin/seals",
        "testing/memory",
        "testing/strategies",
        "testing/contracts/restoring",
    },
    "pytest": {"testing/plugin", *(f"testing/contracts{name}" for name in CONTRACTS)},
    "hypothesis": {"testing/strategies"},
    "rich": {"management/terminal"},
    "opentelemetry": {"contrib/opentelemetry/tracing", "contrib/opentelemetry/metering"},
    "prometheus_client": {
        "contrib/prometheus/collector",
        "contrib/prometheus/metrics",
        "contrib/prometheus/views",
    },
    "rest_framework": {"contrib/rest_framework"},
    "ninja": {"contrib/ninja"},
    "cryptography": {"privacy/aead", "seals/signing"},
    "nats": {"contrib/nats"},
    "pika": {"contrib/rabbitmq"},
    "asgiref": None,
    "django": None,
}


class Import(NamedTuple):
    module: str  # the importing module
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


@cache
def imports() -> list[Import]:
    """Return all imports. Not when this module is collected: parsing takes more than a second."""
    return [
        each
        for name, path in MODULES.items()
        for each in imports_in(name, ast.parse(path.read_text()))
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


def place_of(module: str) -> tuple[int, int] | None:
    """Return a module's floor, and where on it the module stands."""
    for number, floor in enumerate(FLOORS):
        for at, each in enumerate(floor):
            if module == each.rstrip("/") or (each.endswith("/") and module.startswith(each)):
                return number, at
    return None


@cache
def internal() -> list[tuple[Import, str]]:
    """Return the imports of this package's own modules, each with the module."""
    return [
        (each, module) for each in imports() if (module := module_of(each.imported)) is not None
    ]


def describe(each: Import) -> str:
    return f"eventlogs/{each.module}, line {each.line}: imports {each.imported}"


def goes_down(module: str, imported: str) -> bool:
    upper, lower = place_of(module), place_of(imported)
    assert upper is not None
    assert lower is not None
    in_one_package = upper == lower
    return in_one_package or lower < upper


def find_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import one another (Tarjan's algorithm)."""
    found: list[list[str]] = []
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for imported in sorted(graph[module]):
            if imported not in number:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in path:
                lowest[module] = min(lowest[module], number[imported])
        if lowest[module] == number[module]:
            at = path.index(module)
            group = path[at:]
            del path[at:]
            if len(group) > 1 or module in graph[module]:
                found.append(sorted(group))

    for module in graph:
        if module not in number:
            visit(module)
    return found


def test_every_module_has_a_floor():
    assert len(MODULES) > 15
    assert [module for module in MODULES if place_of(module) is None] == []


def test_there_are_few_floors_and_each_entry_is_there():
    entries = [each for floor in FLOORS for each in floor]

    assert len(FLOORS) <= MOST_FLOORS
    assert len(entries) == len(set(entries))
    assert [each for each in entries if each.rstrip("/") not in MODULES] == []


def test_imports_run_down_only():
    upwards = [
        describe(each)
        for each, imported in internal()
        if imported and not goes_down(each.module, imported)
    ]

    assert upwards == []


def test_no_imports_go_in_circles():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for each, imported in internal():
        if imported:
            graph[each.module].add(imported)

    assert find_circles(graph) == []


# From the bottom up: a file imports from those before it, for types, too.
PROJECTIONS = [
    *["actions", "databases", "deadlines", "defaults", "error_text", "held_causes", "mysql"],
    *["plain_rows"],
    *["base", "feeds", "constraints", "rows", "releases", "log_events", "held_logs"],
    *["checkpoints", "leases", "starting", "arrivals"],
    *["lost_connections", "partitions", "failed_events", "one_by_one"],
    *["replays", "inline", "inline_bulk", "inline_batches", "row_batches", "reactions"],
    *["publications", "batches", "publisher_threads"],
    *["catch_up", "verify", "shadow_tables", "rebuild", "held_actions", "from_now"],
    *["lags", "waiting", "status", "workers", "all_databases"],
    *["operations", "kinds", "publisher", "", "declarations"],
]


def test_the_files_of_projections_import_from_below():
    ranks = {f"projections/{name}".rstrip("/"): at for at, name in enumerate(PROJECTIONS)}

    upwards = [
        describe(each)
        for each, imported in internal()
        if each.module in ranks and imported in ranks and ranks[imported] >= ranks[each.module]
    ]

    assert upwards == []
    assert {module for module in MODULES if module.startswith("projections")} == set(ranks)


def test_the_lazy_door_is_used_by_aggregates_only():
    through_the_door = {each.module for each, imported in internal() if imported == ""}

    assert through_the_door <= {
        "aggregates",
        "caches/fingerprints",  # which reads the version there, as does the next
        "contrib/opentelemetry/conventions",
    }


def test_nothing_is_imported_inside_of_a_function():
    assert [describe(each) for each in imports() if each.inside_function] == []


def test_the_package_itself_imports_nothing_but_the_standard_library():
    tree = ast.parse((ROOT / "__init__.py").read_text())

    found = [each for each in imports_in("__init__", tree) if not each.for_types_only]

    assert {each.imported.split(".")[0] for each in found} <= set(sys.stdlib_module_names)


def test_third_parties_are_imported_where_they_belong():
    astray = [
        describe(each)
        for each in imports()
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


# Rows and events are read by name. The first and the last of a sequence may be read by number;
# other numbers only of these.
ROWS = {"row", "event", "record", "exported", "claim"}
NUMBERED_CALLS = {"partition", "rpartition", "split", "rsplit"}  # parts of a text
NUMBERED = {
    **dict.fromkeys(["found", "safe", "placeholder"], "a match: its groups"),
    **dict.fromkeys(["parts", "named", "names"], "parts of a text"),
    **dict.fromkeys(["values", "prepared", "shapes"], "two of a kind, which are compared"),
    **dict.fromkeys(["place", "known", "kept", "waiting", "running", "_jobs"], "a module's pair"),
    "client_for": "what django-redis returns",
}


def number_of(node: ast.Subscript) -> int | None:
    try:
        number = ast.literal_eval(node.slice)
    except ValueError:
        return None
    return number if isinstance(number, int) else None


def numbered_rows_in(tree: ast.AST) -> Iterator[ast.Subscript]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Subscript) or (number := number_of(node)) is None:
            continue
        base = node.value
        if isinstance(base, ast.Subscript) and number_of(base) is not None:
            yield node  # rows[-1][3]
            continue
        if isinstance(base, ast.Subscript):
            base = base.value
        if isinstance(base, ast.Call):
            base = base.func
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        if name in ROWS or (number not in (0, -1) and name not in {*NUMBERED, *NUMBERED_CALLS}):
            yield node


def test_rows_and_events_are_read_by_name():
    by_number = [
        f"eventlogs/{name}, line {each.lineno}: {ast.unparse(each)}"
        for name, path in MODULES.items()
        for each in numbered_rows_in(ast.parse(path.read_text()))
    ]

    assert by_number == []


@pytest.mark.parametrize(
    "source", ["row[7]", "rows[-1][1]", "event[0]", "store.last()[0][-1]", "columns[2]", "f()[1]"]
)
def test_a_row_that_is_read_by_number_would_be_seen(source):
    assert [ast.unparse(each) for each in numbered_rows_in(ast.parse(source))] == [source]


def test_settings_are_read_in_conf_only():
    readers = {
        each.module
        for each in imports()
        if each.imported == "django.conf.settings" or each.imported == "django.conf"
    }

    assert readers <= {"conf"}


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
                found |= {
                    each.value
                    for each in node.args
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
    return {name for name in found if is_private(name)}


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


def test_every_module_has_a_docstring():
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


@pytest.mark.parametrize(
    ("graph", "circles"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, [["a", "b"]]),
        ({"a": {"a"}}, [["a"]]),
        ({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}, [["b", "c"]]),
    ],
)
def test_a_circle_would_be_seen(graph, circles):
    assert find_circles(graph) == circles


def test_an_import_for_types_would_be_seen():
    source = "if TYPE_CHECKING:\n    from eventlogs.logs import LogManager\n"

    assert [each.imported for each in imports_in("ids", ast.parse(source))] == [
        "eventlogs.logs.LogManager"
    ]
