"""
Validation of values to be stored: it finds the first part of a value that cannot be stored.

The codec has a fast test (encode, decode, compare). This walk through the value is slow: it runs
after the fast test has failed, to name the place, and for types that the fast test cannot check.

The reasons for the rules: JSON has no NaN and no infinities (RFC 8259, section 6); PostgreSQL's
jsonb stores neither NUL nor lone surrogates
(https://www.postgresql.org/docs/current/datatype-json.html); a naive datetime does not identify
an instant; a Decimal that was made of a binary float has lost cents.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final

import msgspec

from eventlogs.conf import MAX_DEPTH
from eventlogs.events.personal import NAME

MAX_INT_BITS: Final = 14_000  # about 4,200 digits: Python's own limit on reading one is 4,300
MAX_DECIMAL_DIGITS: Final = 4_300

ABSENT: Final = object()  # there is no decoded counterpart to compare with
SCALARS: Final = (bool, type(None))


class Finding(Exception):
    """
    A value that may not be stored: its JSON path, and the rule that it breaks.

    A signal to the codec and the check of keys, which raise InvalidEvent or InvalidIdempotencyKey
    for it; it never leaves eventlogs, so it is not in the tree of errors.
    """

    def __init__(self, path: str, limit: str) -> None:
        self.path = path
        self.limit = limit
        super().__init__(path, limit)


def inspect(value: Any, came_back: Any = ABSENT, *, root: str = "$") -> None:
    """
    Raise a Finding for the first part of ``value`` that may not be stored.

    ``came_back`` is the value after encoding and decoding, if that was possible. ``root`` is the
    JSON path of ``value`` itself.
    """
    _walk(value, came_back, root, 1)


def _walk(value: Any, came_back: Any, path: str, depth: int) -> None:
    if isinstance(value, Enum):
        _walk(value.value, ABSENT, path, depth)
        if came_back is not ABSENT and not _equal(value, came_back):
            raise _another(value, path)
    elif isinstance(value, str):
        if type(value) is not str:
            raise Finding(path, f"{type(value).__name__} is not stored; pass a plain str")
        _text(value, path)
    elif isinstance(value, SCALARS):
        pass
    elif isinstance(value, int):
        if value.bit_length() > MAX_INT_BITS:
            raise Finding(path, f"an int may have at most {MAX_INT_BITS:,} bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Finding(path, "NaN and the infinities cannot be stored")
        if isinstance(came_back, Decimal):
            raise Finding(path, "a float is given where a Decimal is declared; pass a Decimal")
    elif isinstance(value, Decimal):
        if not value.is_finite():
            raise Finding(path, "NaN and the infinities cannot be stored")
        if len(value.as_tuple().digits) > MAX_DECIMAL_DIGITS:
            raise Finding(path, f"a Decimal may have at most {MAX_DECIMAL_DIGITS:,} digits")
    elif isinstance(value, datetime):
        if value.utcoffset() is None:
            raise Finding(
                path, "a datetime needs a time zone; a naive one does not identify an instant"
            )
    elif isinstance(value, bytes | bytearray | memoryview | set | frozenset):
        kind = type(value).__name__
        raise Finding(path, f"{kind} has no JSON form; encode it as a str or a list")
    else:
        _walk_inside(value, came_back, path, depth)
        return
    if came_back is not ABSENT and not isinstance(value, Enum) and not _equal(value, came_back):
        raise _another(value, path)


def _another(value: Any, path: str) -> Finding:
    return Finding(path, f"this {type(value).__name__} would be read back as another value")


def _walk_inside(value: Any, came_back: Any, path: str, depth: int) -> None:
    children = _children(value, came_back, path)
    if children is None:
        if came_back is ABSENT or not _equal(value, came_back):
            raise Finding(
                path, f"{type(value).__name__} has no JSON form that is read back as equal"
            )
        return
    if depth > MAX_DEPTH:
        raise Finding(path, f"objects and arrays may be nested at most {MAX_DEPTH} deep")
    if came_back is not ABSENT and not _pairs(value, came_back):
        if isinstance(value, tuple) and isinstance(came_back, list):
            raise Finding(
                path, "a tuple would be read back as a list; declare the type, or pass a list"
            )
        raise _another(value, path)
    for step, child, child_came_back in children:
        _walk(child, child_came_back, path + step, depth + 1)


def _children(value: Any, came_back: Any, path: str) -> Iterator[tuple[str, Any, Any]] | None:
    """Return the children of ``value`` as (path step, child, its counterpart), or None."""
    if isinstance(value, dict):
        return _of_dict(value, came_back, path)
    if isinstance(value, list | tuple):
        return _of_array(value, came_back)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _of_fields(value, came_back, [field.name for field in dataclasses.fields(value)])
    if isinstance(value, msgspec.Struct):
        return _of_fields(value, came_back, value.__struct_fields__)
    return None


def _of_dict(value: dict[Any, Any], came_back: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    for key, child in value.items():
        if not isinstance(key, str):
            raise Finding(path, f"keys must be str, and one is {type(key).__name__}")
        _text(key, f"{path} (a key)")
        if key == NAME:
            raise Finding(path, f"the key {NAME} is reserved for encrypted values; rename it")
        yield f".{key}", child, ABSENT if came_back is ABSENT else came_back[key]


def _of_array(value: Any, came_back: Any) -> Iterator[tuple[str, Any, Any]]:
    for at, child in enumerate(value):
        yield f"[{at}]", child, ABSENT if came_back is ABSENT else came_back[at]


def _of_fields(value: Any, came_back: Any, names: Any) -> Iterator[tuple[str, Any, Any]]:
    for name in names:
        yield f".{name}", getattr(value, name), getattr(came_back, name, ABSENT)


def _pairs(value: Any, came_back: Any) -> bool:
    """Return whether the two have the same children, so that these can be compared."""
    if isinstance(value, dict):
        # Keys that are not str are refused by the walk itself, with a better reason.
        return isinstance(came_back, dict) and (
            came_back.keys() == value.keys() or any(not isinstance(key, str) for key in value)
        )
    for kind in (list, tuple):
        if isinstance(value, kind):
            return isinstance(came_back, kind) and len(came_back) == len(value)
    return type(value) is type(came_back)


def _text(value: str, path: str) -> None:
    if "\0" in value:
        raise Finding(path, "text may not hold NUL (U+0000)")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Finding(path, "text may not hold lone surrogates") from None


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, datetime) and isinstance(other, datetime):
        # A time in an hour that a clock change repeats or skips never equals a time in another
        # zone (PEP 495).
        one, other = _instant(one), _instant(other)
    try:
        return bool(one == other)
    except Exception:  # a user's __eq__ may raise anything: then the two are not equal
        return False


def _instant(value: datetime) -> tuple[datetime, timedelta | None]:
    return value.replace(tzinfo=None, fold=0), value.utcoffset()
