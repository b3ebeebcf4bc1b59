"""
Django signals of what has happened: for code in the same process that wants to know at once.

A signal is sent **at most once**. It is lost if the process ends between the commit and the
sending, and not sent if Django does not know when it commits (autocommit is off, without
``atomic()``). It does not replace a Reactor, which is called at least once for each event, whatever
is killed.

Receivers run in the process and thread of the caller, before its call returns or its ``atomic()``
block ends. They should be quick. The error of a receiver is logged by Django and changes nothing.
While no receiver is connected, nothing is paid.

Signals have no payload data. ``Payment.logs.load(log_id, start=index, limit=events)`` returns the
events.

Restores, imports, adoptions and ``EventLog.objects.append()`` send none. In a TestCase, events are
never committed: use ``captureOnCommitCallbacks(execute=True)``.
"""

from __future__ import annotations

from typing import Any, Final

from django.dispatch import Signal

from eventlogs.observers import (
    CONFLICT,
    Append,
    EventParked,
    Fact,
    Observer,
    Operation,
    RefreshRun,
    register,
    unregister,
)

__all__ = [
    "append_conflicted",
    "event_appended",
    "event_parked",
    "log_created",
    "reduction_refreshed",
]


class ObservedSignal(Signal):
    """A signal that is observed for as long as it has receivers."""

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connect a receiver, as ``Signal.connect`` does."""
        super().connect(*args, **kwargs)
        register(_sender)

    def disconnect(self, *args: Any, **kwargs: Any) -> bool:
        """Disconnect a receiver, as ``Signal.disconnect`` does."""
        is_disconnected = super().disconnect(*args, **kwargs)
        if not any(each.receivers for each in SIGNALS):
            unregister(_sender)
        return bool(is_disconnected)


event_appended: Final = ObservedSignal()
"""
Sent once for each call that has appended, after the commit; by the aggregate class.

``log_type``, ``log_id``, ``index`` (of the first event), ``events`` (how many), ``event_types`` (a
tuple of names, each once), ``state`` (the LogState after it) and ``using`` (the database's alias,
None for a store in memory). A call that was answered by its idempotency key sends nothing.
"""

log_created: Final = ObservedSignal()
"""Sent after the commit of an append that created its log, with the arguments of event_appended."""

append_conflicted: Final = ObservedSignal()
"""
Sent when an append is refused because another writer was faster; by the aggregate class.

``log_type``, ``log_id``, ``event_types``, ``using`` and ``error``, the ConcurrentAppend. It is sent
at once, in the caller's transaction, and for each attempt of ``execute``.
"""

reduction_refreshed: Final = ObservedSignal()
"""
Sent when a refresh has written a reduction to the cache; by the aggregate class.

``log_type``, ``log_id`` and ``using``. It is sent in the process that does it: in a thread of this
one, or in a worker. Entries that a reader has made itself send none.
"""

event_parked: Final = ObservedSignal()
"""
Sent after the commit that parks an event of a projection or reactor; by its class.

``projection`` (its name), ``log_type``, ``log_id``, ``index``, ``position``, ``event_type``,
``error`` (the name of the exception's class) and ``using``. It is sent in the worker's process.
"""

SIGNALS: Final = (
    event_appended,
    log_created,
    append_conflicted,
    reduction_refreshed,
    event_parked,
)


class SignalSender(Observer):
    """Sends the signals of this module."""

    is_blocking = True  # receivers may use the database

    def end(self, operation: Operation, token: Any) -> None:
        """Send what does not wait for a commit."""
        if isinstance(operation, Append) and operation.outcome == CONFLICT:
            append_conflicted.send_robust(
                operation.aggregate,
                log_type=operation.log_id.log_type,
                log_id=operation.log_id,
                event_types=operation.event_types,
                using=operation.using,
                error=operation.error,
            )
        elif isinstance(operation, RefreshRun) and operation.outcome == "written":
            reduction_refreshed.send_robust(
                operation.aggregate,
                log_type=operation.log_id.log_type,
                log_id=operation.log_id,
                using=operation.using,
            )

    def committed(self, append: Append) -> None:
        """Send what an append has done."""
        facts = {
            "log_type": append.log_id.log_type,
            "log_id": append.log_id,
            "index": append.index,
            "events": append.events,
            "event_types": append.event_types,
            "state": append.state,
            "using": append.using,
        }
        if append.index == 0:
            log_created.send_robust(append.aggregate, **facts)
        event_appended.send_robust(append.aggregate, **facts)

    def happened(self, fact: Fact) -> None:
        """Send that an event was parked."""
        if isinstance(fact, EventParked):
            event_parked.send_robust(
                fact.projection,
                projection=fact.projection.name,
                log_type=fact.log_id.log_type,
                log_id=fact.log_id,
                index=fact.index,
                position=fact.position,
                event_type=fact.event_type,
                error=fact.error,
                using=fact.using,
            )


_sender: Final = SignalSender()
