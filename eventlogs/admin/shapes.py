"""JSON for people: the whole of it, or its shape alone for who may not see what is in it."""

from __future__ import annotations

import json
from typing import Any, Final

LONGEST: Final = 20_000  # characters of one value that are shown
TYPES: Final = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def shape(value: Any) -> Any:
    """Return a value of JSON with the names of types in the place of what is in it."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0]), "…"] if len(value) > 1 else [shape(each) for each in value]
    return TYPES.get(type(value), "value")


def pretty(value: Any) -> str:
    """Return a value of JSON as indented text, cut where it is too long."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else text[:LONGEST] + "\n…"


def line(value: Any) -> str:
    """Return a value of JSON in one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:200] + "…"
