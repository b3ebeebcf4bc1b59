"""
The names of the fields that a project's event and aggregate classes declare.

A page that hides values may still show these names. The keys of a mapping are values themselves,
and are hidden: ``{"alice@example.com": 40}``.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from eventlogs.aggregates import aggregates
from eventlogs.events.registry import registry


def declared_names() -> frozenset[str]:
    """Return the names of the fields of all registered events and aggregates, and their parts."""
    return _names_of((*(each.cls for each in registry), *aggregates))


@lru_cache(maxsize=4)
def _names_of(classes: tuple[Any, ...]) -> frozenset[str]:
    names: set[str] = set()
    seen: set[type] = set()
    left = list(classes)
    while left:
        each = left.pop()
        left += get_args(each)  # the parts of list[Line], Line | None, dict[str, Line]
        if (value := getattr(each, "__value__", None)) is not None:
            left.append(value)  # of a type alias
        if not isinstance(each, type) or each in seen:
            continue
        seen.add(each)
        hints = _hints(each)
        # msgspec's own attributes of a Struct: the names and the tag that its JSON has.
        names.update(hints, getattr(each, "__struct_encode_fields__", ()))
        tag = getattr(getattr(each, "__struct_config__", None), "tag_field", None)
        if tag is not None:
            names.add(tag)
        left += hints.values()
    return frozenset(names)


def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a class's fields by name, or None where a type cannot be resolved."""
    try:
        found = get_type_hints(cls)
    except Exception:  # for instance a name that is imported under TYPE_CHECKING only
        names = [each.name for each in fields(cls)] if is_dataclass(cls) else []
        return dict.fromkeys([*names, *getattr(cls, "__struct_fields__", ())])
    return {name: hint for name, hint in found.items() if get_origin(hint) is not ClassVar}
