"""What the subcommands about projections share: choosing some."""

from __future__ import annotations

from eventlogs.management.mistakes import mistake
from eventlogs.projections.declarations import RowProjection, projections


def choose(names: list[str]) -> list[str]:
    """
    Return the names of projections, by default of all.

    Raise CommandError for a name that none has, and where there are none.
    """
    known = ", ".join(sorted(projections)) or "none"
    unknown = [name for name in names if name not in projections]
    if unknown:
        raise mistake(f"There is no projection {unknown[0]!r}. There is: {known}.")
    if not projections:
        raise mistake(
            "No projection is declared. Put them into a module `projections` of an app in "
            "INSTALLED_APPS, each with @projection('…')."
        )
    return names or sorted(projections)


def with_rows(name: str) -> type[RowProjection]:
    """Return a projection that keeps rows; raise CommandError where there is none."""
    choose([name])
    found = projections[name]
    if not issubclass(found, RowProjection):
        raise mistake(f"{name!r} is a reactor: it keeps no rows.")
    return found


def are_due() -> list[str]:
    """Return the names of the read models whose rows were made by another version."""
    return [
        name
        for name, each in sorted(projections.items())
        if issubclass(each, RowProjection) and each.is_rebuild_due()
    ]
