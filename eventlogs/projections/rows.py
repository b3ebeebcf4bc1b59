"""The rows of a read model: loaded for a batch at once, written at once, and compared."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal
from itertools import islice
from typing import Any, Final

from django.db import DataError, connections, models

from eventlogs.projections import mysql, plain_rows
from eventlogs.projections.constraints import check_deferred
from eventlogs.projections.defaults import fill, is_filled_once

BATCH: Final = 500  # rows of one statement: SQLite takes a limited number of parameters


class Rows:
    """The rows that a batch touches: handlers change them, then they are written."""

    def __init__(self, model: type[models.Model], keys: Iterable[Hashable], using: str) -> None:
        self._model = model
        self._using = using
        self._as_key = model._meta.pk.to_python
        self._found: dict[Any, Any] = {}
        self._changed: dict[Any, Any] = {}
        self._deleted: set[Any] = set()
        manager = model._base_manager.using(using)
        wanted = dict.fromkeys(map(self._as_key, keys))
        for some in chunks(wanted, plain_rows.MANY):
            found = plain_rows.find(model, some, using)
            if found is not None:
                self._found |= found
                continue
            for few in chunks(some):
                for row in mysql.latest(manager.filter(pk__in=few), using):
                    self._found[row.pk] = row

    def __getitem__(self, key: Hashable) -> Any:
        """Return the row of a key; where there is none, a new one."""
        key = self._as_key(key)  # as a stored row has it: "2024-12-31" is the key of a date's row
        row = self._changed.get(key)
        if row is None:
            row = None if key in self._deleted else self._found.get(key)
            if row is None:
                row = fill(self._model(pk=key), self._using)
            self._changed[key] = row
        return row

    def delete(self, row: Any) -> None:
        """Delete the row; the next event of its log begins a new one."""
        self._changed.pop(row.pk, None)
        self._deleted.add(row.pk)

    def put(self, row: Any) -> None:
        """Replace the row of its key by this one."""
        self._changed[row.pk] = row

    def get(self, key: Hashable) -> Any:
        """Return the row of a key as it is by now, or None."""
        key = self._as_key(key)
        if key in self._changed:
            return self._changed[key]
        return None if key in self._deleted else self._found.get(key)

    def write(self) -> None:
        """Store the changes."""
        gone = [key for key in self._deleted if key in self._found]
        for start in range(0, len(gone), BATCH):
            some = gone[start : start + BATCH]
            self._model._base_manager.using(self._using).filter(pk__in=some).delete()
        if self._changed:
            upsert(self._model, list(self._changed.values()), self._using)


def upsert(model: type[models.Model], rows: list[Any], using: str) -> None:
    """
    Insert or update ``rows``.

    Raise IntegrityError for a row that a constraint refuses, also one checked at the COMMIT.
    """
    # An update keeps auto_now_add fields: they say when the row was added.
    fields = [
        field.name
        for field in model._meta.concrete_fields
        if not field.primary_key and not field.generated and not is_filled_once(field)
    ]
    if mysql.is_mysql(using):
        for some in chunks(rows):
            mysql.upsert(model, some, fields, using)
        return
    if connections[using].vendor == "postgresql":
        _refuse_what_would_be_cut(model, rows)
    for some in chunks(rows, plain_rows.MANY):
        if not plain_rows.upsert(model, some, using):
            _upsert_by_orm(model, some, fields, using)
    check_deferred(model, rows, using)


def _upsert_by_orm(
    model: type[models.Model], rows: list[Any], fields: list[str], using: str
) -> None:
    manager = model._base_manager.using(using)
    if fields:
        key = model._meta.pk.name
        manager.bulk_create(
            rows, update_conflicts=True, unique_fields=[key], update_fields=fields, batch_size=BATCH
        )
    else:
        manager.bulk_create(rows, ignore_conflicts=True, batch_size=BATCH)


def _refuse_what_would_be_cut(model: type[models.Model], rows: list[Any]) -> None:
    """
    Raise DataError for text that is too long for its column.

    Django's bulk_create() sends rows as arrays with a cast, and PostgreSQL cuts on a cast
    (https://www.postgresql.org/docs/current/datatype-character.html) where it otherwise refuses.
    Blanks at the end it cuts without a cast, too.
    """
    limits = [
        (field.attname, field.max_length)
        for field in model._meta.concrete_fields
        if isinstance(field, models.CharField) and field.max_length
    ]
    for name, most in limits:
        for row in rows:
            value = getattr(row, name)
            if isinstance(value, str) and len(value) > most:
                raise DataError(f"The text for {name} is longer than {most} characters.")


def differences(model: type[models.Model], stored: Any, wanted: Any, using: str) -> list[str]:
    """
    Return the names of the fields in which a stored row differs from the wanted one.

    Values are compared as the database takes them. Fields that the clock fills are left out, as
    are those with a ``db_default`` that is another one each time.
    """
    if stored is None or wanted is None:
        return [] if stored is wanted else ["the row"]
    connection = connections[using]
    found = []
    for field in model._meta.concrete_fields:
        if getattr(field, "auto_now", False) or is_filled_once(field) or field.generated:
            continue
        values = [field.to_python(getattr(row, field.attname)) for row in (stored, wanted)]
        if values[0] == values[1]:
            continue
        prepared = [
            _rounded(field, field.get_db_prep_save(value, connection), connection.vendor)
            for value in values
        ]
        if not _same(prepared[0], prepared[1]):
            found.append(field.name)
    return found


def _rounded(field: Any, value: Any, vendor: str) -> Any:
    """Return a decimal as it comes back: servers round it, and Django does as it reads SQLite."""
    places = getattr(field, "decimal_places", None)
    if places is None or not isinstance(value, Decimal) or not value.is_finite():
        return value
    how = ROUND_HALF_EVEN if vendor == "sqlite" else ROUND_HALF_UP
    digits = Context(prec=max(value.adjusted(), 0) + places + 2)
    return value.quantize(Decimal(1).scaleb(-places), rounding=how, context=digits)


def _same(one: Any, other: Any) -> bool:
    if one == other or (isinstance(one, float) and one != one and other != other):  # nan
        return True
    # JSON adapters are compared by the JSON that is stored: a tuple comes back as a list.
    if not (hasattr(one, "obj") and hasattr(other, "obj")):
        return False
    dumps = getattr(one, "dumps", None) or json.dumps
    return bool(json.loads(dumps(one.obj)) == json.loads(dumps(other.obj)))


def chunks(values: Iterable[Any], size: int = BATCH) -> Iterator[list[Any]]:
    """Yield lists of at most ``size`` of the values."""
    rest = iter(values)
    while some := list(islice(rest, size)):
        yield some
