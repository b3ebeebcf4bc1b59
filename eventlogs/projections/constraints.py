"""
Constraints of read models: checked before the COMMIT, and named in errors.

Django's foreign keys are DEFERRABLE INITIALLY DEFERRED, and unique constraints can be: the
database checks them at the COMMIT, past every savepoint and every handler. So they are checked
here as soon as rows are written. Only those of the read model's own table are: others may be
violated for a moment in a caller's transaction, and satisfied before its COMMIT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final, NamedTuple

from django.db import Error, IntegrityError, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.exceptions import (
    ConstraintViolated,
    ProjectionFailed,
    ProjectionUnavailable,
    UndecodableEvent,
    UnknownEventType,
)
from eventlogs.ids import LogId

MISSING: Final = "foreign_key"  # the attribute of an IntegrityError that is raised here
KEYS: Final = 500  # that are looked up by one statement: SQLite takes a limited number

# The constraints of a table that are checked at the COMMIT, ready for SET CONSTRAINTS.
DEFERRED = """
SELECT format('%%I.%%I', nspname, conname)
FROM pg_constraint JOIN pg_namespace ON pg_namespace.oid = connamespace
WHERE conrelid = %s::regclass AND condeferred
"""

# Unique, check, exclusion and foreign key. NOT NULL is left out: the handler set no value.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
SQLSTATES: Final = frozenset({"23505", "23514", "23P01", "23503", "23001"})
SQLITE_UNIQUE: Final = frozenset({"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"})
SQLITE: Final = SQLITE_UNIQUE | {"SQLITE_CONSTRAINT_CHECK", "SQLITE_CONSTRAINT_FOREIGNKEY"}
# https://mariadb.com/kb/en/mariadb-error-code-reference/ and MySQL's: a duplicate, a foreign
# key (two), a check (two). Each message names the constraint between other quoted parts.
MYSQL: Final = {
    1062: ("for key '", "'"),
    1451: ("CONSTRAINT `", "`"),
    1452: ("CONSTRAINT `", "`"),
    3819: ("Check constraint '", "'"),
    4025: ("CONSTRAINT `", "`"),
}


class Violated(NamedTuple):
    """A constraint's name, None where it has none, and the fields of the model that it is on."""

    constraint: str | None
    fields: tuple[str, ...]


def check_deferred(model: type[models.Model], rows: Sequence[Any], using: str) -> None:
    """
    Check new rows against the constraints that the database would check at the COMMIT.

    Raise IntegrityError. A row that passes cannot fail at the COMMIT: PostgreSQL has locked the
    rows that are pointed to, and SQLite has one writer. Nothing is asked where the model has no
    such constraint.
    """
    if not _is_deferred(model):
        return
    connection = connections[using]
    if connection.vendor == "postgresql":
        table = connection.ops.quote_name(model._meta.db_table)
        with connection.cursor() as cursor:
            cursor.execute(DEFERRED, [table])
            names = ", ".join(name for (name,) in cursor.fetchall())
            if names:
                cursor.execute(f"SET CONSTRAINTS {names} IMMEDIATE")
                # Defer them again: statements of the next write may violate them in between.
                cursor.execute(f"SET CONSTRAINTS {names} DEFERRED")
    elif connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA foreign_keys")
            is_on = cursor.fetchone() == (1,)
        if is_on:
            # Not PRAGMA foreign_key_check: it reads the whole table.
            for field in _foreign_keys(model):
                _check_foreign_key(field, rows, using)


def refuses(error: BaseException | None) -> bool:
    """Return whether a constraint other than NOT NULL has refused a row."""
    if not isinstance(error, IntegrityError):
        return False
    cause = error.__cause__
    return (
        hasattr(error, MISSING)
        or getattr(cause, "sqlstate", None) in SQLSTATES
        or getattr(cause, "sqlite_errorname", None) in SQLITE
        or _mysql_code(error) in MYSQL
    )


def failure(
    projection: Any, log_id: LogId, position: int, error: BaseException | None, using: str
) -> ProjectionFailed:
    """
    Return the error for an event that cannot be applied: ConstraintViolated if one is the reason.

    The transaction that ``error`` broke must have been rolled back.
    """
    if isinstance(error, UnknownEventType | UndecodableEvent | ProjectionUnavailable):
        return ProjectionFailed(
            projection.name,
            log_id,
            position,
            message=f"Projection {projection.name!r} could not apply the event at position "
            f"{position} of {log_id}. {error}",
        )
    # A reactor has no rows; the constraint that its handler met is of another table.
    if error is None or not refuses(error) or not hasattr(projection, "model"):
        return ProjectionFailed(projection.name, log_id, position)
    constraint, fields = violated(error, projection.model, using)
    return ConstraintViolated(
        projection.name, log_id, position, constraint=constraint, fields=fields
    )


