"""What the subcommands about projections share: choosing some."""

from __future__ import annotations

from typing import Any

from eventlogs.management.mistakes import mistake
from eventlogs.projections.base import BaseProjection, RowProjection, projections
from eventlogs.projections.from_now import is_behind
from eventlogs.projections.kinds import Reactor
from eventlogs.projections.operations import RowOperations


def choose(names: list[str], using: str) -> list[str]:
    """
    Return the names of projections, by default of all that can be in a database.

    Raise CommandError for a name that none has, for one whose rows cannot be in the database,
    and where there are none.
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
    able = [name for name in sorted(projections) if name in names or not names]
    able = [name for name in able if is_in(projections[name], using)]
    elsewhere = [name for name in names if name not in able]
    if elsewhere:
        table = table_of(projections[elsewhere[0]])
        raise mistake(
            f"Projection {elsewhere[0]!r} cannot run on the database {using!r}: it has no table "
            f"{table} there. Run: manage.py migrate --database {using}"
        )
    if not able:
        raise mistake(f"No projection has its table in the database {using!r}. There is: {known}.")
    return names or able


def table_of(projection: Any) -> str:
    """Return the name of a read model's table."""
    return str(projection.model._meta.db_table)


def is_in(projection: type[BaseProjection], using: str) -> bool:
    """Return whether a projection can run on a database: a reactor on any."""
    return not issubclass(projection, RowProjection) or projection.keeps_rows_in(using)


def with_rows(name: str, using: str) -> type[RowOperations]:
    """Return a projection that keeps rows; raise CommandError where there is none."""
    choose([name], using)
    found = projections[name]
    if not issubclass(found, RowOperations):
        raise mistake(f"{name!r} is a reactor: it keeps no rows.")
    return found


def reactors(names: list[str]) -> list[type[Reactor]]:
    """Return reactors by name; raise CommandError for a projection with rows, and for no name."""
    if not names:
        raise mistake("Name the reactors that are to begin from now.")
    found: list[type[Reactor]] = []
    for name in names:
        each = projections[name]
        if not issubclass(each, Reactor):
            raise mistake(f"{name!r} keeps rows, which need every event: they cannot begin later.")
        found.append(each)
    return found


def behind(using: str) -> list[str]:
    """Return the names of the reactors that have events to react to."""
    return [
        name
        for name, each in sorted(projections.items())
        if issubclass(each, Reactor) and is_behind(each, using)
    ]


def are_due(using: str) -> list[str]:
    """Return the names of the read models whose rows were made by another version."""
    return [
        name
        for name, each in sorted(projections.items())
        if issubclass(each, RowOperations)
        and each.keeps_rows_in(using)
        and each.is_rebuild_due(using=using)
    ]
