"""The settings of the tests: from the URL of a server to Django's settings."""

from __future__ import annotations

import pytest

from tests.settings import database_from_url, own_redis

pytestmark = pytest.mark.postgresql  # only with psycopg, which parses the URL


def test_every_part_of_a_url_finds_its_place():
    url = "postgresql://me:p%40ss@db.example:5433/ledger?sslmode=require&connect_timeout=3"

    assert database_from_url(url) == {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "ledger",
        "USER": "me",
        "PASSWORD": "p@ss",
        "HOST": "db.example",
        "PORT": "5433",
        "OPTIONS": {"sslmode": "require", "connect_timeout": "3"},
    }


def test_a_socket_is_a_host():
    settings = database_from_url("postgresql://postgres@/postgres?host=/Tmp/x&port=5432")

    assert (settings["HOST"], settings["PORT"], settings["OPTIONS"]) == ("/Tmp/x", "5432", {})


def test_a_misspelled_parameter_is_refused():
    from psycopg import ProgrammingError

    with pytest.raises(ProgrammingError, match="sslmod"):
        database_from_url("postgresql://localhost/ledger?sslmod=require")


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("unix:///tmp/x/redis.sock?db=0", "unix:///tmp/x/redis.sock?db=3"),
        ("redis://localhost:6379/0", "redis://localhost:6379/3"),
        ("redis://:pass@localhost", "redis://:pass@localhost/3"),
        (
            "rediss://cache.example:1/15?socket_timeout=2",
            "rediss://cache.example:1/2?socket_timeout=2",
        ),
    ],
)
def test_processes_side_by_side_have_a_redis_database_each(monkeypatch, url, own):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")

    assert own_redis(url) == own
