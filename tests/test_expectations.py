"""The states of other logs that an append also expects: what is refused."""

from __future__ import annotations

import pytest

from eventlogs import (
    LogState,
)
from tests.accounts import (
    Deposited,
    Opened,
)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda state: state, TypeError, r"also_expect=\[state\]"),
        (lambda state: str(state.log_id), TypeError, r"also_expect=\[state\]"),
        (lambda state: [state.log_id], TypeError, "not a LogId"),
        (lambda state: [state] * 101, ValueError, "It takes 100 at most"),
        (lambda state: [LogState(state.log_id, 0, 0)], ValueError, "version is 0"),
        (lambda state: [LogState(state.log_id, 1, -1)], ValueError, "position is -1"),
    ],
)
def test_what_cannot_be_also_expected_is_refused(accounts, log_id, wrong, error, text):
    other = accounts.create(Opened("Ann"))
    state = accounts.create(Opened("Bob"), log_id=log_id)

    for call in (
        lambda also: accounts.append(state, Deposited(1), also_expect=also),
        lambda also: accounts.execute(log_id, lambda _: Deposited(1), also_expect=also),
    ):
        with pytest.raises(error, match=text):
            call(wrong(other))
    with pytest.raises(ValueError, match="Its state is the first argument"):
        accounts.append(state, Deposited(1), also_expect=[state])
    assert accounts.version(log_id) == 1
