"""``eventlogs show LOG``: a log's events and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser

from eventlogs.aggregates import Aggregate
from eventlogs.archives.reading import reading_store
from eventlogs.events.codec import EventReader
from eventlogs.events.metadata import actor_of
from eventlogs.exceptions import LogNotFound, UndecodableEvent, UnknownEventType, VersionNotReached
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.management import arguments
from eventlogs.management.json_values import compact, computed_of, event_as_json, state_of
from eventlogs.management.output import EventLines, Note, Output
from eventlogs.management.subcommands.reduce import add_state_arguments
from eventlogs.reductions.snapshots import Snapshots
from eventlogs.reductions.timeline import MISSING, Change, beginning, property_names, steps
from eventlogs.refreshers import submit
from eventlogs.stores import BaseStore
from eventlogs.utils.times import time_text
from eventlogs.values import EventRecord, Reduction, StoredEvent

HELP = "Show a log: its timeline and its state."

Marked = Sequence[tuple[Change, bool]]  # an event's changes; True for those of properties
Changes = Mapping[int, Marked | None]  # by the events' indexes; None if they are not known

LAST = 50  # events of the timeline, by default


def add_arguments(parser: CommandParser) -> None:
    """Add the log, the version, and how many events."""
    parser.add_argument("log", type=arguments.log_id, help="A log id.")
    add_state_arguments(parser)
    text = f"Show the last N events ({LAST} by default). The state includes all events."
    arguments.add_number(parser, "--last", lowest=0, default=LAST, text=text)
    arguments.add_flags(parser, diff="Show what each event changed in the state.")


def run(
    out: Output,
    *,
    using: str,
    log: LogId,
    at_version: int | None,
    at: datetime | None,
    aggregate: str | None,
    last: int,
    diff: bool = False,
    **options: Any,
) -> None:
    """Show the log as of a version or moment, or as it is now."""
    store = reading_store(using, log)
    actual = store.version(log)
    if not actual:
        raise store.missing(log)
    version = version_at(store, log, actual, at_version, at)
    rows = list(reversed(store.events(log, start=version - 1, limit=last, reverse=True)))[-last:]
    records = list(EventReader().records(rows, decode=False)) if last else []
    state, computed, why_not = state_as_of(using, log, version, aggregate)
    changed: Changes = {}
    if diff and records:
        changed = changes_of(store, using, log, rows, aggregate)
    if out.as_json:
        out.document(
            {
                "log_id": log,
                "version": version,
                "actual_version": actual,
                "state": state,
                "computed": computed,
                "state_error": why_not,
                "events": [
                    event_as_json(each)
                    | ({"changes": as_pairs(changed.get(each.index))} if diff else {})
                    for each in records
                ],
            }
        )
        return
    write_head(out, log, version, actual)
    write_timeline(out, records, version, changed if diff else None)
    write_state(out, state, computed, why_not, version, actual)


def version_at(
    store: BaseStore, log: LogId, actual: int, version: int | None, at: datetime | None
) -> int:
    """
    Return the version asked for.

    Raise VersionNotReached for one above the log's, and LogNotFound for a moment before it.
    """
    if version is not None:
        if version > actual:
            raise VersionNotReached(log, version=version, actual_version=actual)
        return version
    if at is None:
        return actual
    # recorded_at does not run backwards within a log: the last event of that time is found by
    # halving, in 31 steps for the longest log there can be.
    low, high = 0, actual
    while low < high:
        middle = (low + high) // 2
        (row,) = store.events(log, start=middle, limit=1)
        if row.recorded_at <= at:
            low = middle + 1
        else:
            high = middle
    if not low:
        raise LogNotFound(log, reason=f"did not exist at {at.isoformat()}")
    return low


def state_as_of(
    using: str, log: LogId, version: int, aggregate: str | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str | None]:
    """
    Return the fields and the properties of the state at a version.

    If there is none, the third value says why: the raw events can still be shown.
    """
    try:
        cls = arguments.aggregate_of(log.log_type, aggregate)
    except CommandError as error:
        if aggregate is not None:
            raise
        return None, None, str(error)  # there are several; the events can still be shown
    if cls is None:
        why_not = f"No aggregate folds {log.log_type} logs here. Is its app in INSTALLED_APPS?"
        return None, None, why_not
    try:
        reduction: Reduction[Aggregate] = LogManager(cls, using=using).reduce(log, version=version)
    except (UnknownEventType, UndecodableEvent) as error:
        return None, None, str(error)
    return state_of(reduction.aggregate), computed_of(reduction.aggregate), None


def changes_of(
    store: BaseStore, using: str, log: LogId, rows: Sequence[StoredEvent], aggregate: str | None
) -> Changes:
    """
    Return the changes of each event, by its index: None if the state is not known.

    Events before the first of ``rows`` are folded, from a snapshot if there is one.
    """
    try:
        cls = arguments.aggregate_of(log.log_type, aggregate)
    except CommandError:
        cls = None  # there are several; the state says so
    if cls is None:
        return {}
    first = rows[0].index
    snapshots = Snapshots(cls, using)
    start = snapshots.nearest(log, store, upto=first) or beginning(cls, log)
    if isinstance(start, Reduction):
        start, writes = snapshots.fold(start, store, version=first)
        submit(*writes)
    found = steps(start, rows, properties=True)
    names = set(property_names(cls))
    return {
        each.record.index: None
        if each.changes is None
        else [(change, not names.isdisjoint(change.path[:1])) for change in each.changes]
        for each in found
    }


def as_pairs(changes: Marked | None) -> list[dict[str, Any]] | None:
    """
    Return changes as JSON: no "old" for an added value, no "new" for a removed one.

    Changes of properties have ``"computed": true``.
    """
    if changes is None:
        return None
    return [
        {
            "path": each.where,
            **({"computed": True} if is_computed else {}),
            **({} if each.old is MISSING else {"old": each.old}),
            **({} if each.new is MISSING else {"new": each.new}),
        }
        for each, is_computed in changes
    ]


def as_line(change: Change, is_computed: bool) -> str:
    """Return a change in one line."""
    if change.old is MISSING:
        line = f"{change.where}: + {compact(change.new)}"
    elif change.new is MISSING:
        line = f"{change.where}: - {compact(change.old)}"
    else:
        line = f"{change.where}: {compact(change.old)} → {compact(change.new)}"
    return f"{line} (computed)" if is_computed else line


def write_head(out: Output, log: LogId, version: int, actual: int) -> None:
    """Write the log's ids and version."""
    of = f" of {actual:,}" if version != actual else ""
    out.line(f"{out.style.MIGRATE_HEADING(str(log))}  version {version:,}{of}")
    made = "" if log.created_at is None else f"id made {time_text(log.created_at)}, "
    out.line(f"{made}uuid {log.uuid}")


