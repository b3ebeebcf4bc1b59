"""
The timeline of a log: the state after each event, and what each event changed.

Pure functions: they get stored events and the reduction to start from, and read nothing. They
keep all of that in memory, so a caller goes through a long log a page at a time.

States are shown as *plain values* of JSON, made of an aggregate's fields (and, if asked for,
its properties). They are for reading, not for storing: a Decimal or a datetime is its text,
and a value that is too deep or too large ends in an ellipsis.

A log must be readable also where the code of today cannot fold it. Where an event has no class
here, its data does not fit, or ``apply`` raises, the raw events are still there, and from that
event on the state is ``Unavailable``, with the class of the error and no payload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

import msgspec

from eventlogs.aggregates import Aggregate, fold
from eventlogs.conf import MAX_DEPTH
from eventlogs.events.codec import JSON, EventReader
from eventlogs.exceptions import EventLogError
from eventlogs.ids import LogId
from eventlogs.values import EventRecord, Reduction, StoredEvent

MAX_VALUES: Final = 5_000  # in one plain value
MAX_SUMMARY: Final = 120  # characters
ELLIPSIS: Final = "…"

Path = tuple[str | int, ...]


class Missing(Enum):
    """The type of ``MISSING``."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING
"""In a Change: there was no such value before, or there is none after."""


class Change(NamedTuple):
    """
    One value that an event changed.

    ``path`` are the names and indexes that lead to it; ``old`` and ``new`` are plain values, or
    MISSING where the value was added or removed.
    """

    path: Path
    old: Any
    new: Any

    @property
    def where(self) -> str:
        """The path as text: ``lines[2].amount``."""
        return path_text(self.path)


class Unavailable(msgspec.Struct, frozen=True):
    """
    Why there is no state.

    ``reason`` is the name of an error's class, ``index`` that of the event at which it was
    raised, or None where that is not known. Neither shows what is in an event.
    """

    reason: str
    index: int | None = None

    @classmethod
    def of(cls, error: Exception, *, index: int | None = None) -> Unavailable:
        """Return the reason of an error of reducing; prefer the error's own ``index``."""
        own = getattr(error, "index", None)
        return cls(type(error).__name__, own if isinstance(own, int) else index)


class Step(msgspec.Struct, frozen=True):
    """
    One event of a log, and what it did.

    ``record`` is the event as it is stored (``record.event`` is its raw JSON), ``event`` the
    instance that code of today reads, or None where there is none. ``state`` is the plain value
    after the event, or Unavailable; ``changes`` is what it changed, None where the state
    before or after is unavailable.
    """

    record: EventRecord
    event: Any
    state: Any
    changes: tuple[Change, ...] | None

    @property
    def version(self) -> int:
        """The version that the log had with this event."""
        return self.record.index + 1


def steps(
    start: Reduction[Any] | Unavailable,
    rows: Iterable[StoredEvent],
    *,
    properties: bool = False,
) -> Iterator[Step]:
    """
    Yield a Step for each of ``rows``, consecutive events of one log, in order.

    ``start`` is the reduction as of the version where the rows begin
    (``Payment.without_events(log_id)`` for a log's first events); its aggregate is changed in
    place. Given Unavailable instead, or from a row on that cannot be folded, the steps have no
    state. With ``properties``, states hold the aggregate's properties as well.

    An exception of the project's own classes is not raised.
    """
    reduction = start
    reader = _reader(start)
    before: Any = None
    if isinstance(start, Reduction):
        before = plain_value(start.aggregate, properties=properties)
    # Of a page, the keys of personal data are looked up once; a stream is read one by one.
    page = rows if isinstance(rows, Sequence) else ()
    raws, decoded = _raw(reader, page), _all_decoded(reader, page)
    for at, stored in enumerate(rows):
        raw = raws[at] if raws else _raw(reader, [stored])[0]
        event = None
        changes = None
        try:
            record = decoded[at] if decoded else next(reader.records([stored]))
            event = record.event
            if isinstance(reduction, Reduction):
                reduction = fold(reduction, [record])
        except Exception as error:  # the project's own: a class, an upcaster, apply()
            if isinstance(reduction, Reduction):
                reduction = Unavailable.of(error, index=raw.index)
        if isinstance(reduction, Reduction):
            after = plain_value(reduction.aggregate, properties=properties)
            changes = tuple(diff(before, after))
            before = after
        yield Step(raw, event, before if isinstance(reduction, Reduction) else reduction, changes)


