"""Override parts of the package in a process that ends with the test."""

from __future__ import annotations


def override(owner: object, **parts: object) -> None:
    """Set attributes of a module, class or object, for the rest of this process."""
    for name, part in parts.items():
        setattr(owner, name, part)
