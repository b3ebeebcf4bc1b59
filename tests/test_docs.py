"""
The documentation: its code runs, its links lead somewhere, and nothing public is left out.

Every ``python`` block of README.md and docs/ is run, page by page, against the test database.
The blocks of a page share one namespace, from top to bottom, in a process of their own: pages
may register the same names. Their TestCases are run at the end. A block below
``<!-- not run: reason -->`` is only compiled.
"""

from __future__ import annotations

import ast
import re
import sys
import unittest
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import resolve_name
from types import CodeType, ModuleType
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.management.base import CommandParser
from django.db import connection, connections
from django.test.utils import setup_test_environment

import eventlogs
from eventlogs import conf, exceptions
from eventlogs.stores import BaseStore
from eventlogs.testing.contracts.stores import StoreContract
from tests.processes import ROOT, output_of

DOCS = ROOT / "docs"
ABOUT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
# Not docs/project/, which a build of the site writes.
PAGES_OF_DOCS = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("decisions/*.md"))]
PAGES = [*(ROOT / name for name in ABOUT), *PAGES_OF_DOCS]
# tests/test_tutorial.py runs it, as a project.
RUN_ELSEWHERE = {"docs/tutorial.md"}
# Pages for contributors, and lists of the parts of this package.
FOR_CONTRIBUTORS = {"CONTRIBUTING.md", "docs/guarantees.md", "docs/modules.md"}

BLOCK = re.compile(
    r"(?P<not_run><!-- not run: [^\n]+ -->\n+)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.M
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.M)
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.M)
LINK = re.compile(r"\[[^]]*]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.M)
CHECK_ID = re.compile(r"eventlogs\.[EW]\d{3}")
# A path in this repository, not in a URL, and after "::" a name in that file.
PATH = re.compile(
    r"(?<![\w/])(?P<path>(?:eventlogs|tests|benchmarks|example_project)/[\w./*-]*[\w*/])(?:::(?P<name>\w+))?"
)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"(?<![\w.@/-])eventlogs(?:\.[A-Za-z_]\w*)+(?![\w<*-]|\.[<*\w])")
# Dotted names that are none of Python: of checks, permissions, tasks, cache keys, settings of SQL,
# and of OpenTelemetry.
NOT_PYTHON = re.compile(
    r"eventlogs\.([EW]\d{3}|(view|operate)_\w+|(refresh|sweep)_\w+|run_projections|make_seal|reduction|fence_"
    r"|(log|event|finding|projection|reduce|reduced|refresh|held)\.\w+|cache\.(writes|errors)"
    r"|up|findings|appends|outcome|reason|database|projection)$"
)
ROW = re.compile(r"^\|(?! -).+\|$", re.M)
FROM_IMPORT = re.compile(r"^\s*from (eventlogs[\w.]*) import ", re.M)


