"""
The pages that docs/index.md lists, and llms.txt (https://llmstxt.org), which is made of that list.

``python docs/extensions/pages.py`` writes llms.txt at the top of the repository; a test compares it
with docs/index.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent

PART = re.compile(r"^## (?P<title>.+)$", re.MULTILINE)
ROW = re.compile(
    r"^\| \[(?P<title>[^]]+)]\((?P<page>[^)#]+)\) \| (?P<description>.+) \|$", re.MULTILINE
)


class Row(NamedTuple):
    """A row of a table in docs/index.md: a page, or a folder, which ends with a slash."""

    title: str
    page: str
    description: str

    @property
    def file(self) -> str:
        """The path of the page in docs/; that of a folder's README for a folder."""
        return f"{self.page}README.md" if self.page.endswith("/") else self.page


def parts_of(index: str) -> Iterator[tuple[str, list[Row]]]:
    """Yield the title of each part of docs/index.md, and its rows."""
    _, *parts = PART.split(index)
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        yield title, [Row(**row.groupdict()) for row in ROW.finditer(text)]


def llms(index: str) -> str:
    """Return the text of llms.txt, of the text of docs/index.md."""
    title, summary = index.split("\n\n")[:2]
    lines = [title, "", f"> {summary.replace('*', '')}", ""]
    lines += [
        "eventlogs is a Python package, a reusable app for Django 5.2 to 6.1 and Python 3.11 to "
        "3.14. Projects import from `eventlogs`, models from `eventlogs.models`, and what tests "
        "need from `eventlogs.testing`.",
        "",
    ]
    for part, rows in parts_of(index):
        lines += [f"## {part}", ""]
        lines += [f"- [{row.title}](docs/{row.file}): {row.description}" for row in rows]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    text = llms((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    (ROOT / "llms.txt").write_text(text, encoding="utf-8")
