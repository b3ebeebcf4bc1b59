"""``eventlogs export-subject``: write the personal data of one person as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from eventlogs.management.json_values import plain
from eventlogs.management.mistakes import mistake
from eventlogs.management.output import Output
from eventlogs.operations.subject_exports import export_subject
from eventlogs.utils.words import counted

HELP = "Write the personal data of a person as JSON lines, an event each (right of access)."


def add_arguments(parser: CommandParser) -> None:
    """Add the subject and the file."""
    parser.add_argument(
        "subject",
        metavar="SUBJECT",
        help='The subject as Personal(subject=…, prefix=…) makes it, e.g. "member:42".',
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="Write to this new file, which only you can read. By default, the standard output.",
    )


def run(out: Output, *, using: str, subject: str, output: Path | None, **options: Any) -> None:
    """Write the lines."""
    events = export_subject(subject)
    if output is None:
        for each in events:
            out.record(each)
        return
    count = 0
    try:
        # Not readable by others, and never over a file that is there.
        output.touch(mode=0o600, exist_ok=False)
        with output.open("w", encoding="utf-8") as file:
            for each in events:
                line = json.dumps(each, default=plain, ensure_ascii=False)
                file.write(f"{line}\n")
                count += 1
    except OSError as error:
        raise mistake(f"{output} cannot be written: {error.strerror or error}") from error
    out.note(f"{counted(count, 'event')} written to {output}.")
