"""The files that an append passes through on PostgreSQL, as docs/storage.md lists them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from django.db import transaction

from eventlogs import LogManager
from eventlogs.stores import participants
from tests.accounts import Account, Deposited, Opened
from tests.walks import listed, walked

pytestmark = [pytest.mark.postgresql, pytest.mark.django_db(transaction=True)]


@pytest.mark.parametrize("events", [1, 3])
@pytest.mark.parametrize("options", [{}, {"idempotency_key": "k"}, {"metadata": {"by": "ada"}}])
@pytest.mark.parametrize("begin", [nullcontext, transaction.atomic])
@pytest.mark.fence
def test_the_walk_of_an_append_is_the_one_in_the_documentation(
    begin: Any, options: dict[str, Any], events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(participants, "registered", {})  # other tests declare inline projections
    accounts = LogManager(Account)
    state = accounts.append(accounts.create(Opened("Ada")), Deposited(1))

    with begin():
        files = walked(lambda: accounts.append(state, *[Deposited(1)] * events, **options))

    documented = listed("storage.md", "in this order:")
    assert len(documented) == len(set(documented)) <= 7
    checks = {"idempotency.py", "events/validation.py"} if options else set()
    assert [each for each in files if each not in checks] == documented
