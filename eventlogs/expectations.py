"""The states that an append expects: of its own log, and of other logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventlogs.conf import MAX_ALSO_EXPECTED, MAX_POSITION, MAX_VERSION
from eventlogs.deciders import kind_of
from eventlogs.ids import LogId
from eventlogs.utils.bounds import check_int
from eventlogs.values import LogState, Reduction

Expectation = LogState | Reduction[Any]


def other_states(also_expect: Sequence[Expectation], log_id: LogId) -> tuple[LogState, ...]:
    """
    Return the states of other logs that an append to ``log_id`` also expects.

    Raise TypeError for anything but a sequence of LogStates and Reductions, and ValueError for
    more than 100 of them, for one of ``log_id`` itself and for numbers out of range.
    """
    if not also_expect:
        return ()
    if isinstance(also_expect, str) or not isinstance(also_expect, Sequence):  # type: ignore[unreachable]
        raise TypeError(
            f"also_expect takes a list of states of other logs, not {kind_of(also_expect)}. Write "
            f"also_expect=[state]."
        )
    if len(also_expect) > MAX_ALSO_EXPECTED:
        raise ValueError(
            f"also_expect has {len(also_expect)} states. It takes {MAX_ALSO_EXPECTED} at most."
        )
    others = []
    for each in also_expect:
        if not isinstance(each, LogState | Reduction):
            raise TypeError(
                f"also_expect takes LogStates and Reductions of other logs, not {kind_of(each)}. "
                f"Reduce that log, and pass the reduction that you decided on."
            )
        if each.log_id == log_id:
            raise ValueError(
                f"also_expect names {log_id}, to which the events are appended. Its state is the "
                f"first argument of append()."
            )
        check_int("version", each.version, lowest=1, highest=MAX_VERSION)
        check_int("position", each.position, highest=MAX_POSITION)
        others.append(LogState(each.log_id, each.version, each.position))
    return tuple(others)
