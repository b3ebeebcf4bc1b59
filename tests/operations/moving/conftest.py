"""Two databases over which the example's router spreads logs, and which know of moved ones."""

from __future__ import annotations

from typing import Any

import pytest

from example_project.shards import ShardRouter
from tests.test_shards import Shards


@pytest.fixture
def second(transactional_db: None, request: pytest.FixtureRequest) -> str:
    """The second database, created after Django's own, so that it is not blocked."""
    return str(request.getfixturevalue("second_database"))


@pytest.fixture
def shards(second: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """Two databases, over which the example's router spreads all logs."""
    made = Shards(second)
    monkeypatch.setattr(ShardRouter, "databases", made.aliases)
    monkeypatch.setattr(ShardRouter, "moved", type(ShardRouter.moved)(seconds=0))
    settings.DATABASE_ROUTERS = ["example_project.shards.ShardRouter"]
    return made
