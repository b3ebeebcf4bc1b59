"""
Check a built site: its links lead somewhere, and every public name is described in it.

Usage: python tests/check_site.py DIRECTORY, the output of Sphinx.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings

import eventlogs
from eventlogs import exceptions

ROOT = Path(__file__).parent.parent
# django.tasks came with Django 6.0; without it these pages are left out.
NEEDED = {
    "eventlogs.contrib.django_tasks": "django.tasks",
    "eventlogs.contrib.task_backends": "django.tasks",
}
# What a browser loads by itself; links may lead to other sites.
LOADED = {"img", "script", "link", "iframe", "source", "video"}


class Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.foreign: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag has."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                if urlsplit(value).netloc and tag in LOADED:
                    self.foreign.append(value)
                self.targets.append(value)


def broken_links(pages: dict[Path, Page]) -> Iterator[str]:
    """Yield each link of a page that leads nowhere, and what it would load from another site."""
    for page in pages.values():
        for value in page.foreign:
            yield f"{page.path} loads {value}"
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            if not path.exists():
                yield f"{page.path} links to {target}, which does not exist"
            elif path in pages and unquote(parts.fragment) not in {"", *pages[path].anchors}:
                yield f"{page.path} links to {target}, which has no such anchor"


def public_names() -> dict[str, set[str]]:
    """Return the names of each public module of docs/modules.md."""
    table, _, _ = (ROOT / "docs" / "modules.md").read_text().partition("These are not public")
    rows = re.findall(r"^\| `(eventlogs[\w.]*)` \| ([^|]*) \|", table, re.MULTILINE)
    found = {
        module: set(re.findall(r"`(\w+)`", names))
        for module, names in rows
        if module not in NEEDED or find_spec(NEEDED[module])
    }
    # Two modules are listed there as a whole.
    found["eventlogs"] = {*eventlogs.__all__}
    found["eventlogs.exceptions"] = {*exceptions.__all__}
    return found


def missing_names(pages: dict[Path, Page], directory: Path) -> Iterator[str]:
    """Yield each public name that the page of its module neither describes nor links to."""
    modules = public_names()
    described = {anchor for page in pages.values() for anchor in page.anchors}
    for module, names in modules.items():
        page = pages.get(directory / "reference" / f"{module}.html")
        if page is None:
            yield f"{module} has no page in the reference"
            continue
        there = {urlsplit(target).fragment for target in page.targets} | page.anchors
        for name in sorted(names):
            if not {f"{each}.{name}" for each in modules} & described & there:
                yield f"{module}.{name} is not in the reference"
    for name in sorted(modules["eventlogs"]):
        if f"eventlogs.{name}" not in described:
            yield f"eventlogs.{name} is not described as eventlogs.{name}"


def main(directory: Path) -> None:
    directory = directory.resolve()
    pages = {path: Page(path) for path in sorted(directory.rglob("*.html"))}
    found = [*broken_links(pages), *missing_names(pages, directory)]
    for name in ("index.html", "llms.txt", "llms-full.txt", "objects.inv", "search.html"):
        if not (directory / name).exists():
            found.append(f"{name} is missing")
    listed = re.findall(r"\]\(([\w./-]+)\)", (directory / "llms.txt").read_text(encoding="utf-8"))
    found += [f"llms.txt names {each}" for each in listed if not (directory / each).exists()]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    settings.configure(USE_TZ=True, INSTALLED_APPS=["django.contrib.contenttypes", "eventlogs"])
    django.setup()
    main(Path(sys.argv[1]))