def extension(name: str) -> Any:
    """Import a module of the site's extensions, which are in no package."""
    spec = spec_from_file_location(name, DOCS / "extensions" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


listing = extension("pages")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(page: Path) -> Iterator[tuple[CodeType, bool]]:
    """Yield the page's blocks, compiled, and whether each is to be run."""
    text = text_of(page)
    for block in BLOCK.finditer(text):
        # As many empty lines above it as there are in the page: a traceback shows its place.
        lines_above = text.count("\n", 0, block.start("code"))
        yield (
            compile("\n" * lines_above + block["code"], str(page), "exec"),
            block["not_run"] is None,
        )


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    headings = HEADING.findall(FENCED.sub("", text_of(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def all_code() -> str:
    """Return the text of all code blocks and inline code."""
    return "\n".join(code for page in PAGES for code in CODE.findall(text_of(page)))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(code_of(page)) and name_of(page) not in RUN_ELSEWHERE],
    ids=name_of,
)
def test_code_examples_run(page: Path, transactional_db: None):
    database = str(connection.settings_dict["NAME"])

    output_of("-W", "error", "-m", __name__, name_of(page), database)


class TestStoreOfTheStoragePage(StoreContract):
    @pytest.fixture
    def store(self) -> BaseStore:
        (block,) = (
            block["code"]
            for block in BLOCK.finditer(text_of(DOCS / "storage.md"))
            if "class DictStore" in block["code"]
        )
        namespace: dict[str, Any] = {"__name__": __name__}
        exec(block, namespace)
        store: BaseStore = namespace["DictStore"]()
        return store


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_existing_pages(page: Path):
    for link in LINK.finditer(FENCED.sub("", text_of(page))):
        path, _, anchor = link["target"].partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page

        assert target.exists(), f"{name_of(page)} links to {path}, which does not exist"
        if anchor:
            assert anchor in anchors_of(target), f"{name_of(page)} links to #{anchor} of {path}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_on_pages_exist(page: Path):
    for found in PATH.finditer(text_of(page)):
        files = list(ROOT.glob(found["path"].rstrip("/")))

        assert files, f"{name_of(page)} names {found['path']}, which does not exist"
        if found["name"]:
            assert re.search(rf"\b{found['name']}\b", text_of(files[0])), found[0]


def dotted_names_of(page: Path) -> set[str]:
    """Return the dotted names of this package's Python that a page sets as code."""
    spans = CODE_SPAN.findall(FENCED.sub("", text_of(page)))
    names = {name for span in spans for name in DOTTED.findall(span)}
    return {name for name in names if not NOT_PYTHON.match(name)}


# Modules that need a package which not every environment of the tests has.
NEEDED = {
    "eventlogs.contrib.django_tasks": "django.tasks",
    "eventlogs.contrib.ninja": "ninja",
    "eventlogs.contrib.rest_framework": "rest_framework",
    "eventlogs.contrib.task_backends": "django.tasks",
    "eventlogs.feed.postgresql": "psycopg",
    "eventlogs.stores.postgresql": "psycopg",
    "eventlogs.tasks": "celery",
}


def lacks_its_package(name: str) -> bool:
    """Return whether a module, or a name in it, needs a package that is not installed here."""
    return any(
        f"{name}.".startswith(f"{module}.") and find_spec(package) is None
        for module, package in NEEDED.items()
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_dotted_names_can_be_imported(page: Path):
    for name in dotted_names_of(page):
        if lacks_its_package(name):
            continue
        try:
            resolve_name(name)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{name_of(page)} names {name}: {error}")


def listed_modules() -> dict[str, set[str]]:
    """Return the names that docs/modules.md lists, by their modules."""
    table, _, _ = text_of(DOCS / "modules.md").partition("These are not public")
    rows = re.findall(r"^\| `(eventlogs[\w.]*)` \| ([^|]*) \|", table, re.M)
    return {module: set(re.findall(r"`(\w+)`", names)) for module, names in rows}


def public_modules() -> dict[str, set[str]]:
    """Return all public names, by their modules."""
    return listed_modules() | {"eventlogs": {*eventlogs.__all__, "__version__"}}


@pytest.mark.parametrize("module", listed_modules())
def test_a_public_module_has_the_names_that_are_listed(module: str):
    if lacks_its_package(module):
        pytest.skip(f"it needs {NEEDED[module]}")
    there = import_module(module)

    assert {name for name in public_modules()[module] if not hasattr(there, name)} == set()


def test_every_module_at_the_top_is_listed_as_public_or_not():
    package = Path(eventlogs.__file__).parent
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    named = set(re.findall(r"`eventlogs\.(\w+)", text_of(DOCS / "modules.md")))

    assert modules - {"__init__"} - named == set()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if name_of(page) not in FOR_CONTRIBUTORS], ids=name_of
)
def test_pages_name_public_modules_only(page: Path):
    blocks = "".join(block["code"] for block in BLOCK.finditer(text_of(page)))
    for name in {*dotted_names_of(page), *FROM_IMPORT.findall(blocks)}:
        module, _, attribute = name.rpartition(".")

        assert name in public_modules() or attribute in public_modules().get(module, ()), name


def test_each_promise_has_a_number_and_names_its_tests():
    row = r"^\| G(\d+) \|[^|]+\|([^|]+)\|([^|]+)\|$"
    rows = re.findall(row, text_of(DOCS / "guarantees.md"), re.M)

    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    assert all("`tests/" in tests for _, tests, _ in rows)
    assert all("`tests/" in broken or " none: " in broken for _, _, broken in rows)


# What is tested beside the attacks, and is none.
NO_ATTACKS = {
    "tests/attacks/test_thieves.py::"
    "test_a_broken_version_that_compares_without_the_key_of_the_person_confirms_a_guess",
    "tests/attacks/test_owners.py::test_an_erasure_of_the_log_with_the_last_event_is_no_finding",
}


def names_of_tests_in(path: str) -> set[str]:
    """Return the names of the tests of a file."""
    tree = ast.parse(text_of(ROOT / path))
    functions = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
    return {each for each in functions if each.startswith("test_")}


def test_each_attack_says_who_sees_it_and_names_its_tests():
    tables, _, _ = text_of(DOCS / "attacks.md").partition("## Security notes")
    parts = tables.split("| they try | what happens, or who sees it | test |")[1:]
    rows = [re.split(r" ?\| ?", row)[1:-1] for part in parts for row in ROW.findall(part)]

    assert len(parts) == tables.count("\n## ")
    assert [row for row in rows if len(row) != 3 or not all(row)] == []
    for attack, _, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert tests == ", ".join(f"`{path}::{name}`" for path, name in named), attack
        for path, name in named:
            assert name in names_of_tests_in(path), f"{path}::{name}"


def test_no_attack_of_the_tests_is_missing_on_the_page():
    page = text_of(DOCS / "attacks.md")
    files = [name_of(file) for file in ROOT.glob("tests/attacks/test_*.py")]
    known = {f"{file}::{test}" for file in files for test in names_of_tests_in(file)}

    assert {each for each in known if f"`{each}`" not in page} == NO_ATTACKS


def test_each_name_that_a_public_module_lists_is_on_the_page():
    for module, names in public_modules().items():
        if lacks_its_package(module):
            continue
        listed = set(getattr(import_module(module), "__all__", ()))
        if module not in {"eventlogs", "eventlogs.exceptions"}:  # named there as a whole
            assert listed <= set(names), module


def test_the_index_is_of_this_version():
    stated = re.findall(r"eventlogs \*\*(.+)\*\*", text_of(DOCS / "index.md"))

    assert stated == [eventlogs.__version__]


def test_the_map_of_packages_has_every_package():
    package = Path(eventlogs.__file__).parent
    rooms = {f"eventlogs/{path.parent.name}/" for path in package.glob("*/__init__.py")}
    mapped = re.findall(r"^\| `(eventlogs/\w+/)` \|", text_of(ROOT / "CONTRIBUTING.md"), re.M)

    assert sorted(mapped) == sorted(rooms)


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.M))
    for page in [*PAGES, *ROOT.glob(".github/workflows/*.yml")]:
        named = set(re.findall(r"(?:`|^\$ |run: )make ([a-z-]+)", text_of(page), re.M))

        assert named <= targets, name_of(page)


