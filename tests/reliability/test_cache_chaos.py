"""The cache never lies: readers and writers while anything happens to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.cache import caches
from django.db import connection

from eventlogs import LogId
from eventlogs.background import background
from eventlogs.caches import statistics
from eventlogs.counters import counters
from tests.accounts import Opened
from tests.races import COMMITS
from tests.servers import Redis

redis = pytest.importorskip("redis")
chaos = pytest.importorskip("tests.reliability.chaos")

pytestmark = [pytest.mark.redis, COMMITS]


@pytest.fixture
def struck(tmp_path: Path, transactional_db: None):
    with Redis() as server:
        chaos.use_cache(server.url)
        yield chaos.Chaos(server, tmp_path / "exploded")
    background.flush(5)
    del caches.settings[chaos.ALIAS]
    if hasattr(caches._connections, chaos.ALIAS):
        del caches[chaos.ALIAS]


@pytest.fixture
def log_ids() -> list[LogId]:
    accounts = chaos.manager()
    return [accounts.create(Opened(f"owner {n}")).log_id for n in range(4)]


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.long)])
def test_every_reduction_is_a_full_replay_and_no_reader_sees_an_error(struck, log_ids, seconds):
    seen = chaos.campaign(struck, dict(connection.settings_dict), log_ids, seconds=seconds)

    assert [each.wrong for each in seen] == [[]] * 16
    assert [each.errors for each in seen] == [[]] * 16
    assert not struck.fuse.exists()
    # It was a campaign: the cache was struck in many ways, it was missed, and it was hit.
    assert len(struck.done) >= (5 if seconds < 10 else 10)
    assert sum(each.reductions for each in seen[:8]) > 20 * seconds
    used = [each.statistics["hits"] + each.statistics["misses"]["behind"] for each in seen[:8]]
    assert sum(used) > 0
    assert sum(each.statistics["misses"]["bad_signature"] for each in seen[:8]) > 0

    # And afterwards it is a cache again.
    counters.reset()
    accounts = chaos.manager()
    for log_id in log_ids:
        expected = accounts.reduce(log_id, fresh=True).aggregate
        assert accounts.reduce(log_id).aggregate == expected
        background.flush(5)
        assert accounts.reduce(log_id).aggregate == expected
    assert statistics()["hits"] >= len(log_ids)


@pytest.mark.parametrize(
    ("twin", "way"), [("believe_anybody", "flip"), ("believe_any_log", "another_logs")]
)
def test_a_reader_that_believes_too_much_is_found_out(struck, log_ids, twin, way):
    struck.only(way)
    seen = chaos.campaign(
        struck,
        dict(connection.settings_dict),
        log_ids,
        seconds=3,
        readers=4,
        writers=1,
        twin=twin,
    )

    assert any(each.wrong for each in seen), (struck.done, seen)


def test_a_reader_that_lets_errors_through_is_found_out(struck, log_ids):
    struck.only("restart")
    seen = chaos.campaign(
        struck,
        dict(connection.settings_dict),
        log_ids,
        seconds=3,
        readers=4,
        writers=1,
        twin="let_errors_through",
    )

    assert any(each.errors for each in seen)
