"""Helpers for the tests of the example project."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.db import connection, connections

from tests.processes import ROOT, Program


@pytest.fixture
def race() -> Callable[..., list[Any]]:
    """Return a function that makes calls in threads of their own, all at once."""

    def run(*calls: Callable[[], Any]) -> list[Any]:
        barrier = Barrier(len(calls))

        def start(call: Callable[[], Any]) -> Any:
            try:
                barrier.wait(timeout=10)
                return call()
            finally:
                connections.close_all()

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(start, calls))

    return run


def manage(*arguments: str | Path, database_url: str, **options: Any) -> Program:
    """Start manage.py as a user does: with the example's own settings, warnings as errors."""
    environ = {
        "DATABASE_URL": database_url,
        "DJANGO_SETTINGS_MODULE": "example_project.settings",
        "PYTHONIOENCODING": "ascii",
    }
    return Program("-W", "error", ROOT / "manage.py", *arguments, environ=environ, **options)


def database_url() -> str:
    """Return the URL of the database that the tests run on, for processes that they start."""
    settings = connection.settings_dict
    name = quote(str(settings["NAME"]), safe="/")
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    user, password = quote(settings["USER"], safe=""), quote(settings["PASSWORD"], safe="")
    query = urlencode({"host": settings["HOST"], "port": settings["PORT"] or 5432})
    return f"postgresql://{user}:{password}@/{name}?{query}"
