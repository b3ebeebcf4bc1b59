"""
The documentation: its code runs, its links lead somewhere, and nothing public is left out.

Every ``python`` block of README.md and docs/ is run, page by page, against the test database.
The blocks of a page share one namespace, from top to bottom, in a process of their own: pages
may register the same names. Their TestCases are run at the end. A block below
``<!-- not run: reason -->`` is only compiled.
"""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import django
import pytest
from django.conf import settings
from django.db import connection, connections

import eventlogs
from eventlogs import conf, exceptions
from eventlogs.stores import BaseStore
from tests.contracts.stores import StoreContract

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TIMEOUT = 120  # seconds for the code of one page

BLOCK = re.compile(
    r"(?P<not_run><!-- not run: [^\n]+ -->\n+)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.M
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.M)
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.M)
LINK = re.compile(r"\[[^]]*]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.M)


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
    """Return what GitHub makes of the headings of a page."""
    headings = HEADING.findall(FENCED.sub("", text_of(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def all_code() -> str:
    """Return all that is set as code, in blocks and in lines."""
    return "\n".join(code for page in PAGES for code in CODE.findall(text_of(page)))


@pytest.mark.parametrize("page", [page for page in PAGES if any(code_of(page))], ids=name_of)
def test_code_runs(page: Path, transactional_db: None):
    database = str(connection.settings_dict["NAME"])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", __name__, name_of(page), database],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )

    assert done.returncode == 0, done.stdout


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
def test_links_lead_somewhere(page: Path):
    for link in LINK.finditer(FENCED.sub("", text_of(page))):
        path, _, anchor = link["target"].partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page

        assert target.exists(), f"{name_of(page)} links to {path}, which does not exist"
        if anchor:
            assert anchor in anchors_of(target), f"{name_of(page)} links to #{anchor} of {path}"


def test_the_index_names_every_page():
    targets = {
        (DOCS / link["target"]).resolve() for link in LINK.finditer(text_of(DOCS / "index.md"))
    }
    for page in DOCS.rglob("*.md"):
        listed = {page, page.parent} if page.parent != DOCS else {page}

        assert listed & targets or page.name == "index.md", name_of(page)


@pytest.mark.parametrize("name", eventlogs.__all__)
def test_every_public_name_is_explained(name: str):
    assert re.search(rf"\b{name}\b", all_code())


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
        cases = unittest.defaultTestLoader.loadTestsFromModule(module)
        if not unittest.TextTestRunner().run(cases).wasSuccessful():
            sys.exit("a TestCase failed")
    finally:
        connections.close_all()


if __name__ == "__main__":
    run(ROOT / sys.argv[1], sys.argv[2])
