"""
JSON as HTML: with its values, or only its shape for users who may not see the values.

``markup`` and ``line_markup`` isolate every text of the JSON (``<bdi>``). A browser orders the
characters of a line by the writing directions of all its texts: without isolation, a text in
Arabic or Hebrew moves the quotes, commas and numbers beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _

from eventlogs.admin.declared_names import declared_names
from eventlogs.admin.personal_values import Hidden
from eventlogs.reductions.timeline import path_text

LONGEST: Final = 20_000  # characters of one value among several
WHOLE: Final = 2_000_000  # characters of the value of a selected event
LINE: Final = 200  # characters of a value in one line
DEEPEST: Final = 10  # levels that are indented: a phone shows about 40 characters a line
TYPES: Final = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
ELLIPSIS: Final = "…"


def shape(value: Any) -> Any:
    """
    Return the shape of a value of JSON: the names of types in the place of values.

    A key of a mapping is shown if a class declares a field of that name. Any other key may be
    data, such as a person's name, and is replaced by an ellipsis.
    """
    if isinstance(value, dict):
        return {key_shape(name): shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0]), ELLIPSIS] if len(value) > 1 else [shape(each) for each in value]
    return value if isinstance(value, Hidden) else TYPES.get(type(value), "value")


def visible(value: Any, sees: bool) -> Any:
    """Return a value for a user who sees payloads, its shape for others."""
    return value if sees else shape(value)


def visible_fields(value: Any, sees: bool) -> Any:
    """
    Return a payload or metadata for a user who sees payloads, their shape for others.

    Their outermost keys are names of fields, and are shown to everybody.
    """
    if isinstance(value, dict):
        return {name: visible(each, sees) for name, each in value.items()}
    return visible(value, sees)


def path_shape(path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return a path in a state without keys that may be data; its first part is a field."""
    return (*path[:1], *(part if isinstance(part, int) else key_shape(part) for part in path[1:]))


def key_shape(key: str) -> str:
    """Return a key if a class declares a field of that name, or an ellipsis."""
    return key if key in declared_names() else ELLIPSIS


@dataclass(frozen=True, slots=True)
class Markup:
    """JSON as safe HTML. ``is_cut`` is True if a part of it was left out."""

    html: SafeString
    is_cut: bool = False

    def __html__(self) -> str:
        return self.html

    def __str__(self) -> str:
        return self.html


def markup(value: Any, *, longest: int = LONGEST) -> Markup:
    """Return a value of JSON as indented HTML, cut after ``longest`` characters."""
    return _joined(_pieces(value, 0), longest, "\n" + ELLIPSIS)


def line_markup(value: Any) -> Markup:
    """Return a value of JSON as HTML in one line, cut after LINE characters."""
    return _joined(_pieces(value, None), LINE, ELLIPSIS)


def path_markup(path: tuple[str | int, ...]) -> Markup:
    """Return a path in the form of ``timeline.path_text``, with each name isolated."""
    html = path_text(path, show=lambda name: f"<bdi>{escape(name)}</bdi>")
    return Markup(mark_safe(html))  # each name is escaped above


def word_for(hidden: Hidden) -> str:
    """Return the word that stands for a personal value which cannot be shown."""
    words = {
        Hidden.ERASED: _("erased"),
        Hidden.UNREADABLE: _("unreadable"),
        Hidden.ENCRYPTED: _("encrypted"),
    }
    return words[hidden]


def _joined(pieces: Iterator[tuple[str | Hidden, bool]], longest: int, ellipsis: str) -> Markup:
    """Join pieces of text to HTML, each isolated where its flag says so."""
    parts: list[str] = []
    left = longest
    is_cut = False
    for text, is_isolated in pieces:
        if isinstance(text, Hidden):
            parts.append(f'<span class="el-badge el-quiet">{escape(word_for(text))}</span>')
            continue
        is_cut = len(text) > left
        shown = escape(text[:left])
        parts.append(f"<bdi>{shown}</bdi>" if is_isolated else shown)
        left -= len(text)
        if is_cut:
            parts.append(ellipsis)
            break
    return Markup(mark_safe("".join(parts)), is_cut)  # each piece is escaped above


def _pieces(value: Any, depth: int | None) -> Iterator[tuple[str | Hidden, bool]]:
    """Yield pieces of JSON, and whether to isolate each; a depth of None means one line."""
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
    elif isinstance(value, Hidden):
        yield value, False
    else:
        yield _dumped(value), isinstance(value, str)


def _break(depth: int | None) -> str:
    return "" if depth is None else "\n" + "  " * min(depth, DEEPEST)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
