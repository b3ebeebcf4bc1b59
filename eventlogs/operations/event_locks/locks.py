"""
``events.lock.json``: the shapes of an app's events, as they were reviewed and released.

It stands beside the app's ``events.py`` and is committed with it. It has the shape of each version
of each event type, so a change of an event class is seen in a review, and compared here with what
stored data looks like. There are three verdicts:

COMPATIBLE: old data decodes, and means what it meant.
UPCASTER: old data needs an upcaster to the new shape: its version must be raised, or the upcaster
of a raised version is missing.
BREAKS: old data cannot be decoded by any upcaster: its name has vanished, or its version is newer
than the class.

A field that is removed while another one with a default is added has probably been renamed. Old
data would decode, with the default in place of its value: that needs an upcaster, too. So does a
changed default of a field that was added without a new version: events from before do not have it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from django.apps import AppConfig, apps

from eventlogs.events.registry import EventType, registry
from eventlogs.events.schemas import (
    FITS,
    NOT,
    Difference,
    differences,
    fields_of,
    json_of,
    shape_of,
)
from eventlogs.exceptions import InvalidLock

FILE: Final = "events.lock.json"
FORMAT: Final = 1

COMPATIBLE: Final = "compatible"
UPCASTER: Final = "needs an upcaster"
BREAKS: Final = "breaks"

PACKAGES: Final = ("site-packages", "dist-packages")  # folders of installed distributions


@dataclass(frozen=True, slots=True)
class Change:
    """
    One event type that differs from the lock file.

    ``lines`` say what is different and, where old data does not decode, what to do.
    ``differences`` are those of the shapes; ``from_version`` is the version of old data that needs
    an upcaster.
    """

    name: str
    verdict: str
    lines: tuple[str, ...]
    event_type: EventType | None = None
    differences: tuple[Difference, ...] = ()
    from_version: int | None = None


@dataclass(frozen=True, slots=True)
class Lock:
    """The contents of one file: by event types, and the names of retired ones."""

    path: Path
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    retired: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Return a file's contents, or an empty lock where there is none; raise InvalidLock."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls(path)
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise InvalidLock(path, reason=f"its format is {found['format']!r}, not {FORMAT}")
            events = {name: dict(each) for name, each in found["events"].items()}
            for each in events.values():
                each["version"] + 0, each["shapes"][str(each["version"])]["$ref"]
            return cls(path, events, list(found["retired"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidLock(path, reason="it is not a file of makeevents") from None

    @property
    def text(self) -> str:
        """The file's text."""
        return json_of(
            {
                "format": FORMAT,
                "events": {name: _ordered(each) for name, each in sorted(self.events.items())},
                "retired": sorted(self.retired),
            }
        )


