"""Settings with an encryption key, and nothing remembered from the test before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from eventlogs.privacy import memory

OLD = "b2xkLW9sZC1vbGQtb2xkLW9sZC1vbGQtb2xkLW9sZCE="
NEW = "bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctbmV3LW5ldyE="


@pytest.fixture(autouse=True)
def encryption(settings: Any) -> Iterator[None]:
    settings.EVENTLOGS = {**settings.EVENTLOGS, "ENCRYPTION_KEYS": [OLD]}
    memory.clear()
    yield
    memory.clear()
