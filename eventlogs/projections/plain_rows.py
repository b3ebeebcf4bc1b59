"""
Rows of plain models in PostgreSQL: many are read, or written, by one statement.

The ORM makes and compiles a query for each 500 rows, and asks each field several times for each
value. Here the statements of a model are made once, each column goes as one array, and a value
that already is what its column takes is not converted. A batch takes half the time.

The stored rows are the same. Statements go through Django's cursor, so other backends, loggers and
tracers see them. Values are prepared by the model's own fields (``pre_save``,
``get_db_prep_save``) and read by their converters, except those of PLAIN_FIELDS. Columns are not
cast to a length, so the server refuses text that is too long, and fires the same constraints. A
model or a value that is not plain is left to the ORM: None is returned then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Final, NamedTuple, cast

from django.db import connections, models, transaction

from eventlogs.fields import LogIdField
from eventlogs.ids import LogId
from eventlogs.projections.defaults import is_filled_once

# Types without their arguments. An array of arrays would be flattened by unnest(), and other types
# may be of a schema, or have rules of their own.
PLAIN_TYPES: Final = frozenset(
    {
        *("boolean", "smallint", "integer", "bigint", "double precision", "numeric"),
        *("text", "varchar", "uuid", "jsonb", "date", "time", "interval"),
        "timestamp with time zone",
    }
)
MANY: Final = 2_000  # rows of one statement
ARGUMENTS: Final = re.compile(r"\(.*\)")

NONE: Final[type] = type(None)
TEXTS: Final[frozenset[type]] = frozenset({str, LogId, NONE})
INTEGERS: Final[frozenset[type]] = frozenset({int, NONE})
# Methods of a field that has SQL of its own around its placeholder (Django before 6.1, and since).
PLACEHOLDERS: Final = ("get_placeholder", "get_placeholder_sql")
# Fields, by their very class, that store a value of these very classes as it is.
PLAIN_FIELDS: Final[Mapping[type, frozenset[type]]] = {
    models.CharField: frozenset({str, NONE}),
    models.TextField: frozenset({str, NONE}),
    LogIdField: TEXTS,
    models.BooleanField: frozenset({bool, NONE}),
    models.FloatField: frozenset({float, NONE}),
    models.SmallIntegerField: INTEGERS,
    models.IntegerField: INTEGERS,
    models.BigIntegerField: INTEGERS,
    models.PositiveSmallIntegerField: INTEGERS,
    models.PositiveIntegerField: INTEGERS,
    models.PositiveBigIntegerField: INTEGERS,
}


class Column(NamedTuple):
    """A column, and how its values are written and read."""

    field: Any
    value_of: Callable[[Any], Any]  # of a row
    kind: str  # its type in PostgreSQL, without arguments
    plain: frozenset[type]  # the classes of values that are stored as they are
    converters: Sequence[Callable[..., Any]]  # of values that were read
    expression: Any  # what a converter is told of the column


class Table(NamedTuple):
    """The statements for a plain model."""

    key: Column
    columns: Sequence[Column]  # all of them; generated ones are only read
    select: str
    upsert: str


def find(
    model: type[models.Model], keys: Collection[Hashable], using: str
) -> dict[Any, Any] | None:
    """
    Return the rows that have one of ``keys``, by their keys; None if the ORM has to read them.

    ``keys`` are as ``to_python`` of the primary key has them.
    """
    table = _table(model, using)
    if table is None:
        return None
    connection, key = connections[using], table.key
    values = keys
    if not set(map(type, keys)) <= key.plain:
        values = [key.field.get_db_prep_value(each, connection) for each in keys]
    with connection.cursor() as cursor:
        cursor.execute(table.select, [_array(values)])
        columns: list[Any] = list(zip(*cursor.fetchall(), strict=True))
    if not columns:
        return {}
    # Not by its converter, which would parse each id: the id that was asked for is at hand.
    known = {str(each): each for each in keys if type(each) is LogId}
    for at, column in enumerate(table.columns):
        for convert in column.converters:
            if column is key and type(key.field) is LogIdField:
                columns[at] = [
                    known.get(each) or convert(each, key.expression, connection)
                    for each in columns[at]
                ]
            else:
                columns[at] = [convert(each, column.expression, connection) for each in columns[at]]
    names = [column.field.attname for column in table.columns]
    rows = (model.from_db(using, names, values) for values in zip(*columns, strict=True))
    return {row.pk: row for row in rows}


def upsert(model: type[models.Model], rows: Sequence[Any], using: str) -> bool:
    """
    Insert or update rows, each of another primary key; return False if the ORM has to do it.

    Fields that are filled once (``auto_now_add``) keep their values in rows that are there. Raise
    what the database raises; a transaction that is open cannot be continued then.
    """
    table = _table(model, using)
    if table is None:
        return False
    if any(column.field.is_relation for column in table.columns):
        for row in rows:
            # As bulk_create() does: the key of an object that was stored after it was assigned,
            # and an error for one that was not stored.
            row._prepare_related_fields_for_save(operation_name="bulk_create")
    arrays = []
    for column in table.columns:
        if column.field.generated:
            continue
        values = _values(column, rows, using)
        if values is None or (column is table.key and None in values):
            return False
        arrays.append(_array(values))
    with transaction.atomic(using=using, savepoint=False), connections[using].cursor() as cursor:
        cursor.execute(table.upsert, arrays)
    return True


def _values(column: Column, rows: Sequence[Any], using: str) -> list[Any] | None:
    """Return the values of a column as the database takes them; None where one is an expression."""
    field = column.field
    values = list(map(column.value_of, rows))
    if set(map(type, values)) <= column.plain:
        return values
    connection = connections[using]
    found = []
    for row in rows:
        value = field.pre_save(row, add=True)
        if hasattr(value, "resolve_expression"):
            return None
        found.append(field.get_db_prep_save(value, connection))
    return found


def _array(values: Collection[Any]) -> Any:
    """
    Return an array for a parameter that is cast to its type.

    Those of integers and of text are written here, in a fraction of psycopg's time.
    """
    kinds = set(map(type, values))
    if kinds <= INTEGERS:
        items = ["NULL" if each is None else str(each) for each in values]
    elif kinds <= TEXTS:
        # https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
        items = [
            "NULL" if each is None else '"' + each.replace("\\", "\\\\").replace('"', '\\"') + '"'
            for each in values
        ]
    else:
        return list(values)
    return "{" + ",".join(items) + "}"


@cache
def _table(model: type[models.Model], using: str) -> Table | None:
    """Return the statements for a model; None if it is not plain, or not in PostgreSQL."""
    connection, options = connections[using], model._meta
    if connection.vendor != "postgresql" or type(model._base_manager) is not models.Manager:
        return None
    fields = options.concrete_fields
    if options.pk not in fields or any(
        each.model._meta.db_table != options.db_table for each in fields
    ):
        return None  # a composite key, or a parent's table
    columns = [_column(field, using) for field in fields]
    if None in columns:
        return None
    found = cast("list[Column]", columns)
    quote = connection.ops.quote_name

    def name(field: Any) -> str:
        return quote(field.column).replace("%", "%%")

    table = quote(options.db_table).replace("%", "%%")
    [key] = [each for each in found if each.field is options.pk]
    read = ", ".join(name(each.field) for each in found)
    written = [each for each in found if not each.field.generated]
    changed = [
        f"{name(each.field)} = EXCLUDED.{name(each.field)}"
        for each in written
        if each is not key and not is_filled_once(each.field)
    ]
    action = f"DO UPDATE SET {', '.join(changed)}" if changed else "DO NOTHING"
    return Table(
        key,
        found,
        f"SELECT {read} FROM {table} WHERE {name(key.field)} = ANY(%s::{key.kind}[])",
        f"INSERT INTO {table} ({', '.join(name(each.field) for each in written)}) "
        f"SELECT * FROM unnest({', '.join(f'%s::{each.kind}[]' for each in written)}) "
        f"ON CONFLICT ({name(key.field)}) {action}",
    )


def _column(field: Any, using: str) -> Column | None:
    connection = connections[using]
    kind = ARGUMENTS.sub("", field.db_type(connection) or "")
    expression = field.get_col(field.model._meta.db_table)
    own = expression.output_field  # that of a generated field, otherwise the field
    if (
        kind not in PLAIN_TYPES
        or any(hasattr(field, name) for name in PLACEHOLDERS)
        or type(own).select_format is not models.Field.select_format
    ):
        return None
    converters = [
        *connection.ops.get_db_converters(expression),
        *expression.get_db_converters(connection),
    ]
    plain = PLAIN_FIELDS.get(type(field), frozenset())
    return Column(field, attrgetter(field.attname), kind, plain, converters, expression)
