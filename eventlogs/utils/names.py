"""The name of a class or a function in keys, messages and figures."""

from __future__ import annotations

from typing import Any


def dotted(thing: Any) -> str:
    """Return the module and qualified name of a class or a function; parts may be missing."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
