"""The settings of the example project."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from example_project.settings import database, sqlite
from tests.example.conftest import manage
from tests.processes import ROOT


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

    with manage("check", database_url=f"sqlite:///{tmp_path}/db.sqlite3") as program:
        program.ended(code=status)
        assert ("DJANGO_SECRET_KEY is not set" in program.error_text) == bool(status)


def schedules(path: Path) -> list[dict[str, Any]]:
    """Return the schedules of Celery beat that a page or module shows."""
    found = re.findall(
        r"^ *CELERY_BEAT_SCHEDULE = (\{$.*?^ *\}$)", path.read_text(), re.MULTILINE | re.DOTALL
    )
    return [ast.literal_eval(textwrap.dedent(each)) for each in found]


@pytest.mark.parametrize(
    "path",
    [
        "docs/celery.md",
        "docs/projections.md",
        "docs/proof.md",
        "eventlogs/tasks.py",
        "example_project/settings.py",
    ],
)
def test_messages_of_beat_expire_so_that_none_pile_up_without_a_worker(path):
    (schedule,) = schedules(ROOT / path)

    for entry in schedule.values():
        expires = entry["options"]["expires"]
        # The clocks of two machines are compared.
        assert expires >= 10
        assert expires <= max(10, entry["schedule"])


def test_there_is_no_other_schedule_in_the_docs():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

    shown = [page.name for page in pages if "BEAT_SCHEDULE = " in page.read_text()]

    assert shown == ["celery.md", "projections.md", "proof.md"]
