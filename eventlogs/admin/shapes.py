"""
JSON for people: the whole of it, or its shape alone for who may not see what is in it.

``markup`` and ``line_markup`` return HTML in which every text of the JSON is isolated
(``<bdi>``): a browser orders the characters of a line by the directions of all of them, so
that without it a text in Arabic or Hebrew moves the quotes, commas and numbers beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

from eventlogs.admin.names import declared_names

LONGEST: Final = 20_000  # characters of one value that are shown beside others
WHOLE: Final = 2_000_000  # characters of a value that is shown for itself
LINE: Final = 200  # characters of a value in one line
DEEPEST: Final = 10  # levels that are indented; a telephone has room for about 40 characters
TYPES: Final = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
ELLIPSIS: Final = "…"


def shape(value: Any) -> Any:
    """
    Return a value of JSON with the names of types in the place of what is in it.

    A key of a mapping is shown where a class declares a field of that name. Any other one may be
    data, such as a person's name; an ellipsis stands for all of these.
    """
    if isinstance(value, dict):
        return {key_shape(name): shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0]), "…"] if len(value) > 1 else [shape(each) for each in value]
    return TYPES.get(type(value), "value")


def shape_of_fields(value: Any) -> Any:
    """Return the shape of a payload, or of metadata, whose own keys are the names of fields."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    return shape(value)


def path_shape(path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return a path in a state, which begins with a field, without the keys that may be data."""
    return (*path[:1], *(part if isinstance(part, int) else key_shape(part) for part in path[1:]))


def key_shape(key: str) -> str:
    """Return a key if it is the name of a field that a class declares, or an ellipsis."""
    return key if key in declared_names() else ELLIPSIS


def line(value: Any) -> str:
    """Return a value of JSON in one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LINE else text[:LINE] + ELLIPSIS


@dataclass(frozen=True, slots=True)
class Markup:
    """JSON as HTML; a template writes it as it is. ``is_cut`` says whether it is not the whole."""

    html: SafeString
    is_cut: bool = False

    def __html__(self) -> str:
        return self.html

    def __str__(self) -> str:
        return self.html


def markup(value: Any, *, longest: int = LONGEST) -> Markup:
    """Return a value of JSON as indented HTML, cut where it is too long."""
    return _joined(_pieces(value, 0), longest, "\n" + ELLIPSIS)


def line_markup(value: Any) -> Markup:
    """Return a value of JSON as HTML in one line, cut where it is too long."""
    return _joined(_pieces(value, None), LINE, ELLIPSIS)


def path_markup(path: tuple[str | int, ...]) -> Markup:
    """Return a path as ``timeline.path_text`` writes it, its names isolated."""
    html = ""
    for part in path:
        if isinstance(part, int):
            html += f"[{part}]"
        elif part.isidentifier():
            html += f"{'.' if html else ''}<bdi>{escape(part)}</bdi>"
        else:
            html += f"[<bdi>&quot;{escape(part)}&quot;</bdi>]"
    return Markup(mark_safe(html))  # each name is escaped above


def _joined(pieces: Iterator[tuple[str, bool]], longest: int, ellipsis: str) -> Markup:
    """Return pieces of text as HTML, those that are texts of their own isolated."""
    parts: list[str] = []
    left = longest
    is_cut = False
    for text, is_isolated in pieces:
        is_cut = len(text) > left
        shown = escape(text[:left])
        parts.append(f"<bdi>{shown}</bdi>" if is_isolated else shown)
        left -= len(text)
        if is_cut:
            parts.append(ellipsis)
            break
    return Markup(mark_safe("".join(parts)), is_cut)  # each piece is escaped above


def _pieces(value: Any, depth: int | None) -> Iterator[tuple[str, bool]]:
    """Yield JSON in pieces, and whether each is to be isolated; a depth of None is one line."""
    if isinstance(value, dict | list) and value:
        inner = None if depth is None else depth + 1
        is_dict = isinstance(value, dict)
        yield "{" if is_dict else "[", False
        yield _break(inner), False
        for number, each in enumerate(value):
            if number:
                yield "," + (" " if inner is None else _break(inner)), False
            if is_dict:
                yield _dumped(str(each)), True
                yield ": ", False
                each = value[each]
            yield from _pieces(each, inner)
        yield _break(depth), False
        yield "}" if is_dict else "]", False
    else:
        yield _dumped(value), isinstance(value, str)


def _break(depth: int | None) -> str:
    return "" if depth is None else "\n" + "  " * min(depth, DEEPEST)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
