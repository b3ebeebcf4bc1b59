"""
Defaults of the database (``db_default``), computed before a row is stored.

Django gives a new row of a model with ``db_default`` a DatabaseDefault object, which becomes a
value when the row is read back. A handler would see the one or the other, depending on whether
the row's first event was in the same batch. So a new row gets the value itself.

The value must be the same whenever the row is made: a rebuild or a verification replays events
years later. Expressions that depend on the clock, on chance or on something unknown are refused
by a system check (eventlogs.E037). Where that is silenced, they are filled once, when the row is
inserted, and not compared: like ``auto_now_add``.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

from django.db import connections, models
from django.db.models.expressions import DatabaseDefault, Expression, RawSQL, Value
from django.db.models.fields import NOT_PROVIDED
from django.db.models.functions import Cast, Now, Random
from django.db.models.sql import Query

# Modules of expressions that have the same value each time, except UNSTEADY_NAMES.
STEADY_MODULES: Final = (
    "django.db.models.expressions",
    "django.db.models.functions",
    "django.db.models.lookups",
    "django.db.models.query_utils",
)
UNSTEADY_NAMES: Final = ("UUID4", "UUID7")  # since Django 6.1

_known: dict[tuple[Any, str], Any] = {}  # values of steady expressions, by field and database


def fill(row: Any, using: str) -> Any:
    """Replace each DatabaseDefault of a row by the value that the database would store."""
    for field in row._meta.concrete_fields:
        value = row.__dict__.get(field.attname)
        if isinstance(value, DatabaseDefault):
            setattr(row, field.attname, _value(field, using))
    return row


def is_unsteady(field: Any) -> bool:
    """Return whether a field's ``db_default`` may have another value each time."""
    if getattr(field, "db_default", NOT_PROVIDED) is NOT_PROVIDED:
        return False
    # Private: Django keeps db_default as it was declared, and has no public method that makes an
    # expression of a literal.
    nodes = field._db_default_expression.flatten()
    return not all(_is_steady(node) for node in nodes)


def is_filled_once(field: Any) -> bool:
    """Return whether a field is filled when its row is inserted, and stays as it is then."""
    return bool(getattr(field, "auto_now_add", False)) or is_unsteady(field)


def _is_steady(node: Any) -> bool:
    kind = type(node)
    if issubclass(kind, Now | Random | RawSQL) or kind.__name__ in UNSTEADY_NAMES:
        return False
    if kind is models.Func:  # of a database function that is known by its name alone
        return False
    return kind.__module__.startswith(STEADY_MODULES)


def _value(field: Any, using: str) -> Any:
    expression = field._db_default_expression
    if isinstance(expression, Value):
        return deepcopy(field.to_python(expression.value))
    if is_unsteady(field):
        return _computed(field, expression, using)
    if (field, using) not in _known:
        _known[field, using] = _computed(field, expression, using)
    return deepcopy(_known[field, using])


def _computed(field: Any, expression: Expression, using: str) -> Any:
    """Ask the database for the value of an expression, as it would be in a field's column."""
    connection = connections[using]
    cast = Cast(expression, output_field=field)
    sql, parameters = Query(field.model).get_compiler(using).compile(cast)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {sql}", parameters)
        (value,) = cursor.fetchone()
    converters = connection.ops.get_db_converters(cast) + cast.get_db_converters(connection)
    for convert in converters:
        value = convert(value, cast, connection)
    return value
