"""The fixtures of tests/races serve here as well; and the tables of the read models."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from django.db import connection

from tests.races.conftest import new_logs, violations
from tests.reliability import read_models as models

# A signal that a process handles while psycopg 3.1 waits for the server ends the statement with
# InterruptedError, and leaves the connection unusable. Workers of these campaigns get signals.
collect_ignore_glob = []
if find_spec("psycopg") and int(version("psycopg").split(".")[1]) < 2:
    collect_ignore_glob.append("test_projection_*.py")

__all__ = ["new_logs", "read_models", "violations"]


@pytest.fixture
def read_models(transactional_db: None) -> Iterator[None]:
    """The tables of the read models, in autocommit mode."""
    with connection.schema_editor() as editor:
        for model in models.MODELS:
            editor.create_model(model)
    yield
    with connection.cursor() as cursor:
        for model in models.MODELS:
            for table in (f"{model._meta.db_table}__rebuild", model._meta.db_table):
                cursor.execute(f"DROP TABLE IF EXISTS {connection.ops.quote_name(table)}")
