"""The settings of the example project."""

from __future__ import annotations

import pytest

from example_project.settings import database, sqlite
from tests.example.conftest import manage


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_url_names_a_server(scheme):
    url = f"{scheme}://me:p%40ss@db.example:5433/the%20ledger?sslmode=require"

    assert database(url) == {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "the ledger",
        "USER": "me",
        "PASSWORD": "p@ss",
        "HOST": "db.example",
        "PORT": "5433",
        "OPTIONS": {"sslmode": "require"},
    }


def test_a_url_names_a_server_on_a_socket():
    settings = database("postgresql://me@/ledger?host=/Run/pg&port=5433")

    assert (settings["HOST"], settings["PORT"], settings["OPTIONS"]) == ("/Run/pg", "5433", {})


def test_a_url_names_a_file():
    assert database("sqlite:////a/file.sqlite3") == sqlite("/a/file.sqlite3")


@pytest.mark.parametrize(
    ("debug", "secret", "status"), [("0", "", 1), ("0", "a-secret", 0), ("1", "", 0)]
)
def test_a_secret_key_is_required_in_production(monkeypatch, tmp_path, debug, secret, status):
    monkeypatch.setenv("DJANGO_DEBUG", debug)
    monkeypatch.delenv("DJANGO_SECRET_KEY", raising=False)
    if secret:
        monkeypatch.setenv("DJANGO_SECRET_KEY", secret)

    process = manage("check", database_url=f"sqlite:///{tmp_path}/db.sqlite3")
    _, err = process.communicate(timeout=60)

    assert process.returncode == status
    assert ("DJANGO_SECRET_KEY is not set" in err) == bool(status)
