"""
Events as text, and the difference of two lists of events, for messages of failed tests.

Events are shown by the names of their classes, with all fields. Unlike an error of eventlogs,
a failed test shows data: it is the test's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from pprint import pformat
from typing import Any, Final

WIDTH: Final = 88  # characters of a line
SHOWN: Final = 10  # events of a history

Alike = Callable[[int, int], bool]  # by the places of an expected event and of one that came


def one_line(value: Any) -> str:
    """Return an event, or an aggregate, on one line."""
    parts = [f"{name}={each!r}" for name, each in _fields_of(value)]
    return f"{_name_of(value)}({', '.join(parts)})" if parts or _has_fields(value) else repr(value)


def lines_of(value: Any) -> list[str]:
    """Return an event on one line if that is short enough, or else with a line for each field."""
    line = one_line(value)
    return [line] if len(line) <= WIDTH and "\n" not in line else _spread(value)


def history_of(events: Sequence[Any]) -> Iterator[str]:
    """Yield lines for the last of some events; those before them are counted."""
    if len(events) > SHOWN:
        yield f"… {len(events) - SHOWN} more"
    for event in events[-SHOWN:]:
        yield from lines_of(event)


def indented(lines: Iterable[str], by: str = "    ") -> str:
    """Return lines as one text, each indented."""
    return "\n".join(by + line for line in lines)


def difference(expected: Sequence[Any], came: Sequence[Any], alike: Alike) -> str:
    """
    Return how two lists of events differ, line by line.

    Lines that begin with ``-`` were expected and did not come, lines with ``+`` came and were not
    expected. Events of one class that stand at one place are compared field by field.
    """
    # Events that are alike get one number, so that the lists can be compared by it.
    wanted_as = [
        next((each for each in range(here) if _same_text(expected[each], event)), here)
        for here, event in enumerate(expected)
    ]
    came_as = [
        next((wanted_as[here] for here in wanted_as if alike(here, there)), len(expected) + there)
        for there in range(len(came))
    ]
    lines: list[str] = []
    matcher = SequenceMatcher(None, wanted_as, came_as, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            lines += _marked(" ", [line for event in came[c:d] for line in lines_of(event)])
        else:
            lines += _replaced(expected[a:b], came[c:d])
    return indented(lines, "  ")


def _same_text(one: Any, other: Any) -> bool:
    return type(one) is type(other) and _spread(one) == _spread(other)


def _replaced(expected: Sequence[Any], came: Sequence[Any]) -> list[str]:
    lines: list[str] = []
    for wanted, found in zip(expected, came, strict=False):
        is_short = len(_fields_of(wanted)) < 2 and len(lines_of(wanted) + lines_of(found)) == 2
        if is_short or type(wanted) is not type(found) or _same_text(wanted, found):
            lines += _marked("-", lines_of(wanted)) + _marked("+", lines_of(found))
        else:
            lines += _field_by_field(_spread(wanted), _spread(found))
    both = min(len(expected), len(came))
    for wanted in expected[both:]:
        lines += _marked("-", lines_of(wanted))
    for found in came[both:]:
        lines += _marked("+", lines_of(found))
    return lines


def _field_by_field(expected: list[str], came: list[str]) -> list[str]:
    lines: list[str] = []
    for kind, a, b, c, d in SequenceMatcher(None, expected, came, autojunk=False).get_opcodes():
        if kind == "equal":
            lines += _marked(" ", came[c:d])
        else:
            lines += _marked("-", expected[a:b]) + _marked("+", came[c:d])
    return lines


def _marked(mark: str, lines: Iterable[str]) -> list[str]:
    return [f"{mark} {line}" for line in lines]


def _spread(value: Any) -> list[str]:
    """Return a value with a line, or several, for each field."""
    if not _has_fields(value):
        return pformat(value, width=WIDTH, sort_dicts=False).splitlines()
    lines = [f"{_name_of(value)}("]
    for name, each in _fields_of(value):
        first, *more = pformat(each, width=WIDTH - 4 - len(name), sort_dicts=False).splitlines()
        lines.append(f"    {name}={first}")
        lines += [" " * (5 + len(name)) + line for line in more]
        lines[-1] += ","
    return [*lines, ")"]


def _has_fields(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _fields_of(value: Any) -> list[tuple[str, Any]]:
    if not _has_fields(value):
        return []
    # Not its repr: that may be the project's, or leave out fields.
    return [(field.name, getattr(value, field.name, ...)) for field in fields(value)]


def _name_of(value: Any) -> str:
    return type(value).__name__
