"""
``check_aggregate``: a project's test of what eventlogs relies on in an aggregate.

The cache of reductions relies on equal replays, and every log on old stored data that decodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, Final, cast

from eventlogs.aggregates import Aggregate, fold
from eventlogs.caches.backends import NoReductionCache
from eventlogs.caches.entries import EntryCodec, Unstorable, why_not
from eventlogs.conf import max_event_bytes
from eventlogs.events.codec import EXACT_ENCODER, EXACT_JSON, EventReader, codec_for
from eventlogs.events.registry import EventType, registry
from eventlogs.exceptions import UndecodableEvent, UnknownEventType
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.testing import texts
from eventlogs.testing.appends import check_aggregate_class, encoded
from eventlogs.testing.memory import MemoryStore
from eventlogs.values import Reduction, StoredEvent

STRATEGIES: Final = "eventlogs.testing.strategies"
EXAMPLES: Final = 25  # events drawn for an event type; the last one is kept as stored data
HAPPENED: Final = datetime(2026, 1, 1, tzinfo=UTC)  # when stored data is said to be recorded

Data = tuple[str, int, Any]  # an event type's name, a schema version, a JSON value


def check_aggregate(
    aggregate: type[Aggregate],
    /,
    *histories: Sequence[Any],
    stored: str | PathLike[str] | Iterable[Data] = (),
    cached: bool = True,
    overrides: Mapping[type, Any] | None = None,
) -> None:
    """
    Check what eventlogs relies on in an aggregate; one line in a test is enough.

    ::

        def test_loans_are_sound():
            check_aggregate(Loan, stored=Path(__file__).with_name("loan.stored.jsonl"))

    **A full replay equals a cached state and the tail.** Histories are folded as a whole, and again
    in two parts, between which the state is encoded and decoded as in a cache. Both must give equal
    states, each time. ``histories`` are lists of events; without any, Hypothesis draws them, with
    ``overrides`` as in ``strategies.events_of``. An aggregate that cannot be cached fails; with
    ``cached=False`` it need not be.

    **Old stored data still decodes.** An upcaster is there for each older version of each event
    type, and each alias leads to the class. ``stored`` is what production may hold: triples of an
    event type's name, a schema version and a JSON value; or the path of a file with such lines, as
    ``manage.py eventlogs export`` writes them. Each must decode, and a field that is stored under
    the current version must be one that the class still has. If the file lacks an example of the
    current version of an event type, one is added, and the check fails once: read it, and commit
    it. So the file keeps an example of every version that there ever was.

    Raise AssertionError if a check fails, TypeError for anything but an aggregate class,
    InvalidEvent for an object that is not an event of it, and ImportError where Hypothesis is
    needed and is not installed.
    """
    __tracebackhide__ = True
    check_aggregate_class(aggregate)
    if cached and (reason := why_not(aggregate)) is not None:
        raise AssertionError(_uncached(aggregate, reason))
    _check_versions(aggregate)
    if isinstance(stored, str | PathLike):
        _check_file(aggregate, Path(stored), histories, overrides)
    else:
        for place, (name, version, data) in enumerate(stored, start=1):
            _check_stored(aggregate, name, version, data, f"stored data {place}")
    for history in histories:
        encoded(aggregate, history)
        for split in range(1, len(history) + 1):
            _check_parts(aggregate, history, split, cached=cached)
    if not histories:
        _check_drawn(aggregate, overrides, cached=cached)


def _check_drawn(
    aggregate: type[Aggregate], overrides: Mapping[type, Any] | None, *, cached: bool
) -> None:
    __tracebackhide__ = True
    hypothesis, strategies = _hypothesis()
    histories = strategies.histories_of(aggregate, overrides=overrides)

    def holds(data: Any) -> None:
        __tracebackhide__ = True
        history = data.draw(histories, label="history")
        split = data.draw(hypothesis.strategies.integers(1, len(history)), label="cached after")
        _check_parts(aggregate, history, split, cached=cached)

    # How long it takes depends on the machine.
    slow = [hypothesis.HealthCheck.too_slow]
    settings = hypothesis.settings(
        deadline=None, report_multiple_bugs=False, suppress_health_check=slow
    )
    settings(hypothesis.given(hypothesis.strategies.data())(holds))()


def _hypothesis() -> tuple[Any, Any]:
    if find_spec("hypothesis") is None:
        raise ImportError(
            'check_aggregate() draws histories with Hypothesis. Install "eventlogs[testing]", or '
            "pass histories: check_aggregate(Loan, [Granted(100), Repaid(30)])."
        )
    return import_module("hypothesis"), import_module(STRATEGIES)


def _check_parts(
    aggregate: type[Aggregate], history: Sequence[Any], split: int, *, cached: bool
) -> None:
    """Compare a full replay with one in two parts, between which the state is in a cache."""
    __tracebackhide__ = True
    store = MemoryStore()
    logs = LogManager(aggregate, store=store, cache=NoReductionCache(), refresh_on_append=False)
    log_id = logs.create(*history).log_id
    records = list(logs.stream(log_id))
    full = fold(aggregate.without_events(log_id), records)
    again = fold(aggregate.without_events(log_id), records)
    _compare(
        full, again, history, "Two replays of one history differ: apply() depends on more than"
    )
    first = fold(aggregate.without_events(log_id), records[:split])
    codec = _EntryCodec(aggregate, "memory")
    [last] = store.events(log_id, start=split - 1, limit=1)
    try:
        entry = codec.decode(codec.encode(first, last), log_id)
    except Unstorable as error:
        if not cached:
            return
        raise AssertionError(_uncached(aggregate, str(error), history[:split])) from None
    kept = entry.reduction(log_id)
    parts = fold(kept, records[split:])
    _compare(
        full,
        parts,
        history,
        f"A full replay differs from a state that was cached after {split} events and the rest: "
        f"apply() depends on more than",
    )


class _EntryCodec(EntryCodec[Any]):
    """Entries as in a cache, also of code that has no fingerprint, such as an interactive one."""

    @property
    def fingerprint(self) -> str:
        return "check_aggregate"


def _compare(one: Reduction[Any], other: Reduction[Any], history: Sequence[Any], what: str) -> None:
    __tracebackhide__ = True
    if _is_equal(one.aggregate, other.aggregate):
        return
    changes = texts.difference([one.aggregate], [other.aggregate], lambda here, there: False)
    raise AssertionError(
        f"{what} the state's fields and the record (- first, + second):\n\n{changes}\n\n"
        f"Of the history:\n\n{texts.indented(texts.history_of(list(history)))}\n"
    )


def _is_equal(one: Any, other: Any) -> bool:
    if cast("Any", type(one)).__eq__ is object.__eq__:
        return bool(vars(one) == vars(other))
    return bool(one == other)


def _uncached(aggregate: type, reason: str, history: Sequence[Any] = ()) -> str:
    after = f"\n\nAfter:\n\n{texts.indented(texts.history_of(list(history)))}\n" if history else ""
    return (
        f"The state of {aggregate.__qualname__} cannot be cached: {reason}. Each reduction replays "
        f"the whole log. If that is as it should be, pass cached=False.{after}"
    )


# Old stored data


def _check_versions(aggregate: type[Aggregate]) -> None:
    __tracebackhide__ = True
    for event_type in aggregate.event_types:
        for version in range(1, event_type.version):
            if registry.upcaster(event_type.names, version) is None:
                raise AssertionError(
                    f"{event_type.cls.__qualname__} is of version {event_type.version}, and no "
                    f"upcaster takes {event_type.name!r} from version {version}. Stored events of "
                    f"that version cannot be read. Add @upcaster({event_type.name!r}, "
                    f"from_version={version})."
                )
        for name in event_type.names:
            if registry.by_name(name) is not event_type:
                raise AssertionError(
                    f"Another class than {event_type.cls.__qualname__} is registered for {name!r}."
                )


def _check_file(
    aggregate: type[Aggregate],
    path: Path,
    histories: Iterable[Sequence[Any]],
    overrides: Mapping[type, Any] | None,
) -> None:
    __tracebackhide__ = True
    there: set[tuple[str, int]] = set()
    for number, name, version, data in _lines_of(path):
        _check_stored(aggregate, name, version, data, f"{path}, line {number}")
        there.add((name, version))
    missing = [each for each in aggregate.event_types if (each.name, each.version) not in there]
    if not missing:
        return
    added = [_example(aggregate, each, histories, overrides) for each in missing]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in added)
    names = ", ".join(f"{each.name} version {each.version}" for each in missing)
    raise AssertionError(
        f"{path} had no example of {names}. One of each was added: read them, commit the file, and "
        f"run the test again."
    )


def _lines_of(path: Path) -> Iterator[tuple[int, str, int, Any]]:
    if not path.exists():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            value = EXACT_JSON.decode(line) if line.strip() else {}
            if "data" in value:  # not the first or last line of an export
                yield number, value["type"], value["schema_version"], value["data"]
        except (ValueError, KeyError, TypeError):  # msgspec's errors are ValueErrors
            raise AssertionError(
                f"{path}, line {number} cannot be read. It must be JSON with the keys type, "
                f"schema_version and data."
            ) from None


def _check_stored(
    aggregate: type[Aggregate], name: str, version: int, data: Any, place: str
) -> None:
    """Raise AssertionError where stored data does not decode, or decodes without a field."""
    __tracebackhide__ = True
    log_id = LogId.new(aggregate.log_type)
    text = EXACT_ENCODER.encode(data).decode()
    stored = StoredEvent(log_id, 0, 1, name, version, text, "{}", None, HAPPENED)
    reader = EventReader(aggregate.event_types)
    try:
        [record] = reader.records([stored])
    except (UnknownEventType, UndecodableEvent) as error:
        raise AssertionError(
            f"{place}: {name} version {version} does not decode any more. {error}\n\n    {text}\n"
        ) from error
    event_type = registry.by_class(type(record.event))
    if event_type is None or version != event_type.version:
        return  # retired; or an upcaster decides what becomes of each field
    kept = codec_for(event_type).encode(record.event, max_event_bytes()).data
    if lost := list(_lost(EXACT_JSON.decode(text), EXACT_JSON.decode(kept))):
        raise AssertionError(
            f"{place}: {name} version {version} is stored with {', '.join(lost)}, and "
            f"{event_type.cls.__qualname__} has no such field any more: the value is lost when the "
            f"event is read. Give the class version={version + 1}, and an upcaster from version "
            f"{version}.\n\n    {text}\n"
        )


def _lost(data: Any, kept: Any, path: str = "$") -> Iterator[str]:
    """Yield the JSON paths of keys that are stored, and that the decoded event does not have."""
    if isinstance(data, dict) and isinstance(kept, dict):
        for key, value in data.items():
            if key in kept:
                yield from _lost(value, kept[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(data, list) and isinstance(kept, list):
        for at, (value, other) in enumerate(zip(data, kept, strict=False)):
            yield from _lost(value, other, f"{path}[{at}]")


def _example(
    aggregate: type[Aggregate],
    event_type: EventType,
    histories: Iterable[Sequence[Any]],
    overrides: Mapping[type, Any] | None,
) -> str:
    """Return a line with an example of the current version of an event type."""
    given = [event for history in histories for event in history if type(event) is event_type.cls]
    event = given[0] if given else _drawn(event_type.cls, overrides)
    [made] = encoded(aggregate, [event])
    return f'{{"type":"{made.type}","schema_version":{made.schema_version},"data":{made.data}}}'


def _drawn(cls: type, overrides: Mapping[type, Any] | None) -> Any:
    hypothesis, strategies = _hypothesis()
    own = overrides or {}
    strategy = own[cls] if cls in own else strategies.event_of(cls)
    found: list[Any] = []

    def keep(event: Any) -> None:
        found.append(event)

    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    settings(hypothesis.given(strategy)(keep))()
    return found[-1]
