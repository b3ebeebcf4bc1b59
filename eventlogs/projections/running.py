"""Running projections: all that are declared, or some by name."""

from __future__ import annotations

from collections.abc import Iterable

from eventlogs.projections.declarations import projections


def run(names: Iterable[str] | None = None) -> dict[str, int]:
    """
    Let projections catch up, by default all; return the number of events applied, by name.

    Where some fail, the others catch up all the same, and an ExceptionGroup of the errors is
    raised in the end. Raise KeyError for a name that no imported module declares.
    """
    chosen = {name: projections[name] for name in (projections if names is None else names)}
    applied: dict[str, int] = {}
    errors: list[Exception] = []
    for name, each in chosen.items():
        try:
            applied[name] = each.catch_up()
        except Exception as error:
            errors.append(error)
    if errors:
        raise ExceptionGroup("Some projections could not catch up.", errors)
    return applied