def violated(error: BaseException, model: type[models.Model], using: str) -> Violated:
    """
    Return the constraint that an error is about, as far as the database names it.

    It may ask the database, so a transaction that the error broke must have been rolled back.
    """
    if hasattr(error, MISSING):
        return Violated(None, (getattr(error, MISSING),))
    cause = error.__cause__
    if getattr(cause, "sqlite_errorname", None) is not None:
        return _of_sqlite(cause, model)
    code = _mysql_code(error)
    if code in MYSQL:
        before, after = MYSQL[code]
        # Take the last match: a quoted value before it may look the same.
        _, found, rest = str(error.args[-1]).rpartition(before)
        name: str | None = rest.partition(after)[0].rpartition(".")[2] if found else None
    else:
        name = getattr(getattr(cause, "diag", None), "constraint_name", None)
    if name is None:
        return Violated(None, ())
    return Violated(name, _declared(model, name) or _introspected(model, name, using))


def _of_sqlite(cause: Any, model: type[models.Model]) -> Violated:
    _, _, what = str(cause).partition(" failed: ")
    if cause.sqlite_errorname in SQLITE_UNIQUE:
        if what.startswith("index '"):  # of expressions
            name = what.removeprefix("index '").removesuffix("'")
            return Violated(name, _declared(model, name))
        table = f"{model._meta.db_table}."
        columns = [each.removeprefix(table) for each in what.split(", ")]
        fields = _fields(model, columns)
        names = (
            each.name
            for each in model._meta.constraints
            if isinstance(each, models.UniqueConstraint) and set(each.fields) == set(fields)
        )
        return Violated(next(names, None), fields)
    if cause.sqlite_errorname == "SQLITE_CONSTRAINT_CHECK":
        if any(each.name == what for each in model._meta.constraints):
            return Violated(what, _declared(model, what))
        # A check without a name, such as that of a PositiveIntegerField: SQLite's message has its
        # condition instead, and ends after a quoted name at its beginning.
        columns = [
            column
            for column in (str(each.column) for each in model._meta.concrete_fields)
            if what == column or f'"{column}"' in what
        ]
        return Violated(None, _fields(model, columns))
    return Violated(None, ())


def _mysql_code(error: BaseException) -> Any:
    return error.args[0] if len(error.args) > 1 else None


@cache
def _is_deferred(model: type[models.Model]) -> bool:
    deferred = models.Deferrable.DEFERRED
    return any(_foreign_keys(model)) or any(
        getattr(each, "deferrable", None) is deferred for each in model._meta.constraints
    )


def _foreign_keys(model: type[models.Model]) -> Iterator[Any]:
    for field in model._meta.concrete_fields:
        if isinstance(field, models.ForeignKey) and getattr(field, "db_constraint", True):
            yield field


def _check_foreign_key(field: Any, rows: Sequence[Any], using: str) -> None:
    target = field.target_field
    values = {getattr(row, field.attname) for row in rows} - {None}
    wanted = list({target.to_python(value) for value in values})
    others = field.remote_field.model._base_manager.using(using)
    for start in range(0, len(wanted), KEYS):
        some = wanted[start : start + KEYS]
        if others.filter(**{f"{target.attname}__in": some}).count() < len(some):
            # The error of SQLite's COMMIT, with the name of the field.
            error = IntegrityError("FOREIGN KEY constraint failed")
            setattr(error, MISSING, field.name)
            raise error


def _declared(model: type[models.Model], name: str) -> tuple[str, ...]:
    """Return the fields of a constraint that the model declares."""
    for each in model._meta.constraints:
        if each.name == name:
            named = {field for field in _named_in(each) if field}
            return tuple(f.name for f in model._meta.concrete_fields if f.name in named)
    return ()


def _named_in(constraint: Any) -> Iterator[str]:
    yield from getattr(constraint, "fields", ())
    expressions = [*getattr(constraint, "expressions", ())]
    if isinstance(constraint, models.CheckConstraint):
        expressions.append(constraint.condition)
    for each in expressions:
        expression = each[0] if isinstance(each, list | tuple) else each  # with its operator
        if isinstance(expression, str):
            yield expression
        elif isinstance(expression, models.Q):
            yield from expression.referenced_base_fields
        else:
            # An F is no expression before it is resolved.
            nodes: Any = [expression] if isinstance(expression, models.F) else expression.flatten()
            for node in nodes:
                if isinstance(node, models.F):
                    yield str(getattr(node, "name", "")).partition("__")[0]


def _introspected(model: type[models.Model], name: str, using: str) -> tuple[str, ...]:
    """Return the fields of a constraint that the database has named."""
    connection: BaseDatabaseWrapper = connections[using]
    with suppress(Error), connection.cursor() as cursor:
        table = model._meta.db_table
        known: Any = connection.introspection.get_constraints(cursor, table)
        return _fields(model, known.get(name, {}).get("columns") or ())
    return ()


def _fields(model: type[models.Model], columns: Iterable[str]) -> tuple[str, ...]:
    wanted = set(columns)
    return tuple(f.name for f in model._meta.concrete_fields if f.column in wanted)
