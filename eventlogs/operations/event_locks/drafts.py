"""
Drafts of upcasters: the code that a changed event class needs, written into its module.

A draft converts what is known (a field that has another name, a text of a number), and marks each
line that needs a decision. It raises NotImplementedError until a person has decided.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from eventlogs.events.registry import EventType
from eventlogs.events.schemas import NOT, Difference, fields_of, shape_of, words_of
from eventlogs.operations.event_locks.locks import Change, renamed

CONVERSIONS: Final = {
    ("integer", "string"): "str({old})",
    ("number", "string"): "str({old})",
    ("string", "integer"): "int({old})",
    ("string", "number"): "float({old})",
    ("number", "integer"): "int({old})",
    ("integer", "decimal"): "str({old})",
    ("number", "decimal"): "str({old})",
}


class Draft(NamedTuple):
    """The module that was changed, and the code that was added to it."""

    path: Path
    code: str


def draft(change: Change, old: Mapping[str, Any]) -> Draft:
    """
    Write the upcaster that a change needs into the module of its event class.

    ``old`` is the shape of the data. Where the version was not raised yet, the decorator gets the
    next one. Raise OSError for a file that cannot be read or written, and ValueError where the
    decorator is not found in it; nothing is written then.
    """
    event_type, version = change.event_type, change.from_version
    assert event_type is not None
    assert version is not None
    path = Path(inspect.getfile(event_type.cls))
    source = path.read_text(encoding="utf-8")
    if event_type.version == version:
        source = with_version(source, event_type, version + 1)
    code = upcaster_of(event_type, version, change.differences, old)
    if not _binds(source, "upcaster"):
        code = f"from eventlogs import upcaster  # noqa: E402\n\n\n{code}"
    path.write_text(f"{source.rstrip()}\n\n\n{code}", encoding="utf-8")
    return Draft(path, code)


def upcaster_of(
    event_type: EventType, version: int, found: Sequence[Difference], old: Mapping[str, Any]
) -> str:
    """Return the code of an upcaster from a version to the next one."""
    new = shape_of(event_type)
    lines, questions = _body(found, old, new)
    name = re.sub(r"\W", "_", event_type.name).lower()
    body = ["    data = {**data}", *(f"    {each}" for each in lines), "    return data"]
    if questions:
        body.insert(0, '    raise NotImplementedError("Decide the lines below, then remove this.")')
    return "\n".join(
        [
            f'@upcaster("{event_type.name}", from_version={version})',
            f"def {name}_from_{version}(data: dict) -> dict:",
            f'    """Return data of version {version + 1}; drafted by makeevents."""',
            *body,
            "",
        ]
    )


def _body(
    found: Sequence[Difference], old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[list[str], int]:
    was, now = fields_of(old), fields_of(new)
    lines, questions = [], 0
    pairs = renamed(found, old, new)
    for before, after in pairs:
        lines.append(f'data["{after}"] = data.pop("{before}")  # renamed? check it')
    done = {name for pair in pairs for name in pair}
    for name, each in _by_field(found):
        if name in done:
            continue
        done.add(name)
        if each.what == "removed":
            lines.append(f'data.pop("{name}", None)  # read no more')
        elif each.what == "added" and each.kind == NOT:
            questions += 1
            words = words_of(now[name], new)
            lines.append(f'data["{name}"] = ...  # {words}: what do old events have?')
        elif each.what == "changed" and each.kind == NOT:
            one, other = words_of(was[name], old), words_of(now[name], new)
            conversion = CONVERSIONS.get((one, other))
            if conversion is None:
                questions += 1
                lines.append(f'data["{name}"] = ...  # {one} before, {other} now')
            else:
                value = conversion.format(old=f'data["{name}"]')
                lines.append(f'data["{name}"] = {value}  # {one} before, {other} now')
        elif each.what == "default":
            questions += 1
            lines.append(f'data.setdefault("{name}", ...)  # the default of that time')
    return lines, questions


def _by_field(found: Sequence[Difference]) -> Iterator[tuple[str, Difference]]:
    """Yield the fields that differ, first those whose data does not fit."""
    for each in sorted(found, key=lambda each: each.kind != NOT):
        if each.field is not None:
            yield each.field, each


def with_version(source: str, event_type: EventType, version: int) -> str:
    """Return a module's source in which the decorator of a class has another version."""
    call = _decorator(ast.parse(source), event_type)
    if call is None:
        raise ValueError(
            f'@event("{event_type.name}") was not found in its module: raise the version by hand, '
            f"then run makeevents --write again."
        )
    lines = [each.encode() for each in source.splitlines(keepends=True)]
    for keyword in call.keywords:
        if keyword.arg == "version":
            return _replaced(lines, keyword.value, str(version))
    last = max(
        [*call.args, *(each.value for each in call.keywords)],
        key=lambda each: (each.end_lineno or 0, each.end_col_offset or 0),
    )
    return _replaced(lines, last, None, f", version={version}")


def _replaced(lines: list[bytes], node: ast.expr, text: str | None, after: str = "") -> str:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    first, last = node.lineno - 1, node.end_lineno - 1
    before = b"".join(lines[:first]) + lines[first][: node.col_offset]
    behind = lines[last][node.end_col_offset :] + b"".join(lines[last + 1 :])
    if text is None:
        whole = b"".join(lines)
        text = whole[len(before) : len(whole) - len(behind)].decode()
    return f"{before.decode()}{text}{after}{behind.decode()}"


def _decorator(tree: ast.Module, event_type: EventType) -> ast.Call | None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == event_type.cls.__name__:
            for call in node.decorator_list:
                if (
                    isinstance(call, ast.Call)
                    and call.args
                    and isinstance(call.args[0], ast.Constant)
                    and call.args[0].value == event_type.name
                ):
                    return call
    return None


def _binds(source: str, name: str) -> bool:
    """Return whether a module imports or defines a name at its top."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom) and any(
            (each.asname or each.name) == name for each in node.names
        ):
            return True
    return False
