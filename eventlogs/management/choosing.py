"""The projections that a subcommand is about, and who acts on them."""

from __future__ import annotations

import getpass
from typing import Final

from eventlogs.exceptions import ProjectionUnavailable
from eventlogs.management.mistakes import mistake
from eventlogs.projections.base import BaseProjection, P, declared, projections
from eventlogs.projections.kinds import Reactor
from eventlogs.projections.operations import RowOperations

NOT_OF_KIND: Final[dict[type[BaseProjection], str]] = {
    RowOperations: "is a reactor: it keeps no rows.",
    Reactor: "keeps rows, which need every event: it cannot start later.",
}


def choose(names: list[str], using: str | None, kind: type[P]) -> list[type[P]]:
    """
    Return projections by name, or all of a kind that can run on a database, None: on any.

    Raise CommandError for an unknown name, for a projection of another kind, for one whose table
    is not in the database, and if there are none.
    """
    known = ", ".join(sorted(projections)) or "none"
    able = declared(kind, using=using)
    if using is None:
        able = [each for each in able if can_run(each)]
    chosen = []
    for name in names:
        each = projections.get(name)
        if each is None:
            raise mistake(f"There is no projection {name!r}. Declared projections: {known}.")
        if not issubclass(each, kind):
            raise mistake(f"{name!r} {NOT_OF_KIND[kind]}")
        if each not in able:
            raise mistake(f"Projection {name!r} cannot run {why_not(each, using)}")
        chosen.append(each)
    if not projections:
        raise mistake(
            "No projection is declared. Put projections into a module `projections` of an app in "
            "INSTALLED_APPS, each with @projection('…')."
        )
    if not able:
        where = "any database" if using is None else f"the database {using!r}"
        raise mistake(f"No projection has its table in {where}. Declared projections: {known}.")
    return chosen or able


def can_run(projection: type[BaseProjection]) -> bool:
    """Return whether one of the databases of a projection has its table."""
    try:
        return bool(projection.database_aliases())
    except ProjectionUnavailable:
        return False


def why_not(projection: type[BaseProjection], using: str | None) -> str:
    """Return where and why a projection cannot run."""
    if using is None or not projection.runs_in(using):
        named = ", ".join(projection.databases_named() or ())
        where = "" if using is None else f"on the database {using!r}"
        return f"{where}: its databases are {named}. Migrate them, and name one of them.".strip()
    table = projection.model._meta.db_table  # type: ignore[attr-defined]
    return (
        f"on the database {using!r}: it has no table {table} there. Run: manage.py migrate "
        f"--database {using}"
    )


def operator() -> str:
    """Return the name of the system's user, or "" if it has none, as in many containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the latter two before Python 3.13
        return ""