def _raw(reader: EventReader, rows: Sequence[StoredEvent]) -> list[EventRecord]:
    """Return events as raw records; as they are stored, if their personal data cannot be read."""
    try:
        return list(reader.records(rows, decode=False))
    except EventLogError:
        return [_as_stored(each) for each in rows]


def _as_stored(stored: StoredEvent) -> EventRecord:
    return EventRecord(
        stored.log_id,
        stored.index,
        stored.position,
        stored.type,
        stored.schema_version,
        JSON.decode(stored.data),
        JSON.decode(stored.metadata),
        stored.idempotency_key,
        stored.recorded_at,
    )


def _all_decoded(reader: EventReader, rows: Sequence[StoredEvent]) -> list[EventRecord]:
    """Return decoded records, or none if one of them cannot be decoded."""
    try:
        return list(reader.records(rows))
    except Exception:  # the project's own: a class, an upcaster
        return []


def replay(start: Reduction[Any], rows: Iterable[StoredEvent]) -> Reduction[Any] | Unavailable:
    """
    Fold ``rows`` onto ``start``; return the state as of the last row.

    ``start.aggregate`` is mutated in place. ``rows`` may be a stream: none is kept. Where one
    cannot be folded, return Unavailable.
    """
    at = start.version

    def passing() -> Iterator[StoredEvent]:
        nonlocal at
        for each in rows:
            at = each.index
            yield each

    try:
        return fold(start, _reader(start).records(passing()))
    except Exception as error:  # the project's own: a class, an upcaster, apply()
        return Unavailable.of(error, index=at)


def beginning(aggregate: type[Aggregate], log_id: LogId) -> Reduction[Any] | Unavailable:
    """Return the reduction of a log without events, or why its class cannot be made."""
    try:
        return aggregate.without_events(log_id)
    except Exception as error:
        return Unavailable.of(error)


def _reader(start: Reduction[Any] | Unavailable) -> EventReader:
    if isinstance(start, Reduction):
        return EventReader(type(start.aggregate).event_types)
    return EventReader()


# Plain values


def plain_value(value: Any, *, properties: bool = False) -> Any:
    """
    Return a value as plain JSON: dicts with str keys, lists, str, int, float, bool and None.

    Dataclasses, msgspec structs and other objects become dicts of their public attributes,
    sets sorted lists, anything else its text. At most 5,000 values are shown, and 64 levels;
    an ellipsis stands for the rest. ``properties`` adds those of the outermost object.
    """
    return _PlainValues().of(value, 0, properties)


class _PlainValues:
    def __init__(self) -> None:
        self._left = MAX_VALUES

    def of(self, value: Any, depth: int, properties: bool = False) -> Any:
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            return ELLIPSIS
        if value is None or type(value) in (str, int, bool):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else str(value)
        if isinstance(value, Enum):
            return self.of(value.value, depth + 1)
        if isinstance(value, Mapping):
            return self._dict(((_text(key), each) for key, each in value.items()), depth)
        if isinstance(value, Set):
            parts = [self.of(each, depth + 1) for each in self._some(value)]
            return sorted(parts, key=lambda part: (str(type(part)), str(part)))
        if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
            return [self.of(each, depth + 1) for each in self._some(value)]
        attributes = attributes_of(value)
        if attributes is None:
            return _text(value)
        found = self._dict(attributes, depth)
        if properties:
            found.update(self._dict(properties_of(value), depth))
        return found

    def _dict(self, pairs: Iterable[tuple[str, Any]], depth: int) -> dict[str, Any]:
        return {name: self.of(each, depth + 1) for name, each in self._some(pairs)}

    def _some(self, values: Iterable[Any]) -> Iterator[Any]:
        for each in values:
            yield each
            if self._left <= 0:
                return


