"""
The navigation of the site, made of docs/index.md.

The tables below a heading of docs/index.md become the part of the sidebar with that heading, in
the order of their rows. To add a page, add its row there.

Pages at the top of the repository (the changelog, and those for contributors) are copied to
docs/project/ for the build, and links to them are changed to lead there.
"""

from __future__ import annotations

import re
from pathlib import Path

from pages import parts_of
from sphinx.application import Sphinx

# The pages of the repository, and where they are on the site.
COPIED = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
}
MOVED = {**COPIED, "README.md": "index.md"}

TOCTREE = "\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{files}\n```\n"

# A picture that has a dark twin.
PICTURE = re.compile(r"^(!\[[^]]+]\()(images/time-travel)\.png\)$", re.MULTILINE)
LINK = re.compile(r"(?<=]\()(?P<target>[^)#\s]+)")
MODULE = re.compile(r"^\| `(?P<name>eventlogs[\w.]*)` \|(?=[^|]+\|[^|]+\|$)", re.MULTILINE)


def copy_pages(app: Sphinx) -> None:
    """Copy the pages at the top of the repository into docs/project/."""
    source = Path(app.srcdir)
    for name, copy in COPIED.items():
        text = (source.parent / name).read_text(encoding="utf-8")
        path = source / copy
        path.parent.mkdir(exist_ok=True)
        text = LINK.sub(lambda link: of_the_top(link["target"]), text)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def of_the_top(target: str) -> str:
    """Return where a link of a page at the top leads, if the page is in docs/project/."""
    if target in MOVED:
        return f"../{MOVED[target]}"
    if target == "docs/decisions/":
        return "../decisions/README.md"
    return f"../{target.removeprefix('docs/')}" if target.startswith("docs/") else target


def change_links(app: Sphinx, name: str, source: list[str]) -> None:
    """Change links that leave docs/, or lead to a folder, to pages of the site."""
    if name.startswith("project/"):
        return
    up = "../" * name.count("/")

    def changed(link: re.Match[str]) -> str:
        target = link["target"]
        outside = target.removeprefix(f"{up}../")
        if outside != target and outside in MOVED:
            return up + MOVED[outside]
        return f"{target}README.md" if target.endswith("/") else target

    source[0] = LINK.sub(changed, source[0])


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Append what Sphinx makes the sidebar of: a toctree for each part."""
    if name == "index":
        source[0] = PICTURE.sub(r"\1\2.png){.only-light}\n\1\2-dark.png){.only-dark}", source[0])
        parts = {title: [row.file for row in rows] for title, rows in parts_of(source[0])}
        parts["Reference"].insert(0, "reference/index.rst")
        parts["Project"] = list(COPIED.values())
        for title, files in parts.items():
            source[0] += TOCTREE.format(title=title, files="\n".join(files))
    elif name == "decisions/README":
        source[0] += "\n```{toctree}\n:maxdepth: 1\n:glob:\n\n0*\n```\n"
    elif name == "modules":
        # The pages of docs/extensions/reference.py.
        source[0] = MODULE.sub(
            lambda row: (
                f"| [`{row['name']}`](reference/{row['name']}.rst) |"
                if Path(app.srcdir, "reference", f"{row['name']}.rst").exists()
                else row[0]
            ),
            source[0],
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Take part in a build."""
    app.connect("builder-inited", copy_pages)
    app.connect("source-read", change_links, priority=400)
    app.connect("source-read", add_navigation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
