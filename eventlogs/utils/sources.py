"""
The source of a module: its digest, and the modules that it imports anywhere in its code.

The source is parsed, not run. Code that is only known at run time (``exec``, an import by a name
that is not written out) cannot be followed, and its line is returned.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

COMPILED: Final = (".so", ".pyd", ".pyc")
# What runs code by a name or a path that may only be known when it is called.
BY_NAME: Final = {"import_module", "import_string", "__import__"}
DYNAMIC: Final = BY_NAME | {
    *("exec_module", "load_module", "resolve_name", "run_module", "run_path"),
    "spec_from_file_location",
}
BUILTIN_DYNAMIC: Final = {"exec", "eval"}
MENTION: Final = re.compile(rf"\b(?:{'|'.join(sorted(DYNAMIC | BUILTIN_DYNAMIC))})\b".encode())
ATTRIBUTE: Final = re.compile(r"\.\s*([^\W\d]\w*)")
BLOCKS: Final = ("body", "orelse", "finalbody", "handlers", "cases")  # of statements


class Unknown(Exception):
    """The code that a module runs cannot be determined; the text says why."""


class Source(NamedTuple):
    """The source of one file: its digest, its imports, and the attributes that it names."""

    digest: str
    imports: tuple[tuple[str, frozenset[str]], ...] = ()  # a module, and names from it
    attributes: frozenset[str] = frozenset()
    dynamic: int | None = None  # the line of an import that cannot be followed


def read(name: str, path: str, spec: ModuleSpec | None, *, follow: bool) -> Source:
    """
    Return the Source of a module's file; without ``follow``, with its digest only.

    Raise Unknown for a module whose source cannot be read.
    """
    try:
        if spec is not None and path != spec.origin:  # in an archive
            data = cast("Any", spec.loader).get_source(name).encode()
        else:
            data = Path(path).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if not follow:
            return Source(digest)
        if path.endswith(COMPILED):
            raise ValueError
        tree = ast.parse(data)
    except (OSError, ValueError, SyntaxError, AttributeError, ImportError):
        raise Unknown(f"the module {name} has no source that can be read") from None
    package = name.rpartition(".")[0] if spec is None else spec.parent or ""
    # Also text in a string that looks like one: to follow too many names is no mistake.
    attributes = frozenset(ATTRIBUTE.findall(data.decode("utf-8", "replace")))
    imports: list[tuple[str, frozenset[str]]] = []
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                imports.append((alias.name, attributes))
                imports.append((alias.name.partition(".")[0], attributes))
        elif isinstance(node, ast.ImportFrom):
            module = _absolute("." * node.level + (node.module or ""), package)
            imports.append((module, frozenset(alias.name for alias in node.names)))
    dynamic = None
    # All expressions are looked through only where there is something to be found.
    for node in _dynamic(tree) if MENTION.search(data) else ():
        target = _target(node, name, package) if isinstance(node, ast.Call) else None
        if target is None:
            dynamic = getattr(node, "lineno", 0)
            break
        head, _, last = target.rpartition(".")
        imports.append((head, frozenset({last})) if head else (last, attributes))
    return Source(digest, tuple(imports), attributes, dynamic)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield all statements, however deep, but those that only type checkers see."""
    queue: list[Any] = [tree]
    while queue:
        node = queue.pop()
        yield node
        test = getattr(node, "test", None) if isinstance(node, ast.If) else None
        is_for_types = getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"
        for name in ("orelse",) if is_for_types else BLOCKS:
            queue.extend(getattr(node, name, ()))


def _dynamic(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield calls of functions that may run any code, and other uses of such functions."""
    called: set[int] = set()
    for node in ast.walk(tree):  # a call comes before what it calls
        if isinstance(node, ast.Call) and _is_dynamic(node.func):
            called.add(id(node.func))
            yield node
        elif isinstance(node, ast.Name | ast.Attribute):
            if id(node) not in called and _is_dynamic(node):
                yield node
        elif isinstance(node, ast.alias) and node.name in DYNAMIC and node.asname:
            yield node


def _is_dynamic(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in DYNAMIC or node.id in BUILTIN_DYNAMIC
    return isinstance(node, ast.Attribute) and node.attr in DYNAMIC


def _target(call: ast.Call, name: str, package: str) -> str | None:
    """Return the absolute name that a call imports, or None where it is not written out."""
    function = getattr(call.func, "id", getattr(call.func, "attr", ""))
    constants = [each.value if isinstance(each, ast.Constant) else None for each in call.args]
    if function not in BY_NAME or not constants or not isinstance(constants[0], str):
        return None
    if not constants[0].startswith("."):
        return constants[0]
    bases = [*call.args[1:], *(each.value for each in call.keywords if each.arg == "package")]
    base = bases[0] if bases else None
    if isinstance(base, ast.Constant) and isinstance(base.value, str):
        return _absolute(constants[0], base.value)
    own = {"__package__": package, "__name__": name}.get(getattr(base, "id", ""))
    return None if own is None else _absolute(constants[0], own)


def _absolute(module: str, package: str) -> str:
    """Return the absolute name of a module that may be given relative to a package."""
    name = module.lstrip(".")
    dots = len(module) - len(name)
    if not dots:
        return name
    base = package.rsplit(".", dots - 1)[0] if dots > 1 else package
    return f"{base}.{name}" if name else base
