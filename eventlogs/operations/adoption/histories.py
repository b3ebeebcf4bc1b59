"""
Histories that other packages have kept of a table's rows: what changed, when, and by whom.

The packages are not imported here: their models are found by what the packages leave on the models
that they follow. Each source says how the rows of its table are ordered:

- django-simple-history by ``history_date``, then ``history_id``, as it orders them itself;
- django-pghistory by ``pgh_id``: its triggers take the number under the lock of the row, and its
  time is that of the transaction's start, which may be earlier than that of an earlier change;
- django-auditlog by ``timestamp``, then ``id``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final

from django.apps import apps
from django.db import models
from django.db.models import QuerySet
from django.utils.module_loading import import_string

from eventlogs.exceptions import RegistrationError

CREATED: Final = "created"
CHANGED: Final = "changed"
DELETED: Final = "deleted"
ACCESSED: Final = "accessed"

ROWS_AT_ONCE: Final = 1_000  # of a history, that are in memory


@dataclass(frozen=True, slots=True)
class Change:
    """
    One row of a history, as all sources have it.

    ``kind`` is "created", "changed", "deleted" or (django-auditlog only) "accessed". ``values``
    are those of the model's columns after it, by attribute name (``customer_id``), as far as the
    history has them; ``before`` those before it, or None for the first one that is known.
    ``user`` is the key of the user, or None. ``row`` is the row of the history. It is None for a
    change that no history has seen: the table's row differs from the last row of its
    history, e.g. after ``QuerySet.update()``.
    """

    kind: str
    values: Mapping[str, Any]
    before: Mapping[str, Any] | None
    at: datetime
    user: int | str | None = None
    row: models.Model | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """The values that it changed: by name, the one before and the one after."""
        before = self.before or {}
        return {
            name: (before.get(name), value)
            for name, value in self.values.items()
            if self.before is None or before.get(name) != value
        }


class History(ABC):
    """A source of changes of one model's rows."""

    package: ClassVar[str]
    has_values: ClassVar[bool] = True  # those of the columns, and not texts that describe them

    def __init__(self, model: type[models.Model]) -> None:
        self.model = model
        self.rows_model = self.find()

    @abstractmethod
    def find(self) -> type[models.Model]:
        """Return the model of the history's rows; raise RegistrationError if there is none."""

    @property
    @abstractmethod
    def key_field(self) -> str:
        """The name of the history's column with the key of the row that changed."""

    @property
    @abstractmethod
    def order(self) -> tuple[str, ...]:
        """The fields by which the changes of one row are ordered."""

    @abstractmethod
    def change_of(self, row: Any, before: Mapping[str, Any] | None) -> Change:
        """Return a row of the history as a Change."""

    def rows(self, using: str) -> QuerySet[Any]:
        """Return the history's rows of this model."""
        return self.rows_model._base_manager.using(using)

    def key_in_model(self, key: Any) -> Any:
        """Return a key of the history as the model has it."""
        return key

    def key_in_history(self, pk: Any) -> Any:
        """Return a primary key of the model as the history has it."""
        return pk

    def keys_after(self, using: str, after: Any, limit: int) -> list[Any]:
        """Return the next keys of rows that the history knows, in order, each once."""
        rows = self.rows(using).exclude(**{self.key_field: None})
        if after is not None:
            rows = rows.filter(**{f"{self.key_field}__gt": after})
        keys = rows.order_by(self.key_field).values_list(self.key_field, flat=True)
        return list(keys.distinct()[:limit])

    def changes(self, using: str, pks: Sequence[Any]) -> Iterator[tuple[Any, Change]]:
        """Yield the changes of rows, those of one row after another, each in their order."""
        keys = [self.key_in_history(pk) for pk in pks]
        rows = self.rows(using).filter(**{f"{self.key_field}__in": keys})
        last_key: Any = None
        before: Mapping[str, Any] | None = None
        for row in rows.order_by(self.key_field, *self.order).iterator(ROWS_AT_ONCE):
            key = getattr(row, self.key_field)
            if key != last_key:
                last_key, before = key, None
            change = self.change_of(row, before)
            before = change.values
            yield self.key_in_model(key), change

    def _values_of(self, row: Any) -> dict[str, Any]:
        own = {each.attname for each in self.model._meta.concrete_fields}
        return {
            each.attname: getattr(row, each.attname)
            for each in self.rows_model._meta.concrete_fields
            if each.attname in own
        }

    def _missing(self) -> RegistrationError:
        return RegistrationError(
            f"{self.package} keeps no history of {self.model._meta.label}. Install it for the "
            f"model, or leave `history` out of the adoption."
        )


