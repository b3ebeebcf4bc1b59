"""Tables of read models, and declared projections, for one test."""

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
    """Declare all projections of the tests except the inline one."""
    known = {
        name: each
        for name, each in readmodels.DECLARED.items()
        if each is not readmodels.InlinedBalances
    }
    with readmodels.declaring(known):
        yield


@pytest.fixture
def inlined(monkeypatch):
    """Let the inline projection take part in appends."""
    monkeypatch.setitem(participants.registered, "inlined-balances", readmodels.PARTICIPANT)


@pytest.fixture
def second_alias(transactional_db, request):
    """The second database, created after Django's own, so that it is not blocked."""
    return request.getfixturevalue("second_database")
