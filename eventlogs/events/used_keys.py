"""
Which subjects' keys the decoding of events has used.

Decryption notes the ids of the keys whose secrets it has used; the code that makes something
of the events, e.g. a fold, asks for them afterwards. What is made without a key, because that
was destroyed before, does not depend on it. Nothing here uses a database.
"""

from __future__ import annotations

from collections.abc import Collection
from contextvars import ContextVar
from uuid import UUID

_used: ContextVar[set[UUID] | None] = ContextVar("eventlogs_used_keys", default=None)


def note(key_ids: Collection[UUID]) -> None:
    """Note keys that were used, for all code around that has asked for them."""
    used = _used.get()
    if used is not None:
        used.update(key_ids)


class Noting:
    """
    A context manager whose set gets the ids of the keys that are used inside of the block.

    Not a generator, which takes twice the time: each fold enters it.
    """

    __slots__ = ("_outer", "_token", "_used")

    def __enter__(self) -> set[UUID]:
        self._outer = _used.get()
        self._used: set[UUID] = set()
        self._token = _used.set(self._used)
        return self._used

    def __exit__(self, *exc_info: object) -> None:
        _used.reset(self._token)
        # A fold that reduces another log inside of apply() depends on that log's keys, too.
        if self._outer is not None:
            self._outer |= self._used


def noted() -> Collection[UUID] | None:
    """Return the keys that were used in the innermost block so far; None outside of any block."""
    return _used.get()