def test_the_index_names_every_page():
    targets = {
        (DOCS / link["target"]).resolve() for link in LINK.finditer(text_of(DOCS / "index.md"))
    }
    for page in PAGES_OF_DOCS:
        listed = {page, page.parent} if page.parent != DOCS else {page}

        assert listed & targets or page.name == "index.md", name_of(page)


def rows_of_the_index() -> list[Any]:
    """Return the rows that the sidebar of the site is made of."""
    index = text_of(DOCS / "index.md")
    return [row for _, rows in listing.parts_of(index) for row in rows]


def test_the_index_has_four_parts_with_every_page_in_one_of_them():
    titles = [title for title, _ in listing.parts_of(text_of(DOCS / "index.md"))]
    files = [row.file for row in rows_of_the_index()]

    assert titles == ["Tutorial", "How-to guides", "Reference", "Explanation"]
    assert len(files) == len(set(files))
    pages = {page.name for page in DOCS.glob("*.md")} - {"index.md"}
    assert set(files) == pages | {"decisions/README.md"}


def test_llms_txt_has_every_page():
    expected = listing.llms(text_of(DOCS / "index.md"))

    assert text_of(ROOT / "llms.txt") == expected, "run: python docs/extensions/pages.py"


@pytest.mark.parametrize("page", [page for page in PAGES if any(code_of(page))], ids=name_of)
def test_examples_import_what_they_use_of_eventlogs(page: Path):
    known: set[str] = set()
    for block in BLOCK.finditer(text_of(page)):
        tree = ast.parse(block["code"])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                known |= {(name.asname or name.name).partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                known.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known.add(node.id)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}

        assert used & set(eventlogs.__all__) <= known, name_of(page)


def test_every_option_of_every_command_is_on_the_page_of_commands():
    page = text_of(DOCS / "commands.md")
    # Imported here: a page's own process sets Django up after it has imported this module.
    for name, module in import_module("eventlogs.management.subcommands").SUBCOMMANDS.items():
        parser = CommandParser()
        module.add_arguments(parser)
        options = {
            max(action.option_strings, key=len, default="") for action in parser._actions[1:]
        }

        assert f"`{name}`" in page
        assert {each for each in options if not re.search(rf"{each}(?![\w-])", page)} == set(), name


def test_every_picture_of_a_page_exists_and_all_of_them_are_small():
    pictures = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^]]+]\(([^)]+)\)", text_of(page))
    }
    taken = list((DOCS / "images").iterdir())

    assert {picture for picture in pictures if not picture.exists()} == set()
    assert {picture for picture in taken if picture not in pictures} == set()
    assert sum(picture.stat().st_size for picture in taken) < 600_000  # bytes


def test_every_public_name_is_explained():
    code = all_code()

    assert [name for name in eventlogs.__all__ if not re.search(rf"\b{name}\b", code)] == []


def test_every_error_is_on_the_page_of_errors():
    ours = {
        name
        for name, each in vars(exceptions).items()
        if isinstance(each, type) and issubclass(each, eventlogs.EventLogError)
    }

    assert ours <= set(re.findall(r"\w+", text_of(DOCS / "errors.md")))


def test_every_setting_is_on_the_page_of_settings():
    page = text_of(DOCS / "settings.md")

    assert {name for name in conf.DEFAULTS if f'`"{name}"`' not in page} == set()


def run(page: Path, database: str) -> None:
    """Run the code of a page against the database of this name; for the process of its own."""
    settings.DATABASES["default"]["NAME"] = database
    django.setup()
    # Dataclasses and type hints look for the module that a class says it is from.
    module = ModuleType(re.sub(r"\W", "_", name_of(page)))
    sys.modules[module.__name__] = module
    try:
        for code, runs in code_of(page):
            if runs:
                exec(code, vars(module))
        setup_test_environment()  # as Django's test runner does
        cases = unittest.defaultTestLoader.loadTestsFromModule(module)
        if not unittest.TextTestRunner().run(cases).wasSuccessful():
            sys.exit("a TestCase failed")
    finally:
        connections.close_all()


if __name__ == "__main__":
    run(ROOT / sys.argv[1], sys.argv[2])
