"""
Inserts of rows unless they exist: how a store claims a log or a key.

Django's ``ignore_conflicts`` does that in PostgreSQL (ON CONFLICT DO NOTHING) and SQLite (INSERT OR
IGNORE): a row is stored as it was given, or it is not stored. On MySQL and MariaDB it is INSERT
IGNORE, which turns errors into warnings and stores another row: text that is too long is cut, a
NULL becomes a default (https://mariadb.com/kb/en/insert-ignore/). So on these two, an existing row
is "updated" to the values that it has, and every other error stays an error. The update also takes
an exclusive lock on the row; INSERT IGNORE takes a shared one, and two transactions that hold it
and then both write are a deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connections, models
from django.db.models import QuerySet
from django.db.models.sql import InsertQuery

BATCH = 500  # rows of one statement


def insert_missing(using: str, rows: Sequence[Any]) -> None:
    """
    Insert rows of one model, except those that violate a unique constraint.

    On MySQL and MariaDB the caller must have a transaction open, which holds the locks.
    """
    if not rows:
        return
    model: type[models.Model] = type(rows[0])
    connection = connections[using]
    if connection.vendor != "mysql":
        # A plain queryset: those of the models refuse to write.
        QuerySet(model, using=using).bulk_create(rows, ignore_conflicts=True)
        return
    primary = model._meta.pk
    fields = [
        field
        for field in model._meta.concrete_fields
        if not field.generated and not (field is primary and rows[0].pk is None)
    ]
    column = connection.ops.quote_name(str(primary.column))
    for start in range(0, len(rows), BATCH):
        query = InsertQuery(model)
        query.insert_values(fields, list(rows[start : start + BATCH]))
        with connection.cursor() as cursor:
            for statement, parameters in query.get_compiler(using=using).as_sql():
                cursor.execute(
                    f"{statement} ON DUPLICATE KEY UPDATE {column} = {column}", parameters
                )
