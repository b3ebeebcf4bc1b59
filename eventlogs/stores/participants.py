"""
Participants of an append: code that runs in the append's own transaction, e.g. inline projections.

A participant is called while the log's row is locked, and what it stores is committed with the
events, or not at all. It registers itself here, so that stores and managers import no projections.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.exceptions import TransactionMustRetry
from eventlogs.stores.base import AppendRequest, BaseStore
from eventlogs.stores.retries import run_again, undivided
from eventlogs.values import LogState


class Participant(NamedTuple):
    """A function that takes part in each append to logs of some types (None: of all)."""

    log_types: Collection[str] | None
    take_part: Callable[[str, LogState, AppendRequest], None]  # a database alias, …
    prepare: Callable[[str, AppendRequest], None] | None = None  # called before the log is locked


class Refused(Exception):
    """
    A participant refuses an append; ``explain`` returns the error that the caller gets.

    It is called after the append was rolled back, when the database can be asked again.
    """

    def __init__(self, explain: Callable[[], Exception]) -> None:
        super().__init__()
        self.explain = explain


registered: Final[dict[str, Participant]] = {}


def participants_of(log_type: str) -> list[Participant]:
    """Return the participants of appends to logs of a type."""
    return [
        each for each in registered.values() if each.log_types is None or log_type in each.log_types
    ]


def append_with(
    participants: list[Participant], store: BaseStore, using: str, request: AppendRequest
) -> LogState:
    """
    Append to a store together with participants: all of it is stored, or nothing.

    Raise what the store and the participants raise; a caller's transaction stays usable.
    """

    def attempt(connection: BaseDatabaseWrapper) -> LogState:
        for each in participants:
            if each.prepare is not None:
                each.prepare(using, request)
        try:
            # Inside of a caller's transaction this is a savepoint: what a participant refuses is
            # rolled back, and no more.
            with undivided(using):
                state = store.append(request)
                for each in participants:
                    each.take_part(using, state, request)
                return state
        except Refused as refused:
            raise refused.explain() from refused.__cause__
        except TransactionMustRetry as error:
            if isinstance(error.__cause__, Error):
                # It is run again here, if it can be; not "from", which would change its cause.
                raise error.__cause__  # noqa: B904
            raise

    return run_again(using, attempt)
