"""Calls after the commit."""

from __future__ import annotations

import pytest
from django.db import connection, connections, transaction

from eventlogs.utils.commits import after_commit, is_autocommit, over_another_connection

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


def test_a_decorated_function_has_its_call_in_each_transaction():
    called: list[int] = []

    @transaction.atomic
    def work(number: int) -> None:
        for _ in range(2):
            after_commit("default", "key", lambda: called.append(number))

    for number in range(3):
        work(number)

    assert called == [0, 1, 2]


def test_a_call_that_a_savepoint_took_away_is_made_when_it_is_wanted_again():
    called: list[int] = []
    with transaction.atomic():
        for number in range(2):
            savepoint = connection.savepoint()
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                after_commit("default", "key", lambda: called.append(0))
                _ = 1 / 0
            transaction.savepoint_rollback(savepoint)
            assert called == [], number
        after_commit("default", "key", lambda: called.append(1))

    assert called == [1]


def test_nothing_is_kept_after_the_commit():
    for number in range(3):
        with transaction.atomic():
            after_commit("default", number, lambda: None)

    calls, keys = vars(connections["default"])["_eventlogs_after_commit"]
    assert calls == []
    assert keys == {2}


def test_another_connection_commits_by_itself_and_has_the_tenant(monkeypatch):
    tenants: list[str] = []
    here = connections["default"]
    monkeypatch.setattr(
        type(here), "set_tenant", lambda self, tenant: tenants.append(tenant), raising=False
    )
    monkeypatch.setattr(here, "tenant", "clinic", raising=False)
    with transaction.atomic():
        found = over_another_connection(
            "default", lambda: (is_autocommit("default"), connections["default"] is not here)
        )

    assert found == (True, True)
    assert tenants == ["clinic"]


def test_an_error_over_another_connection_is_raised_here():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        over_another_connection("default", lambda: 1 / 0)
