"""
Put llms.txt into the site, with links to its pages, and llms-full.txt, the text of all pages.

Both are for programs that read documentation: https://llmstxt.org
"""

from __future__ import annotations

from pathlib import Path

from pages import llms, parts_of
from sphinx.application import Sphinx


def write_llms(app: Sphinx, error: Exception | None) -> None:
    """Write both files beside the pages."""
    if error is not None or app.builder.format != "html":
        return
    source, output = Path(app.srcdir), Path(app.outdir)
    index = (source / "index.md").read_text(encoding="utf-8")
    text = llms(index).replace("](docs/", "](").replace(".md)", ".html)")
    (output / "llms.txt").write_text(text, encoding="utf-8")
    rows = [row for _, rows in parts_of(index) for row in rows]
    files = [
        file
        for row in rows
        for file in (
            sorted((source / row.page).glob("*.md"))
            if row.file != row.page
            else [source / row.file]
        )
    ]
    texts = [file.read_text(encoding="utf-8").strip() for file in files]
    (output / "llms-full.txt").write_text("\n\n".join([*texts, ""]), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Take part in a build."""
    app.connect("build-finished", write_llms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
