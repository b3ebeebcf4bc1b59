"""
How rows become events: a project's ``Adoption`` classes.

They are declared once and used for some weeks, so they are not imported when Django starts: the
command imports the module ``adoptions`` of each app, or the one that is named on its line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import import_module
from typing import Any, ClassVar, Final
from uuid import UUID

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.db import models, router
from django.db.models import QuerySet

from eventlogs.aggregates import Aggregate, aggregates
from eventlogs.exceptions import RegistrationError
from eventlogs.ids import LogId
from eventlogs.models import EventLog
from eventlogs.operations.adoption.histories import SOURCES, Change, History
from eventlogs.operations.adoption.running import BATCH, Adopted, Run
from eventlogs.utils.names import dotted
from eventlogs.utils.twins import AsyncTwin

declared: Final[dict[str, type[Adoption]]] = {}
"""The adoptions of this process, by their dotted names."""


class Adoption:
    """
    How the rows of a model become logs; subclass it for each table that is adopted.

    ``model`` is a model or its label ("shop.Order"), ``aggregate`` the class whose events are
    written. ``history`` is where earlier changes of the rows are found: "simple_history",
    "pghistory", "auditlog", or a History class; None is for no history.

    Without a history, each row gets one event, that of ``event(row)``. With one, ``change(change)``
    returns the event of a row of the history, and ``event(row)`` that of a row without any.
    """

    model: ClassVar[type[models.Model] | str]
    aggregate: ClassVar[type[Aggregate]]
    history: ClassVar[str | type[History] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if getattr(cls, "model", None) is not None:
            declared[dotted(cls)] = cls

    def event(self, row: Any) -> Any:
        """
        Return the genesis event of a row: an event of the aggregate with the row's whole state.

        None passes the row over: it gets no log.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must define event(self, row).")

    def change(self, change: Change) -> Any:
        """Return the event of a row of the history, or None for a row that becomes none."""
        raise NotImplementedError(f"{type(self).__qualname__} must define change(self, change).")

    def log_id(self, row: Any) -> LogId:
        """
        Return the log of a row: by default of its primary key, a UUID or another key.

        The same row must always get the same id. Of a row that was deleted, ``row`` is what the
        last row of its history says.
        """
        key = row.pk
        log_type = self.aggregate.log_type
        if isinstance(key, UUID):
            return LogId.from_uuid(log_type, key)
        if isinstance(key, bool) or not isinstance(key, int | str):
            raise RegistrationError(
                f"The primary key of {row._meta.label} is no UUID, int or str. Define "
                f"log_id(self, row) in {type(self).__qualname__}."
            )
        return LogId.from_key(log_type, key)

    def recorded_at(self, row: Any) -> datetime:
        """
        Return the time of a genesis event: by default that of the one auto_now_add field.

        It must have a time zone and have passed.
        """
        names = [
            each.attname
            for each in row._meta.concrete_fields
            if isinstance(each, models.DateTimeField) and each.auto_now_add
        ]
        if len(names) != 1:
            raise RegistrationError(
                f"{row._meta.label} has {len(names)} fields with auto_now_add, so it does not say "
                f"when a row began. Define recorded_at(self, row) in {type(self).__qualname__}."
            )
        found: datetime = getattr(row, names[0])
        return found

    def metadata(self, row: Any) -> Mapping[str, Any]:
        """Return metadata for a genesis event, e.g. ``{"user": row.created_by_id}``."""
        return {}

    def rows(self, using: str) -> QuerySet[Any]:
        """Return the rows to adopt: by default all, those included that a manager leaves out."""
        return type(self).model_class()._base_manager.using(using)

    @classmethod
    def model_class(cls) -> type[models.Model]:
        """Return the model; raise RegistrationError where the label names none."""
        if not isinstance(cls.model, str):
            return cls.model
        return model_of(cls.model)

    @classmethod
    def adopt(
        cls,
        *,
        using: str | None = None,
        dry_run: bool = False,
        batch_size: int = BATCH,
        tell: Callable[[int], object] | None = None,
    ) -> Adopted:
        """
        Make a log of each row that has none yet, with the times that the rows have.

        ``using`` is the database of the logs, by default the one that they are written to; the
        rows are read where the model is written. ``batch_size`` rows, 1 to 10,000, are locked and
        adopted in one transaction. ``tell`` is called with the number of rows done since its last
        call. ``dry_run`` encodes everything and stores nothing; what would fail is in
        ``problems``.

        Call it again to continue after an interruption, or for rows that have come since: a row
        whose log exists is left alone. No reactor reacts to the events, and inline projections
        apply them with the log's next event, or when a worker comes to them.

        Raise AdoptionFailed for a row that cannot be adopted, RegistrationError for a declaration
        that cannot work, and ValueError for a ``batch_size`` out of bounds. The batches before are
        stored then, and nothing of this one.
        """
        model = cls.model_class()
        if not isinstance(getattr(cls, "aggregate", None), type):
            raise RegistrationError(
                f"{cls.__qualname__} needs aggregate = …, a subclass of Aggregate."
            )
        source = SOURCES.get(cls.history) if isinstance(cls.history, str) else cls.history
        if cls.history is not None and source is None:
            known = ", ".join(SOURCES)
            raise RegistrationError(f"history is {cls.history!r}. It must be one of: {known}.")
        return Run(
            cls(),
            model,
            cls.aggregate,
            None if source is None else source(model),
            using=using or router.db_for_write(EventLog),
            batch_size=batch_size,
            tell=tell,
        ).run(dry_run=dry_run)

    aadopt = AsyncTwin(adopt)


