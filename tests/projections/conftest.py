"""Read models that have tables, and projections that are declared, for one test."""

from __future__ import annotations

import pytest
from django.db import connection

from eventlogs.stores import participants
from tests.projections import readmodels


@pytest.fixture
def tables(transactional_db):
    """The tables of the read models, in autocommit mode."""
    readmodels.reset()
    readmodels.reactions.clear()
    with connection.schema_editor() as editor:
        for model in readmodels.MODELS:
            editor.create_model(model)
    yield
    readmodels.reset()
    with connection.cursor() as cursor:
        for model in readmodels.MODELS:
            for table in (f"{model._meta.db_table}__rebuild", model._meta.db_table):
                cursor.execute(f"DROP TABLE IF EXISTS {connection.ops.quote_name(table)}")


@pytest.fixture
def declared():
    """All projections of the tests are declared, but for the one that is inline."""
    known = {
        name: each
        for name, each in readmodels.DECLARED.items()
        if each is not readmodels.InlinedBalances
    }
    with readmodels.declaring(known):
        yield


@pytest.fixture
def inlined(monkeypatch):
    """The projection that is inline takes part in appends."""
    monkeypatch.setitem(participants.registered, "inlined-balances", readmodels.PARTICIPANT)


@pytest.fixture
def second_alias(transactional_db, request):
    """The second database: made only when Django's own are there, and so not blocked."""
    return request.getfixturevalue("second_database")
