"""events.lock.json: what has changed since it was reviewed, and whether old data decodes."""

from __future__ import annotations

import json
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import pytest

from eventlogs import InvalidLock, event, retired_event, upcaster
from eventlogs.events.registry import EventType, registry
from eventlogs.operations.event_locks.locks import (
    BREAKS,
    COMPATIBLE,
    UPCASTER,
    Change,
    Lock,
    compare,
    events_by_app,
    path_of,
)

pytestmark = pytest.mark.usefixtures("scratch_registry")

NAME = "order.placed"
PATH = Path("/nowhere/events.lock.json")


def declare(name: str = NAME, *, version: int = 1, aliases=(), **fields: Any) -> EventType:
    specs = [
        (each, kind[0], field(default=kind[1])) if isinstance(kind, tuple) else (each, kind)
        for each, kind in fields.items()
    ]
    made: type = make_dataclass("Placed", specs)
    cls: type = event(name, version=version, aliases=aliases)(made)
    found = registry.by_class(cls)
    assert found is not None
    return found


def lock_of(**fields: Any) -> Lock:
    """Return the lock of an event class; the next one takes its place."""
    _, lock = compare(Lock(PATH), [declare(**fields)])
    return Lock(PATH, **{name: json.loads(lock.text)[name] for name in ("events", "retired")})


def change(lock: Lock, *event_types: EventType) -> tuple[Change, Lock]:
    [found], new = compare(lock, event_types)
    return found, new


def test_a_new_event_is_written_and_then_nothing_has_changed():
    event_type = declare(total=int)

    found, new = change(Lock(PATH), event_type)

    assert (found.name, found.verdict) == (NAME, COMPATIBLE)
    assert new.events[NAME]["version"] == 1
    assert compare(new, [event_type])[0] == []
    assert compare(new, [event_type])[1].text == new.text


def test_a_field_with_a_default_is_compatible_and_is_noted():
    lock = lock_of(total=int)

    found, new = change(lock, declare(total=int, currency=(str, "EUR")))

    assert found.verdict == COMPATIBLE
    assert new.events[NAME]["added"] == ["currency"]


def test_another_default_of_a_field_that_came_later_needs_an_upcaster():
    _, lock = change(lock_of(total=int), declare(total=int, currency=(str, "EUR")))
    found, new = change(lock, declare(total=int, currency=(str, "USD")))

    assert found.verdict == UPCASTER
    assert new.events == lock.events

    # One that each stored event has is only a word.
    found, _ = change(lock_of(total=int, note=(str, "")), declare(total=int, note=(str, "-")))
    assert found.verdict == COMPATIBLE


@pytest.mark.parametrize(
    "fields",
    [
        {"total": str},
        {"total": int, "currency": str},
        {"amount": int},
        {"amount": (int, 0)},  # old data would decode, as 0
    ],
)
def test_a_changed_shape_needs_a_version_and_an_upcaster(fields):
    lock = lock_of(total=int)

    found, new = change(lock, declare(**fields))
    assert (found.verdict, found.from_version) == (UPCASTER, 1)
    assert "version=2" in found.lines[-1]
    assert new.text == lock.text

    found, new = change(lock, declare(version=2, **fields))
    assert (found.verdict, found.from_version) == (UPCASTER, 1)

    upcaster(NAME, from_version=1)(lambda data: data)
    found, new = change(lock, declare(version=2, **fields))
    assert found.verdict == COMPATIBLE
    assert sorted(new.events[NAME]["shapes"]) == ["1", "2"]


def test_a_name_that_vanished_breaks_unless_it_is_an_alias_or_retired():
    lock = lock_of(total=int)
    registry._by_name.clear()

    found, new = change(lock)
    assert (found.verdict, new.events) == (BREAKS, lock.events)
    assert "aliases" in found.lines[-1]

    found, new = change(lock, declare("order.made", aliases=[NAME], total=int))
    assert found.verdict == COMPATIBLE
    assert list(new.events) == ["order.made"]

    registry._by_name.clear()
    retired_event(NAME)
    found, new = change(lock)
    assert found.verdict == COMPATIBLE
    assert (new.events, new.retired) == ({}, [NAME])


def test_a_renamed_event_is_compared_too():
    lock = lock_of(total=int)
    registry._by_name.clear()

    found, new = change(lock, declare("order.made", aliases=[NAME], total=str))

    assert found.verdict == UPCASTER
    assert new.events == lock.events


def test_a_version_that_went_back_breaks():
    upcaster(NAME, from_version=1)(lambda data: data)
    lock = lock_of(version=2, total=int)

    found, _ = change(lock, declare(version=1, total=int))

    assert found.verdict == BREAKS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": 2, "events": {}, "retired": []}',
        '{"format": 1, "events": {"x": {"version": 1, "shapes": {}}}, "retired": []}',
        '{"format": 1, "events": []}',
    ],
)
def test_a_file_that_is_no_lock_is_refused(tmp_path, text):
    path = tmp_path / "events.lock.json"
    path.write_text(text)

    with pytest.raises(InvalidLock, match=str(path)):
        Lock.read(path)


def test_a_lock_is_read_as_it_was_written(tmp_path):
    lock = lock_of(total=int, lines=list[str])
    path = tmp_path / "events.lock.json"
    path.write_text(lock.text)

    assert Lock.read(path).events == lock.events
    assert Lock.read(path).text == lock.text
    assert Lock.read(tmp_path / "none.json").events == {}


def test_each_event_belongs_to_the_app_of_its_module():
    found = events_by_app()

    by_label = {app.label: {each.name for each in types} for app, types in found.items()}
    assert "payment.captured" in by_label["payments"]
    assert "auth" not in by_label
    assert path_of(next(iter(events_by_app(["payments"])))).name == "events.lock.json"
    with pytest.raises(LookupError):
        events_by_app(["nothing"])
