"""
The names that a project's classes declare: fields of events and aggregates, and of their parts.

A page that hides values may show these. The other keys of a mapping are values themselves:
``{"alice@example.com": 40}``.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from eventlogs.aggregates import aggregates
from eventlogs.events.registry import registry


def declared_names() -> frozenset[str]:
    """Return the names of the fields of all events and aggregates that are declared here."""
    return _names_of((*(each.cls for each in registry), *aggregates))


@lru_cache(maxsize=4)
def _names_of(classes: tuple[Any, ...]) -> frozenset[str]:
    names: set[str] = set()
    seen: set[type] = set()
    left = list(classes)
    while left:
        each = left.pop()
        left += get_args(each)  # of list[Line], Line | None, dict[str, Line]
        left += [value] if (value := getattr(each, "__value__", None)) is not None else []
        if not isinstance(each, type) or each in seen:
            continue
        seen.add(each)
        hints = _hints(each)
        names.update(hints, getattr(each, "__struct_encode_fields__", ()))
        if (
            tag := getattr(getattr(each, "__struct_config__", None), "tag_field", None)
        ) is not None:
            names.add(tag)
        left += hints.values()
    return frozenset(names)


def _hints(cls: type) -> dict[str, Any]:
    """Return the fields of a class and their types, None for a type that cannot be read here."""
    try:
        found = get_type_hints(cls)
    except Exception:  # a name that is imported for type checkers alone
        names = [each.name for each in fields(cls)] if is_dataclass(cls) else []
        return dict.fromkeys([*names, *getattr(cls, "__struct_fields__", ())])
    return {name: hint for name, hint in found.items() if get_origin(hint) is not ClassVar}
