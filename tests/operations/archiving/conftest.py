"""Archives in a directory of each test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import FileSystemStorage

from tests.operations.archiving.closed import closed_accounts


@pytest.fixture
def directory(tmp_path: Path, settings: Any) -> Path:
    """Keep archives in a directory; accounts without money are closed."""
    use(settings, tmp_path / "archives")
    return tmp_path / "archives"


def use(settings: Any, directory: Path, **more: object) -> None:
    """Let the settings name a directory of archives."""
    backend = f"{FileSystemStorage.__module__}.{FileSystemStorage.__qualname__}"
    settings.STORAGES = {
        **settings.STORAGES,
        "archives": {"BACKEND": backend, "OPTIONS": {"location": str(directory)}},
    }
    settings.EVENTLOGS = {
        **settings.EVENTLOGS,
        "ARCHIVE_STORAGE": "archives",
        "RETENTION": [closed_accounts],
        **more,
    }
