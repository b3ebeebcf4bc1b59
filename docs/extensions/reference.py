"""
The reference: a page for each public module, made of its docstrings.

docs/modules.md says which modules are public, and which of their names; the order of the pages is
that of its rows. Pages are written to docs/reference/ at each build. A name is described once, on
the page of the module that it is from, by the path that a project imports it by: ``eventlogs``,
where that has the name. Other pages that list it link to it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

from django.db.models import Model
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer

import eventlogs
from eventlogs.projections.base import BaseProjection, RowProjection

ROW = re.compile(r"^\| `(eventlogs[\w.]*)` \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
# Members from these classes and their bases are those of Python and Django.
FOREIGN = (
    "object, ABC, Protocol, Generic, BaseException, Exception, ValueError, ObjectDoesNotExist, "
    "str, tuple, Model, ModelAdmin, Field, TextField, CharField, Thread, Sequence, NamedTuple, "
    "UUIDField"
)
# Django gives each model these.
OF_MODELS = "DoesNotExist, MultipleObjectsReturned, NotUpdated"
# What runs projections calls these methods of them; projects do not.
ENGINE = {
    name
    for each in (BaseProjection, RowProjection)
    for name, value in vars(each).items()
    if isinstance(value, FunctionType | classmethod | property)
}

# Modules that are left out where a package is missing: django.tasks came with Django 6.0.
NEEDED = {
    "eventlogs.contrib.django_tasks": "django.tasks",
    "eventlogs.contrib.task_backends": "django.tasks",
}


@dataclass(frozen=True)
class Module:
    """A row of docs/modules.md."""

    name: str
    names: tuple[str, ...]
    purpose: str


@dataclass(frozen=True)
class Named:
    """A public name, its object, and the path that a project imports it by."""

    path: str
    name: str
    value: Any

    @property
    def directive(self) -> str:
        """The directive of Sphinx that describes it."""
        if inspect.isclass(self.value):
            return self._of_class(self.value)
        if callable(self.value):
            return f".. autofunction:: {self.path}"
        module, _, name = self.path.rpartition(".")
        kind = "data"
        if task := getattr(self.value, "func", None):  # of django.tasks
            kind, name = "function", f"{name}{inspect.signature(task)}"
        lines = [f".. py:{kind}:: {name}", f"   :module: {module}", ""]
        lines += [f"   {line}" for line in self.docstring.split("\n")]
        return "\n".join(lines)

    def _of_class(self, value: type) -> str:
        is_error = issubclass(value, BaseException)
        # Given, where Python's own is meant: Sphinx would look for it in the wrong file, because
        # errors say that they are from eventlogs.exceptions, wherever they are written.
        ours = [each for each in value.__mro__ if each.__module__.startswith("eventlogs")]
        has_facts = any("__init__" in vars(each) for each in ours)
        signature = "(*args)" if is_error and not has_facts else ""
        lines = [
            f".. {'autoexception' if is_error else 'autoclass'}:: {self.path}{signature}",
            f"   :inherited-members: {FOREIGN}",
        ]
        public = {getattr(eventlogs, name) for name in eventlogs.__all__}
        if is_error or public & {*value.__bases__}:
            lines.append("   :show-inheritance:")
        if issubclass(value, Model):
            names = ", ".join(f"``{field.name}``" for field in value._meta.fields)
            lines += [f"   :exclude-members: {OF_MODELS}", "", f"   Fields: {names}."]
        # Attributes that a base which is not public declares, for projects to set.
        for base in value.__mro__[1:]:
            for paragraph in (inspect.getdoc(base) or "").split("\n\n"):
                if base not in public and paragraph.startswith("Class attributes:"):
                    lines += ["", *(f"   {line}" for line in paragraph.split("\n"))]
        return "\n".join(lines)

    @property
    def docstring(self) -> str:
        """Its docstring; that of data stands below the assignment."""
        function = getattr(self.value, "func", self.value)  # that of a task of django.tasks
        if callable(function):
            return inspect.getdoc(function) or ""
        modules = [
            name
            for name, module in sys.modules.items()
            if name.startswith("eventlogs") and vars(module).get(self.name) is self.value
        ]
        for name in sorted(modules):
            if lines := ModuleAnalyzer.for_module(name).find_attr_docs().get(("", self.name)):
                return "\n".join(lines).strip()
        raise ExtensionError(f"{self.path} has no docstring below its assignment.")

    @property
    def role(self) -> str:
        """A link to its description."""
        return f":py:obj:`{self.name} <{self.path}>`"

    @property
    def summary(self) -> str:
        """The first sentence of its docstring, on one line."""
        return " ".join(self.docstring.split("\n\n")[0].split()).removesuffix("::")


def modules_of(page: str) -> Iterator[Module]:
    """Yield the public modules that docs/modules.md lists."""
    for name, names, purpose in ROW.findall(page.partition("These are not public")[0]):
        if name in NEEDED and find_spec(NEEDED[name]) is None:
            continue
        listed = tuple(re.findall(r"`(\w+)`", names))
        if name in ("eventlogs", "eventlogs.exceptions"):  # they are listed as a whole
            listed = tuple(import_module(name).__all__)
        yield Module(name, listed, purpose)


class Reference:
    """All public names, and the pages that describe them."""

    def __init__(self, page: str) -> None:
        self.modules = list(modules_of(page))
        self.top = set(eventlogs.__all__)
        # `eventlogs` last, so that only those are described there that no other page has.
        self.homes: dict[str, str] = {}
        last = ("eventlogs.values", "eventlogs")
        rows = [each for each in self.modules if each.name not in last]
        rows += [each for each in self.modules if each.name in last]
        for module in rows:
            for name in module.names:
                self.homes.setdefault(self.path(module.name, name), module.name)

    def path(self, module: str, name: str) -> str:
        """Return the path that a project imports a name by."""
        if name in self.top:
            there = getattr(import_module(module), name, None)
            if there is None or there is getattr(eventlogs, name):
                return f"eventlogs.{name}"
        home = getattr(getattr(import_module(module), name, None), "__module__", module)
        listed = {each.name: each.names for each in self.modules}
        return f"{home}.{name}" if name in listed.get(home, ()) else f"{module}.{name}"

    def named(self, module: Module) -> list[Named]:
        """Return the names of a module."""
        there = import_module(module.name)
        return [
            Named(self.path(module.name, name), name, getattr(there, name)) for name in module.names
        ]

    def text(self, module: Module) -> str:
        """Return the page of a module, as reStructuredText."""
        named = self.named(module)
        here = [each for each in named if self.homes[each.path] == module.name]
        elsewhere = [each for each in named if each not in here]
        lines = [module.name, "=" * len(module.name), ""]
        lines += [f".. py:module:: {module.name}", ""]
        if docstring := inspect.getdoc(import_module(module.name)):
            lines += [docstring, ""]
        for path in sorted({each.path.rpartition(".")[0] for each in here}):
            names = ", ".join(each.name for each in here if each.path.rpartition(".")[0] == path)
            line = f"from {path} import {names}"
            if len(line) > 88:
                line = (
                    f"from {path} import (\n       " + names.replace(", ", ",\n       ") + ",\n   )"
                )
            lines += [".. code-block:: python", "", f"   {line}", ""]
        for each in here:
            lines += [each.directive, ""]
        if elsewhere:
            if here:
                lines += ["Also here", "-" * 9, ""]
            lines += [".. list-table::", "   :widths: 30 70", ""]
            for each in sorted(elsewhere, key=lambda each: each.name.lower()):
                lines += [f"   * - {each.role}", f"     - {each.summary}"]
        return "\n".join([*lines, ""])


def write(path: Path, text: str) -> None:
    """Write a file, unless it has this text: Sphinx builds what is newer."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_pages(app: Sphinx) -> None:
    """Write docs/reference/."""
    page = Path(app.srcdir, "modules.md").read_text(encoding="utf-8")
    directory = Path(app.srcdir, "reference")
    directory.mkdir(exist_ok=True)
    reference = Reference(page)
    written = {"index.rst"}
    for module in reference.modules:
        write(directory / f"{module.name}.rst", reference.text(module))
        written.add(f"{module.name}.rst")
    title = "API"
    lines = [title, "=" * len(title), ""]
    lines += [
        "A page for each public module, made of its docstrings. "
        "Most projects import from :py:mod:`eventlogs` only.",
        "",
        ".. toctree::",
        "   :maxdepth: 1",
        "",
        *(f"   {module.name}" for module in reference.modules),
        "",
    ]
    write(directory / "index.rst", "\n".join(lines))
    for path in directory.glob("*.rst"):
        if path.name not in written:
            path.unlink()


def skip(app: Sphinx, what: str, name: str, value: Any, skips: bool, options: Any) -> bool | None:
    """Leave out members of Python and Django, and what only the engine of projections calls."""
    function = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", value)))
    owner = getattr(function, "__objclass__", function)
    module = getattr(owner, "__module__", None)
    if callable(function) and module is not None and not module.startswith("eventlogs"):
        return True
    is_of_a_projection = str(module).startswith("eventlogs.projections.")
    # How errors make their messages; and fields of named tuples, which the signature shows.
    is_said = name == "message_of" or str(value.__doc__).startswith("Alias for field number")
    return True if is_said or (is_of_a_projection and name in ENGINE) else None


def name_defaults(
    app: Sphinx,
    what: str,
    name: str,
    value: Any,
    options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str, str | None] | None:
    """Show a default that is no literal as "...", so that Sphinx can read the signature."""
    if signature is None:
        return None
    return re.sub(r"= ?<[^<>=]+>", "= ...", signature), returned


def setup(app: Sphinx) -> dict[str, bool]:
    """Take part in a build."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", name_defaults)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