class SimpleHistory(History):
    """The history of django-simple-history."""

    package = "django-simple-history"
    KINDS: ClassVar[Mapping[str, str]] = {"+": CREATED, "~": CHANGED, "-": DELETED}
    order = ("history_date", "history_id")

    def find(self) -> type[models.Model]:
        name = getattr(self.model._meta, "simple_history_manager_attribute", None)
        if name is None:
            raise self._missing()
        found: type[models.Model] = getattr(self.model, name).model
        return found

    @property
    def key_field(self) -> str:
        return self.model._meta.pk.attname

    def change_of(self, row: Any, before: Mapping[str, Any] | None) -> Change:
        reason = row.history_change_reason
        return Change(
            self.KINDS.get(row.history_type, CHANGED),
            self._values_of(row),
            before,
            row.history_date,
            row.history_user_id,
            row,
            {"reason": reason} if reason else {},
        )


class PgHistory(History):
    """
    The history of django-pghistory, of events that hold a row after its change.

    A model with several event models needs a subclass that names one: ``event_model``.
    """

    package = "django-pghistory"
    order = ("pgh_id",)
    event_model: ClassVar[str | None] = None

    def find(self) -> type[models.Model]:
        if self.event_model is not None:
            return apps.get_model(self.event_model)
        found = [
            each
            for each in apps.get_models()
            if getattr(each, "pgh_tracked_model", None) is self.model and not each._meta.proxy
        ]
        if not found:
            raise self._missing()
        if len(found) > 1:
            names = ", ".join(sorted(each._meta.label for each in found))
            raise RegistrationError(
                f"{self.model._meta.label} has several event models: {names}. Choose one by "
                f"`event_model` of a subclass of PgHistory."
            )
        return found[0]

    @property
    def key_field(self) -> str:
        names = {each.attname for each in self.rows_model._meta.concrete_fields}
        key = self.model._meta.pk.attname
        return key if key in names else "pgh_obj_id"

    def rows(self, using: str) -> QuerySet[Any]:
        rows = super().rows(using)
        names = {each.name: each for each in self.rows_model._meta.concrete_fields}
        context = names.get("pgh_context")
        return rows.select_related("pgh_context") if context and context.is_relation else rows

    def change_of(self, row: Any, before: Mapping[str, Any] | None) -> Change:
        context = getattr(row, "pgh_context", None)
        found = context if isinstance(context, Mapping) else getattr(context, "metadata", None)
        facts = dict(found or {})
        return Change(
            self._kind_of(row),
            self._values_of(row),
            before,
            row.pgh_created_at,
            facts.pop("user", None),
            row,
            {"context": facts} if facts else {},
        )

    def _kind_of(self, row: Any) -> str:
        operations = {
            each.label: str(getattr(each, "operation", "")).upper()
            for each in self.rows_model.pgh_trackers or ()  # type: ignore[attr-defined]
        }
        operation = operations.get(row.pgh_label, "") or row.pgh_label.upper()
        for name, kind in (("INSERT", CREATED), ("DELETE", DELETED)):
            if name in operation:
                return kind
        return CHANGED


class AuditLog(History):
    """
    The history of django-auditlog. It keeps texts of the values, and so does a Change of it.

    Changes of many-to-many relations are in ``change.row.changes`` only.
    """

    package = "django-auditlog"
    has_values = False
    KINDS: ClassVar[Mapping[int, str]] = {0: CREATED, 1: CHANGED, 2: DELETED, 3: ACCESSED}
    order = ("timestamp", "id")

    def find(self) -> type[models.Model]:
        if not apps.is_installed("auditlog"):
            raise self._missing()
        found: type[models.Model] = import_string("auditlog.get_logentry_model")()
        return found

    @property
    def key_field(self) -> str:
        return "object_id" if isinstance(self.model._meta.pk, models.IntegerField) else "object_pk"

    def key_in_model(self, key: Any) -> Any:
        return self.model._meta.pk.to_python(key)

    def key_in_history(self, pk: Any) -> Any:
        return pk if self.key_field == "object_id" else str(pk)

    def rows(self, using: str) -> QuerySet[Any]:
        content_types: Any = apps.get_model("contenttypes", "ContentType")._default_manager
        content_type = content_types.db_manager(using).get_for_model(self.model)
        return super().rows(using).filter(content_type=content_type)

    def change_of(self, row: Any, before: Mapping[str, Any] | None) -> Change:
        values = dict(before or {})
        changed = row.changes if isinstance(row.changes, Mapping) else {}
        kind = self.KINDS.get(row.action, CHANGED)
        for name, both in changed.items():
            if isinstance(both, list) and len(both) == 2 and kind != DELETED:
                _, values[self._attname(name)] = both
        facts = {"correlation_id": row.cid, "ip": row.remote_addr}
        return Change(
            kind,
            values,
            before,
            row.timestamp,
            row.actor_id,
            row,
            {name: value for name, value in facts.items() if value},
        )

    def _attname(self, name: str) -> str:
        for each in self.model._meta.concrete_fields:
            if each.name == name:
                return each.attname
        return name


SOURCES: Final[Mapping[str, type[History]]] = {
    "simple_history": SimpleHistory,
    "pghistory": PgHistory,
    "auditlog": AuditLog,
}
