"""A process that forks while it is connected: its children use no connection and pool of it."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from django.db import connection

from tests.processes import output_of

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here"),
]
POOL = {"OPTIONS": {"pool": {"min_size": 2, "max_size": 4}}}


def forked(
    *arguments: str, code: int | None = 0, **settings: Any
) -> dict[str, tuple[int | None, str | None]]:
    printed = output_of(
        *("-m", "tests.stores.forks", str(connection.settings_dict["NAME"]), *arguments),
        environ={"EVENTLOGS_TEST_SETTINGS": json.dumps(settings)},
        code=code,
    )
    answers = [json.loads(line) for line in printed.splitlines()]
    return {each["name"]: (each["wrong"], each["error"]) for each in answers}


@pytest.mark.parametrize("settings", [{}, POOL], ids=["a connection", "a pool"])
def test_a_forked_child_has_its_own_connections(settings):
    if settings:
        pytest.importorskip("psycopg_pool")

    answers = forked(**settings)

    assert answers == dict.fromkeys(["child 0", "child 1", "child 2", "parent"], (0, None))


def test_a_broken_version_whose_children_keep_the_connection_is_found():
    """They read each other's answers, or wait for one that another has read."""
    answers = forked("shared", code=None)  # the parent may fail as well

    assert list(answers.values()) != [(0, None)] * 4


def test_a_child_that_is_forked_in_a_transaction_cannot_take_part_in_it():
    answers = forked("atomic")

    assert answers.pop("parent") == (0, None)
    assert set(answers.values()) == {(None, "TransactionManagementError")}


MAKES_IDS = """
import os
from eventlogs.ids import LogId

LogId.new("account")
for _ in range(2):
    if not os.fork():
        os.write(1, b"".join(b"%d\\n" % LogId.new("account").uuid.int for _ in range(100)))
        os._exit(0)
os.wait()
os.wait()
"""


def test_forked_processes_make_different_ids():
    """With uuid-utils 0.12, a fork copies the state of its generator."""
    printed = output_of("-c", MAKES_IDS)

    # The random bits alone: the processes need not come at the same millisecond.
    random_bits = [int(line) & 2**62 - 1 for line in printed.split()]
    assert len(set(random_bits)) == len(random_bits) == 200
