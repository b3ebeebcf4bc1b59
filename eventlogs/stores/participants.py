"""
Appends that something else is part of: read models that are kept inline.

Who keeps one registers a function here, and is called in the append's own transaction, while
the log's row is locked. This is a door from below: stores and managers know no projections.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.exceptions import TransactionMustRetry
from eventlogs.stores.base import AppendRequest, BaseStore
from eventlogs.stores.retries import run_again
from eventlogs.values import LogState


class Follower(NamedTuple):
    """Something that is done with each append to logs of some types (None: of all)."""

    log_types: Collection[str] | None
    follow: Callable[[str, LogState, AppendRequest], None]  # a database alias, …


class Refused(Exception):
    """
    A follower refuses an append; ``explain`` returns the error that the caller gets.

    It is called after the append was taken back, when the database can be asked again.
    """

    def __init__(self, explain: Callable[[], Exception]) -> None:
        super().__init__()
        self.explain = explain


followers: Final[dict[str, Follower]] = {}


def followers_of(log_type: str) -> list[Follower]:
    """Return who takes part in appends to logs of a type."""
    return [
        each for each in followers.values() if each.log_types is None or log_type in each.log_types
    ]


def append(
    store: BaseStore, using: str, request: AppendRequest, taking_part: list[Follower]
) -> LogState:
    """
    Append, and let followers take part: all of it is stored, or nothing.

    Raise what the append and the followers raise; a caller's transaction stays usable.
    """

    def attempt(connection: BaseDatabaseWrapper) -> LogState:
        try:
            # Inside of a caller's transaction this is a savepoint: what a follower refuses is
            # taken back, and no more.
            with transaction.atomic(using=using):
                state = store.append(request)
                for each in taking_part:
                    each.follow(using, state, request)
                return state
        except Refused as refused:
            raise refused.explain() from refused.__cause__
        except TransactionMustRetry as error:
            if isinstance(error.__cause__, Error):
                # It is run again here, if it can be; not "from", which would change its cause.
                raise error.__cause__  # noqa: B904
            raise

    return run_again(using, attempt)
