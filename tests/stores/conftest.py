"""Other wrappers for the default connection, for the tests of stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections


@pytest.fixture
def connect(transactional_db: None) -> Iterator[Callable[..., Any]]:
    """
    A function that replaces the wrapper of this thread's connection by one of another class.

    It returns the wrapper, which is not connected yet. The old one is restored in the end.
    """
    before = connections["default"]
    made: list[Any] = []

    def connect(wrapper: type[Any], **settings: Any) -> Any:
        made.append(wrapper({**before.settings_dict, **settings}, "default"))
        connections["default"] = made[-1]
        return made[-1]

    yield connect
    connections["default"] = before
    for each in made:
        each.close()
        if each.settings_dict["OPTIONS"].get("pool"):
            each.close_pool()
