"""
``manage.py makeevents``: keep the reviewed files of event schemas, and find changes that break.

    0    done, or with --check: nothing has changed
    1    a change needs an upcaster, or breaks; or with --check: a file is out of date
    2    not done: an app that does not exist, a file that cannot be read
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand
from django.utils.module_loading import autodiscover_modules

from eventlogs.exceptions import EventLogError
from eventlogs.management.mistakes import findings, mistake
from eventlogs.operations.event_locks.drafts import draft
from eventlogs.operations.event_locks.locks import (
    COMPATIBLE,
    UPCASTER,
    Change,
    Lock,
    compare,
    events_by_app,
    path_of,
    verdicts,
)
from eventlogs.utils.words import counted


class Command(BaseCommand):
    """Compare the event classes with the reviewed files, and write these."""

    help = (
        "Write the schemas of each app's events to events.lock.json, and say whether stored data "
        "still decodes."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the apps, and what to do."""
        parser.add_argument("apps", nargs="*", metavar="APP", help="Only these apps, by label.")
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--check",
            action="store_true",
            help="Write nothing; exit with 1 if a file is out of date or stored data would not "
            "decode. For CI.",
        )
        how.add_argument(
            "--write",
            action="store_true",
            help="Draft the missing upcasters, and raise the versions of their events.",
        )
        parser.add_argument("--json", action="store_true", help="Write JSON, for programs.")

    def handle(self, *args: Any, apps: list[str], check: bool, write: bool, **options: Any) -> None:
        """Compare all apps."""
        for name in ("events", "aggregates"):
            autodiscover_modules(name)
        try:
            found = events_by_app(apps)
        except LookupError as error:
            raise mistake(str(error)) from error
        told, problems, stale = [], 0, 0
        for app, event_types in found.items():
            try:
                lock = Lock.read(path_of(app))
                changes, new = compare(lock, event_types)
                drafted = self._draft(changes, lock) if write else {}
                if new.text != lock.text and not check:
                    new.path.write_text(new.text, encoding="utf-8")
            except EventLogError as error:
                raise mistake(str(error)) from error
            except (OSError, ValueError) as error:
                raise mistake(f"{app.label}: {error}") from error
            stale += new.text != lock.text
            for change in verdicts(changes):
                path = drafted.get(change.name)
                problems += change.verdict != COMPATIBLE and path is None
                told.append((app.label, change, path))
        self._tell(told, as_json=options["json"])
        if problems:
            raise findings(
                f"Stored events of {counted(problems, 'type')} would not be decoded, or not as "
                f"they were meant."
            )
        if check and stale:
            raise findings(
                f"{counted(stale, 'lock file is', 'lock files are')} out of date. Run: manage.py "
                f"makeevents, review the files and commit them."
            )

    def _draft(self, changes: list[Change], lock: Lock) -> dict[str, Path]:
        drafted = {}
        for change in changes:
            if change.verdict == UPCASTER:
                entry = lock.events[change.name]
                drafted[change.name] = draft(change, entry["shapes"][str(entry["version"])]).path
        return drafted

    def _tell(self, told: list[tuple[str, Change, Path | None]], *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(
                json.dumps(
                    [
                        {
                            "app": app,
                            "event": change.name,
                            "verdict": change.verdict,
                            "changes": list(change.lines),
                            "drafted": None if path is None else str(path),
                        }
                        for app, change, path in told
                    ],
                    indent=2,
                )
            )
            return
        if not told:
            self.stdout.write("No event has changed.")
        for app, change, path in told:
            paint = self.style.SUCCESS if change.verdict == COMPATIBLE else self.style.ERROR
            self.stdout.write(f"{app}: {change.name}: {paint(change.verdict)}")
            for line in change.lines:
                self.stdout.write(f"    {line}")
            if path is not None:
                self.stdout.write(f"    drafted in {path}: complete it, then run makeevents again")
