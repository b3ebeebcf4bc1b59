"""The bytes that PostgreSQL sends are those that digests are made of."""

from __future__ import annotations

from typing import Any

import pytest
from django.db.models import F, Value
from django.db.models.functions import Concat

from eventlogs.seals.sources import DatabaseSource
from tests.accounts import Account, Noted
from tests.seals.histories import events
from tests.seals.test_proofs import UNUSUAL

pytestmark = [pytest.mark.postgresql, pytest.mark.django_db]


def misfits() -> list[Any]:
    return [past.misfit for past in DatabaseSource("default").pasts([10**6])]


@pytest.fixture
def noted(sealing):
    return Account.logs.create(
        Noted(note=UNUSUAL), Noted(note="b"), idempotency_key="k\n", metadata={"user": "Zoë"}
    )


def test_digests_are_computed_from_them(noted):
    assert misfits() == [None]


@pytest.mark.fence
def test_a_type_with_a_line_feed_has_no_digest(noted, owner):
    """Two events could have the same bytes otherwise."""
    events().filter(index=1).update(type=Concat(F("type"), Value("\n1")))

    [misfit] = misfits()

    assert (misfit.index, "line feed" in misfit.message) == (1, True)
