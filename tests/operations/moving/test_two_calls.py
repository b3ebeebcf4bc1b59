"""Several calls that move the same log at once."""

from __future__ import annotations

from typing import Any

from eventlogs import ANY
from eventlogs.exceptions import CannotMove
from tests.accounts import Deposited
from tests.operations.moving.logs import account, accounts, events_in, is_live, moved, seen


def test_of_several_calls_at_once_one_moves_the_log(shards, race):
    first, second = shards.aliases
    for _ in range(5):
        log_id = account(shards, events=1)
        accounts.append(log_id, *[Deposited(1)] * 3, expected_version=ANY)
        before = seen(log_id)

        def call(log_id: Any = log_id) -> str:
            try:
                return "moved" if moved(log_id, shards).is_new else "before"
            except CannotMove as error:
                return error.reason

        answers = race(*[call] * 3)

        assert set(answers) <= {"moved", "before", "overtaken", "there"}
        moved(log_id, shards)
        assert (shards.of(log_id), seen(log_id)) == (second, before)
        assert (events_in(log_id, first), is_live(log_id, first)) == (0, False)
        assert accounts.append(log_id, Deposited(1), expected_version=ANY).version == 5