def _ordered(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = ("version", "aliases", "added", "shapes")
    found = {
        name: entry[name] for name in names if entry.get(name) or name in ("version", "shapes")
    }
    found["shapes"] = dict(sorted(found["shapes"].items(), key=lambda each: int(each[0])))
    return found


def path_of(app: AppConfig) -> Path:
    """Return the path of an app's lock file."""
    return Path(app.path) / FILE


def events_by_app(labels: Iterable[str] = ()) -> dict[AppConfig, list[EventType]]:
    """
    Return the event types of the project's apps, and the apps that have a lock file.

    Apps of installed distributions are left out, unless they are named. Raise LookupError for a
    label that no app has.
    """
    wanted = {apps.get_app_config(label) for label in labels}
    found: dict[AppConfig, list[EventType]] = {
        app: []
        for app in apps.get_app_configs()
        if (app in wanted if wanted else _is_own(app) and path_of(app).exists())
    }
    for event_type in registry:
        app = apps.get_containing_app_config(event_type.cls.__module__)
        if app is not None and (app in wanted if wanted else _is_own(app)):
            found.setdefault(app, []).append(event_type)
    return found


def _is_own(app: AppConfig) -> bool:
    # The contract suites for stores and refreshers, in this package, declare events of their own.
    return app.name != "eventlogs" and not any(each in Path(app.path).parts for each in PACKAGES)


def compare(lock: Lock, event_types: Iterable[EventType]) -> tuple[list[Change], Lock]:
    """
    Return what has changed since a lock was written, and the lock with all compatible changes.

    Event types with another verdict are in the new lock as they were in the old one.
    """
    new = Lock(lock.path, {}, list(lock.retired))
    changes: list[Change] = []
    left = {each.name: each for each in event_types}
    for name, entry in lock.events.items():
        event_type = registry.by_name(name)
        if event_type is None:
            changes.append(_without_class(name, entry, new))
            continue
        left.pop(event_type.name, None)
        change, kept = _compared(name, entry, event_type)
        if change is not None:
            changes.append(change)
        is_accepted = change is None or change.verdict == COMPATIBLE
        into = event_type.name if is_accepted else name
        if into in new.events:  # two names have become one type
            kept = _merged(new.events[into], kept)
        new.events[into] = kept
    for name, event_type in left.items():
        new.events[name] = _entry(event_type)
        changes.append(Change(name, COMPATIBLE, ("it is new",), event_type))
    return changes, new


def _without_class(name: str, entry: dict[str, Any], new: Lock) -> Change:
    if registry.is_retired(name):
        new.retired.append(name)
        return Change(name, COMPATIBLE, ("it is retired: events of it are passed over",))
    new.events[name] = entry
    return Change(
        name,
        BREAKS,
        (
            "no class has this name, and stored events of it cannot be decoded",
            f"restore the class; or name it in the aliases of the class that replaced it: "
            f'aliases=["{name}"]; or, if it was deleted permanently: retired_event("{name}")',
        ),
    )


def _compared(
    name: str, entry: dict[str, Any], event_type: EventType
) -> tuple[Change | None, dict[str, Any]]:
    """Return what has changed of one type, and its new entry."""
    was, now = entry["version"], event_type.version
    shape = shape_of(event_type)
    lines = [f"it is named {event_type.name} now"] if event_type.name != name else []
    if now < was:
        text = f"version {was} was stored, and the class is of version {now}"
        what = f"go back to version={was}, or raise it to {was + 1} with an upcaster"
        return Change(name, BREAKS, (*lines, text, what), event_type), entry
    found = tuple(differences(entry["shapes"][str(was)], shape))
    if now == was:
        verdict = _verdict(found, entry, shape)
        lines += [f"{each.path}: {each.text}" for each in found]
        if verdict == UPCASTER:
            lines += _why(found)
            lines.append(
                f"raise it to version={now + 1}, and write "
                f"@upcaster({event_type.name!r}, from_version={now}); makeevents --write drafts it"
            )
            return Change(name, UPCASTER, tuple(lines), event_type, found, now), entry
    else:
        lines.append(f"version {now}, after {was}")
        missing = [
            version
            for version in range(was, now)
            if registry.upcaster(event_type.names, version) is None
        ]
        if missing:
            lines += [f"{each.path}: {each.text}" for each in found]
            lines.append(
                f"write @upcaster({event_type.name!r}, from_version={missing[0]}); makeevents "
                f"--write drafts it"
            )
            return Change(name, UPCASTER, tuple(lines), event_type, found, missing[0]), entry
    kept = _entry(event_type, entry, found if now == was else ())
    if kept == entry and event_type.name == name:
        return None, entry
    return Change(name, COMPATIBLE, tuple(lines or ["its aliases"]), event_type, found), kept


def _verdict(
    found: Sequence[Difference], entry: Mapping[str, Any], shape: Mapping[str, Any]
) -> str:
    added = set(entry.get("added", ()))
    if (
        any(each.kind == NOT for each in found)
        or renamed(found, entry["shapes"][str(entry["version"])], shape)
        or any(each.what == "default" and each.field in added for each in found)
    ):
        return UPCASTER
    return COMPATIBLE


def _why(found: Sequence[Difference]) -> list[str]:
    if all(each.kind == FITS for each in found):
        return ["old data would decode, with a default in place of what it says"]
    return []


def renamed(
    found: Sequence[Difference], old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return the pairs of a removed and an added field of one type, which may be a rename."""
    removed = [each.field for each in found if each.what == "removed" and each.field]
    added = [each.field for each in found if each.what == "added" and each.field]
    was, now = fields_of(old), fields_of(new)
    pairs: list[tuple[str, str]] = []
    for name in removed:
        for other in added:
            same = {**was[name], "default": 0} == {**now[other], "default": 0}
            if same and other not in [taken for _, taken in pairs]:
                pairs.append((name, other))
                break
    return pairs


def _entry(
    event_type: EventType,
    before: Mapping[str, Any] | None = None,
    found: Iterable[Difference] = (),
) -> dict[str, Any]:
    before = before or {}
    same = before.get("version") == event_type.version
    added = {*before.get("added", ())} if same else set()
    added |= {each.field for each in found if each.what == "added" and each.field}
    entry: dict[str, Any] = {
        "version": event_type.version,
        "shapes": {**before.get("shapes", {}), str(event_type.version): shape_of(event_type)},
    }
    if event_type.aliases:
        entry["aliases"] = sorted(event_type.aliases)
    if added:
        entry["added"] = sorted(added)
    return entry


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**other, **one, "shapes": {**other["shapes"], **one["shapes"]}}


def verdicts(changes: Iterable[Change]) -> Iterator[Change]:
    """Yield the changes, the worst first."""
    order = (BREAKS, UPCASTER, COMPATIBLE)
    yield from sorted(changes, key=lambda each: (order.index(each.verdict), each.name))
