"""
Querysets and managers of the tables: for reading, and ``append()``, the one way to write.

``EventLog.objects`` works with rows, a ``LogManager`` with your classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final, Generic, NoReturn, TypeVar

from django.db import models, router
from django.utils import timezone

from eventlogs import conf
from eventlogs.aggregates import ANY, Anything
from eventlogs.events.codec import EncodedEvent
from eventlogs.events.registry import registry
from eventlogs.events.unique_values import UniqueReader, as_values
from eventlogs.exceptions import AppendOnlyError
from eventlogs.ids import LogId
from eventlogs.stores import AppendRequest, BaseStore, Rules, participants, store_for
from eventlogs.stores.erasing import NO_LOG_TYPE
from eventlogs.utils.twins import AsyncTwin
from eventlogs.values import LogState

M = TypeVar("M", bound=models.Model)

PRUNE_BATCH = 1_000  # rows deleted by one statement


class Declared(Enum):
    """The type of ``DECLARED``."""

    DECLARED = "DECLARED"


DECLARED: Final = Declared.DECLARED
"""The default rules of an append: claim the unique values that its event classes declare."""


class AppendOnlyQuerySet(models.QuerySet[M], Generic[M]):
    """A queryset for reading: every method that would write raises AppendOnlyError."""

    def _refuse(self, operation: str) -> NoReturn:
        raise AppendOnlyError(self.model.__name__, f"objects.{operation}()")

    def create(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        self._refuse("create")

    def bulk_create(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        self._refuse("bulk_create")

    def bulk_update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        self._refuse("bulk_update")

    def get_or_create(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        self._refuse("get_or_create")

    def update_or_create(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        self._refuse("update_or_create")

    def update(self, **kwargs: Any) -> NoReturn:
        """Refuse."""
        self._refuse("update")

    def delete(self) -> NoReturn:
        """Refuse."""
        self._refuse("delete")

    # As in Django: templates must not call these two, and managers do not have delete().
    update.alters_data = True  # type: ignore[attr-defined]
    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]


class EventQuerySet(AppendOnlyQuerySet[M]):
    """Events, for reading."""

    def for_log(self, log_id: LogId | str) -> EventQuerySet[M]:
        """
        Keep the events of one log, in order.

        Raise InvalidLogId for text that is not a log id.
        """
        if not isinstance(log_id, LogId):
            log_id = LogId.parse(log_id)
        return self.filter(log=log_id.uuid, log_type=log_id.log_type).order_by("index")

    def after(self, index: int) -> EventQuerySet[M]:
        """Keep the events of each log with an index above ``index``."""
        return self.filter(index__gt=index)

    def of_type(self, *types: str | type) -> EventQuerySet[M]:
        """Keep the events of these types, given by name or class, under all their names."""
        return self.filter(type__in=registry.names_of(types))

    def recorded_between(self, start: datetime, end: datetime) -> EventQuerySet[M]:
        """Keep the events recorded from ``start`` on and before ``end``, both aware."""
        if timezone.is_naive(start) or timezone.is_naive(end):
            raise ValueError("recorded_between() needs datetimes with a time zone.")
        return self.filter(recorded_at__gte=start, recorded_at__lt=end)


class EventLogQuerySet(AppendOnlyQuerySet[M]):
    """Logs, for reading."""

    def of_type(self, *log_types: str) -> EventLogQuerySet[M]:
        """Keep the logs of these types."""
        return self.filter(log_type__in=log_types)


class EventLogManager(models.Manager.from_queryset(EventLogQuerySet)):  # type: ignore[misc]
    """Logs, for reading, and ``append()``, the one way to write them."""

    def get_queryset(self) -> EventLogQuerySet[Any]:
        """Leave out the marks of erased logs; see stores/erasing.py."""
        logs: EventLogQuerySet[Any] = super().get_queryset()
        return logs.exclude(log_type=NO_LOG_TYPE)

    def store(self, *, using: str | None = None) -> BaseStore:
        """Return the store of a database alias, by default the alias that appends go to."""
        return store_for(using or self._db or router.db_for_write(self.model))

    def _store_of(self, log_id: LogId, using: str | None) -> BaseStore:
        return store_for(using or self._db or router.db_for_write(self.model, log_id=log_id))

    def append(
        self,
        log_id: LogId,
        events: Iterable[EncodedEvent],
        *,
        expected_version: int | Anything,
        expected_position: int | None = None,
        idempotency_key: str | None = None,
        metadata: str = "{}",
        rules: Rules | Declared | None = DECLARED,
        using: str | None = None,
        store: BaseStore | None = None,
    ) -> LogState:
        """
        Append encoded events to a log, all or none; version 0 creates it.

        ``LogManager`` calls this with what its codec encoded. ``metadata`` is JSON text.
        ``expected_position`` is that of the log's last event, and goes with a version; None
        expects none. ``rules`` are conditions of other logs; by default, the unique values that
        the classes of the events declare are claimed.

        Raise ConcurrentAppend (LogAlreadyExists for version 0), LogNotFound, LogFull, NameTaken,
        IdempotentReplay or IdempotencyKeyReused, each with the caller's transaction usable,
        and TransactionMustRetry where the database aborted that transaction; and ProjectionFailed
        where an inline projection cannot apply an event. Raise TypeError for a position with ANY,
        and NotImplementedError for rules with a store that cannot keep them. Nothing is stored
        then.
        """
        if expected_position is not None and expected_version is ANY:
            raise TypeError(
                "expected_position goes with an expected_version: pass the version whose last "
                "event it is of, or leave the position out."
            )
        events = tuple(events)
        if rules is not None:
            rules = _rules_of(events) if rules is DECLARED else rules
        # By position: by name it takes three times as long.
        request = AppendRequest(
            log_id,
            events,
            None if expected_version is ANY else expected_version,
            idempotency_key,
            metadata,
            expected_position,
            rules,
        )
        store = store or self._store_of(log_id, using)
        if rules is not None and not store.keeps_rules:
            raise NotImplementedError(
                f"{type(store).__qualname__} cannot keep values unique, or compare the states of "
                f"other logs. Nothing was stored: use the database's own store, or let this one "
                f"obey AppendRequest.rules and set keeps_rules."
            )
        if participants.registered and store.using is not None:
            taking_part = participants.participants_of(log_id.log_type)
            if taking_part:
                return participants.append_with(taking_part, store, store.using, request)
        return store.append(request)

    aappend = AsyncTwin(append)


def _rules_of(events: tuple[EncodedEvent, ...]) -> Rules | None:
    values = UniqueReader().read(events)
    return Rules(as_values(values)) if values else None


class IdempotencyKeyQuerySet(AppendOnlyQuerySet[M]):
    """Idempotency keys, for reading, and ``prune()``, which deletes old ones."""

    def prune(self, *, older_than: timedelta | None = None) -> int:
        """
        Delete the keys that are older than ``older_than``, and return how many there were.

        The default is ``EVENTLOGS["IDEMPOTENCY_KEY_RETENTION"]``; None there deletes nothing.
        A request that is retried after its key was deleted is a new request. Rows are deleted in
        batches of 1,000, each in a transaction of its own unless the caller has opened one.
        """
        older_than = older_than if older_than is not None else conf.idempotency_key_retention()
        if older_than is None:
            return 0
        # The keys are read from the database that they are deleted from: a replica may lag, or be
        # read-only. Django has no public way to ask a queryset where it would write: its delete()
        # sets _for_write likewise.
        writes: Any = self.all()
        writes._for_write = True
        using: str = writes.db
        before = timezone.now() - older_than
        old = self.using(using).filter(created_at__lt=before).order_by("pk")
        pruned = 0
        while batch := list(old.values_list("pk", flat=True)[:PRUNE_BATCH]):
            rows = self.model._base_manager.using(using).filter(pk__in=batch)
            # Not delete(), which is refused here, and would load the rows first. No other table
            # refers to a key.
            pruned += rows._raw_delete(using)
            if len(batch) < PRUNE_BATCH:
                break
        return pruned
