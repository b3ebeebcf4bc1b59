"""The files of eventlogs that a call passes through, and those that a document lists."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import eventlogs

ROOT = Path(eventlogs.__file__).parent
DOCS = ROOT.parent / "docs"


def walked(call: Callable[[], Any]) -> list[str]:
    """Return the files whose functions run in this thread during a call, each once, in order."""
    seen: dict[str, None] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            seen[path.relative_to(ROOT).as_posix()] = None

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(seen)


def listed(document: str, phrase: str) -> list[str]:
    """Return the files in the first code block after a phrase of a document, in order."""
    block = (DOCS / document).read_text().partition(phrase)[2].split("```")[1]
    return re.findall(r"^[ └├│]*([a-z_/]+\.py)", block, re.MULTILINE)