def attributes_of(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Yield the public attributes of an object; return None for one that is shown as text."""
    if is_dataclass(value) and not isinstance(value, type):
        names: Iterable[str] = [field.name for field in fields(value)]
    elif isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif isinstance(value, Aggregate) or _has_no_text(value):
        names = list(getattr(value, "__dict__", ()))
    else:
        return None
    # A name may be missing: a slot, or a field without init, that nobody has set yet.
    return (
        (name, getattr(value, name))
        for name in names
        if not name.startswith("_") and hasattr(value, name)
    )


def _has_no_text(value: Any) -> bool:
    cls: Any = type(value)
    return cls.__str__ is object.__str__ and cls.__repr__ is object.__repr__


def properties_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the public properties of an object and their values; of one that raises, its error."""
    for name in property_names(type(value)):
        try:
            yield name, getattr(value, name)
        except Exception as error:  # the project's own code
            yield name, f"<{type(error).__name__}>"


def property_names(cls: type) -> list[str]:
    """Return the names of the public properties of a class, those of its bases first."""
    return list(
        {
            name: None
            for each in reversed(cls.__mro__)
            for name, member in vars(each).items()
            if isinstance(member, property) and not name.startswith("_")
        }
    )


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # the project's own code
        return f"<{type(value).__name__}>"


def summarize(aggregate: Aggregate) -> str:
    """Return ``aggregate.summary()`` in one line of at most 120 characters, whatever it does."""
    try:
        # A field of the project's may have taken the name.
        text = str(aggregate.summary() if callable(aggregate.summary) else aggregate.summary)
    except Exception as error:
        return f"<{type(error).__name__}>"
    line = " ".join(text.split())
    return line if len(line) <= MAX_SUMMARY else line[: MAX_SUMMARY - 1] + ELLIPSIS


# Differences


def diff(old: Any, new: Any) -> Iterator[Change]:
    """
    Yield what differs between two plain values, outermost first, in the order of their names.

    In lists, what is equal at both ends stays; between, values are compared one by one, so a
    value put in or taken out of a list is one change. 1, 1.0 and True differ here.
    """
    yield from _diff((), old, new)


def _diff(path: Path, old: Any, new: Any) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(name for name in old if name not in new)]:
            yield from _diff((*path, name), old.get(name, MISSING), new.get(name, MISSING))
    elif isinstance(old, list) and isinstance(new, list):
        yield from _diff_lists(path, old, new)
    elif not _same(old, new):
        yield Change(path, old, new)


def _diff_lists(path: Path, old: list[Any], new: list[Any]) -> Iterator[Change]:
    shorter = min(len(old), len(new))
    first = 0
    while first < shorter and _same(old[first], new[first]):
        first += 1
    last = 0
    while last < shorter - first and _same(old[-1 - last], new[-1 - last]):
        last += 1
    gone, came = old[first : len(old) - last], new[first : len(new) - last]
    for at in range(max(len(gone), len(came))):
        one = gone[at] if at < len(gone) else MISSING
        other = came[at] if at < len(came) else MISSING
        yield from _diff((*path, first + at), one, other)


def _same(old: Any, new: Any) -> bool:
    if type(old) is not type(new):
        return False
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_same(old[name], new[name]) for name in old)
    if isinstance(old, list):
        return len(old) == len(new) and all(map(_same, old, new))
    return bool(old == new)


def path_text(path: Path, *, show: Callable[[str], str] = str) -> str:
    """
    Return a path as people write it: ``lines[2].amount``, ``rates["EUR/USD"]``.

    ``show`` marks each name up, for HTML.
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier():
            text += f".{show(part)}" if text else show(part)
        else:
            text += "[" + show(f'"{part}"') + "]"
    return text
