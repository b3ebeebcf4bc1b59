"""
System checks of projections and their read models.

    W030  the rows of a projection are due for a rebuild (with --database)
    E031  a projection cannot find its rows by their logs
    E032  a projection's rows are in another database than the events
    E033  a projection reads the feed of a database that has none
    W036  a further database has logs whose projection has not run there (with --database)
    E037  a read model's db_default gives another value each time
    E038  two projections write the rows of one table
    E039  a read model inherits from a model with a table of its own
    E054  a publisher reads from a replica that is no other database
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections, router

from eventlogs.checks.databases import holds_logs
from eventlogs.feed.sources import has_feed
from eventlogs.fields import LogIdField
from eventlogs.models import Event, EventLog, ProjectionState
from eventlogs.projections.base import BaseProjection, RowProjection, declared, projections
from eventlogs.projections.databases import may_have_rows
from eventlogs.projections.defaults import is_unsteady


@register()
def check_projections(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that each projection can read its events and write its rows."""
    using = router.db_for_write(Event)
    vendor = connections[using].vendor
    for each in declared(BaseProjection):
        if each.mode != each.INLINE and not has_feed(using):
            yield Error(
                f"Projection {each.name!r} reads the feed, and DATABASES[{using!r}] ({vendor}) has "
                f"none.",
                hint="Set mode = Projection.INLINE in the projection, which then needs no feed; or "
                "keep the logs in PostgreSQL or SQLite, where it is known which events are "
                'settled; or set EVENTLOGS["LAYOUT"] = "buckets".',
                id="eventlogs.E033",
            )
        for primary, replica in each.reads_from.items():
            if replica == primary or not {primary, replica} <= connections.databases.keys():
                yield Error(
                    f"Publisher {each.name!r} has reads_from = {dict(each.reads_from)!r}, and "
                    f"{primary!r} and {replica!r} are not two aliases of DATABASES.",
                    hint="Name the alias of a database, and that of a replica of it.",
                    id="eventlogs.E054",
                )
    for projection in declared(RowProjection):
        name, model = projection.name, projection.model
        of_rows = router.db_for_write(model)
        if of_rows != using:
            yield Error(
                f"The rows of projection {name!r} are in DATABASES[{of_rows!r}], and the events in "
                f"{using!r}. They must be in one database: one transaction writes both.",
                hint=f"Route {model._meta.label} to {using!r} in DATABASE_ROUTERS.",
                id="eventlogs.E032",
            )
        if not projection.has_shared_rows() and not isinstance(model._meta.pk, LogIdField):
            yield Error(
                f"The primary key of {model._meta.label} is not a LogIdField, so projection "
                f"{name!r} cannot find the row of a log.",
                hint="Declare log_id = LogIdField(primary_key=True) in the model, or define key() "
                "in the projection.",
                id="eventlogs.E031",
            )


@register()
def check_read_models(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that each read model has a table of its own, and the same rows after a rebuild."""
    owners: dict[str, str] = {}
    for projection in declared(RowProjection):
        name, model = projection.name, projection.model
        # Django documents no way to list the parents of a model.
        tables = {parent._meta.db_table for parent in model._meta.all_parents}
        tables = {*tables, model._meta.db_table}
        for table in sorted(tables & owners.keys()):
            yield Error(
                f"Projections {owners[table]!r} and {name!r} both write the table {table!r}: each "
                f"would overwrite the rows of the other, and a rebuild of one would empty the "
                f"columns of the other.",
                hint="Give each projection its own model, or handle all events in one projection. "
                "A proxy model has the table of its concrete model.",
                id="eventlogs.E038",
            )
        owners |= dict.fromkeys(tables - owners.keys(), name)
        if len(tables) > 1:
            yield Error(
                f"{model._meta.label}, the read model of projection {name!r}, inherits from a "
                f"model with a table of its own. It must have one table: a batch cannot write "
                f"rows of several tables at once.",
                hint="Set abstract = True in the Meta of the parent model, or inherit from "
                "models.Model.",
                id="eventlogs.E039",
            )
        for field in model._meta.concrete_fields:
            if is_unsteady(field):
                yield Error(
                    f"The db_default of {model._meta.label}.{field.name} may give another value "
                    f"each time, so a rebuild of projection {name!r} would change it.",
                    hint="Set the field in a handler, for example to record.recorded_at. For the "
                    "time at which a row was written, use auto_now_add=True, which handlers do "
                    "not see.",
                    id="eventlogs.E037",
                )


@register(Tags.database)
def check_rebuilds(
    *, databases: Sequence[str] | None = None, **kwargs: Any
) -> Iterable[CheckMessage]:
    """Check that the rows come from today's code; asked for by ``check --database``."""
    using = router.db_for_write(Event)
    if not projections or using not in (databases or ()):
        return
    if ProjectionState._meta.db_table not in _tables(using):
        return  # not migrated yet
    for state in ProjectionState.objects.using(using).order_by("name"):
        each = projections.get(state.name)
        if each is None or not issubclass(each, RowProjection) or state.version > each.version:
            continue
        if each.needs_rebuild(state):
            old, new = (f" in {mode} mode" for mode in (state.mode, each.mode))
            old, new = ("", "") if old == new else (old, new)
            yield Warning(
                f"The rows of projection {state.name!r} were built by version "
                f"{state.version}{old}; the code is version {each.version}{new}.",
                hint=f"Run: manage.py eventlogs rebuild {state.name}. "
                "The old rows stay in use meanwhile.",
                id="eventlogs.W030",
            )


@register(Tags.database)
def check_further_databases(
    *, databases: Sequence[str] | None = None, **kwargs: Any
) -> Iterable[CheckMessage]:
    """Check that projections run in each database with logs; asked for by ``check --database``."""
    for using in databases or ():
        if using == router.db_for_write(Event) or not holds_logs(using):
            continue
        tables = _tables(using)
        if not {EventLog._meta.db_table, ProjectionState._meta.db_table} <= tables:
            continue  # not migrated yet
        known = set(ProjectionState.objects.using(using).values_list("name", flat=True))
        for each in declared(RowProjection):
            name, model = each.name, each.model
            has_rows = model._meta.db_table in tables and may_have_rows(model, using)
            if (has_rows and name in known) or not each.logs_read(using).exists():
                continue
            run = f"manage.py eventlogs project {name} --database {using}"
            if has_rows:
                lacks, hint = "the projection has never run there", f"Run: {run}"
            else:
                lacks = "no table for its rows"
                hint = (
                    f"Run: manage.py migrate --database {using} (a router must allow "
                    f"{model._meta.label} there), then: {run}"
                )
            yield Warning(
                f"The database {using!r} has logs that projection {name!r} reads, and {lacks}.",
                hint=hint,
                id="eventlogs.W036",
            )


def _tables(using: str) -> set[str]:
    with connections[using].cursor() as cursor:
        return set(connections[using].introspection.table_names(cursor))
