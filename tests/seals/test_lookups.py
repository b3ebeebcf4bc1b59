"""Queries of the log of seals."""

from __future__ import annotations

import pytest

from eventlogs.seals.lookups import covering, newest
from tests.seals.test_appended import seals as seals

pytestmark = pytest.mark.feed


@pytest.mark.parametrize(("position", "found"), [(1, 10), (10, 10), (11, 20), (30, 30), (31, None)])
def test_the_first_seal_over_a_position_is_found(seals, position, found):
    seal = covering("default", position)

    assert (seal and seal["position"]) == found


def test_the_newest_seal_is_found(seals):
    assert newest("default")["position"] == 30


def test_without_seals_none_is_found(db):
    assert covering("default", 1) is None
    assert newest("default") is None