def model_of(label: str) -> type[models.Model]:
    """Return the model of a label; raise RegistrationError where there is none."""
    try:
        return apps.get_model(label)
    except (LookupError, ValueError):
        raise RegistrationError(
            f"There is no model {label!r}. Write it as app_label.ModelName, of an app in "
            f"INSTALLED_APPS."
        ) from None


def adoptions_of(model: type[models.Model]) -> list[type[Adoption]]:
    """Return the declared adoptions of a model."""
    # By label: the model of another adoption may not be there.
    return [
        each
        for each in declared.values()
        if each.model is model or str(each.model).lower() == model._meta.label_lower
    ]


def imported(path: str) -> Any:
    """
    Return the object of a dotted path: in a module, or in a class of one.

    Raise RegistrationError if there is none.
    """
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name and ".".join(parts[:end]).startswith(error.name):
                continue
            raise
        try:
            for name in parts[end:]:
                found = getattr(found, name)
        except AttributeError:
            break
        return found
    raise RegistrationError(
        f"There is nothing at {path!r}. Write the path of an Adoption, or of a function of a row, "
        f"as shop.adoptions.OrderAdoption."
    )


def adoption_by(
    function: Callable[[Any], Any],
    model: type[models.Model],
    *,
    aggregate: type[Aggregate] | None,
    time: str | None,
) -> type[Adoption]:
    """
    Return an adoption of a function that takes a row and returns its genesis event.

    ``aggregate`` may be None if only one is declared with the function's events; ``time`` is the
    field with the times of the rows.
    """
    if not callable(function):
        raise RegistrationError(f"{function!r} is no Adoption and no function of a row.")

    class ByFunction(Adoption):
        def event(self, row: Any) -> Any:
            return function(row)

        def recorded_at(self, row: Any) -> datetime:
            found: datetime = super().recorded_at(row) if time is None else getattr(row, time)
            return found

    if time is not None:
        try:
            model._meta.get_field(time)
        except FieldDoesNotExist:
            raise RegistrationError(f"{model._meta.label} has no field {time!r}.") from None
    if aggregate is None:
        aggregate = _only_aggregate(function)
    ByFunction.model, ByFunction.aggregate = model, aggregate
    ByFunction.__qualname__ = getattr(function, "__qualname__", repr(function))
    return ByFunction


def _only_aggregate(function: Callable[[Any], Any]) -> type[Aggregate]:
    known = list(aggregates)
    if len(known) == 1:
        return known[0]
    names = ", ".join(sorted(dotted(each) for each in known)) or "none"
    raise RegistrationError(
        f"{dotted(function)} does not say whose events it returns. Choose the aggregate by "
        f"--aggregate: {names}."
    )