def write_timeline(
    out: Output, records: list[EventRecord], version: int, changed: Changes | None
) -> None:
    """Write each event; with ``changed``, its changes below it."""
    if not records:
        return
    earlier = records[0].index
    out.line()
    if earlier:
        out.line(f"… {earlier:,} earlier; --last {version} shows all", out.style.HTTP_INFO)
    EventLines(out, painted=2).write(
        (
            (
                f"{record.index:>{len(str(version - 1))}}",
                time_text(record.recorded_at, timespec="milliseconds"),
                record.type,
            ),
            compact(record.event) + ("" if actor is None else f"  by {actor}"),
            notes_of(out, record, rest, changed),
        )
        for record in records
        for actor, rest in [actor_of(record.metadata)]
    )


def notes_of(
    out: Output, record: EventRecord, metadata: Mapping[str, Any], changed: Changes | None
) -> list[Note]:
    """Return the lines below an event: its changes, its other metadata, its key."""
    notes: list[Note] = []
    if changed is not None:
        changes = changed.get(record.index)
        if changes:
            notes += [(as_line(*each), out.style.SUCCESS) for each in changes]
        else:
            unknown = "changes unknown" if changes is None else "changed nothing"
            notes.append((unknown, out.style.WARNING))
    if metadata:
        notes.append((f"metadata {compact(metadata)}", out.style.HTTP_NOT_MODIFIED))
    if record.idempotency_key is not None:
        notes.append((f"key {record.idempotency_key}", out.style.HTTP_NOT_MODIFIED))
    return notes


def write_state(
    out: Output,
    state: dict[str, Any] | None,
    computed: dict[str, Any] | None,
    why_not: str | None,
    version: int,
    actual: int,
) -> None:
    """Write the fields of the state and its properties, or the reason why there is none."""
    out.heading(f"State as of version {version:,}" if version != actual else "State")
    if state is None:
        out.line(why_not or "", out.style.WARNING)
        return
    out.table([(name, compact(value)) for name, value in state.items()], indent=2)
    if computed:
        out.heading("Computed from it")
        out.table([(name, compact(value)) for name, value in computed.items()], indent=2)
