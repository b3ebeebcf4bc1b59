"""
Group commit for PostgreSQL: the appends of several callers in one statement and one commit.

A commit waits for the disk, for one append as long as for a hundred. ``append_group`` stores the
appends of several callers of one connection together. It answers for each of them:

- a LogState: it is stored;
- UNDECIDED: it is not stored. The caller appends it alone, and so gets exactly the state or the
  error that there is for it: conflict, replay, missing log, full log;
- HELD: it is not stored, and another transaction holds its log. Alone, it would wait, and the
  connection's other appends with it. The caller may ask again later;
- an exception: whether it is stored is not known, because the connection was lost or a signal
  handler interrupted the wait. The caller gets the same exception in its own append. It must not
  be tried again: that could store its events twice.

A database error of the joined statement (a deadlock, data that jsonb refuses) has stored nothing if
the connection is still there: all appends of the statement are UNDECIDED then.

Appends are joined only where each would be a transaction of its own on this connection. In a
caller's transaction all are UNDECIDED.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import pq

from eventlogs import conf
from eventlogs.events.codec import request_fingerprints
from eventlogs.stores import stored_types
from eventlogs.stores.base import HELD, UNDECIDED, AppendRequest, Outcome
from eventlogs.stores.postgresql import with_chained_logs
from eventlogs.stores.retries import in_transaction
from eventlogs.stores.statements import HotStatement, raw_connection
from eventlogs.values import LogState

PATIENCE: Final = "20ms"  # for another transaction that has the same key, or creates the same log


Answer = LogState | Outcome | BaseException


APPEND_GROUP = HotStatement("append_group")
APPEND_GROUP_CHAINED = HotStatement("append_group", chained=True)


def append_group(using: str, requests: Sequence[AppendRequest]) -> list[Answer]:
    """
    Append the requests of several callers, no two of which have the same key.

    Of those that have the same log, only the first is stored. Call it in the thread of their
    connection. Errors are returned as answers, never raised: see the module.
    """
    connection = connections[using]
    first: dict[UUID, int] = {}  # for each log, the number of its first request
    for number, request in enumerate(requests):
        if request.rules is None:  # this statement knows none: alone, it is stored or refused
            first.setdefault(request.log_id.uuid, number)
    try:
        # With buckets, one open transaction would make all of them wait for one bucket.
        if not first or conf.has_buckets() or not _is_alone(connection):
            return [UNDECIDED] * len(requests)
        joined = [(number, requests[number]) for number in first.values()]
        parameters = _parameters(joined)
        # The chained variant chains the logs that it creates, too. Where the other one is taken,
        # appends to chained logs are UNDECIDED: alone, they are chained.
        is_met = using in with_chained_logs and all(
            request.expected_version != 0 for _, request in joined
        )
        statement = APPEND_GROUP_CHAINED if conf.chain() or is_met else APPEND_GROUP
        rows = statement.all_numbers(connection, parameters)
    except Error as error:
        if _is_refused(error, connection):
            return [UNDECIDED] * len(requests)
        return [_copy(error) for _ in requests]
    except BaseException as error:
        return [error] * len(requests)
    answers: list[Answer] = [UNDECIDED] * len(requests)
    for number, position, version, is_held, _ in rows:
        if position is not None:
            answers[number] = LogState(requests[number].log_id, version, position)
        elif is_held:
            answers[number] = HELD
    for number, request in enumerate(requests):
        if request.rules is None and answers[first[request.log_id.uuid]] is HELD:
            answers[number] = HELD
    try:
        for number, request in enumerate(requests):
            if isinstance(answers[number], LogState):
                stored_types.note(connection, request.log_id.log_type, request.events)
    except BaseException as error:  # a signal handler's
        return [error] * len(requests)
    return answers


def append_group_apart(using: str, requests: Sequence[AppendRequest]) -> list[Answer]:
    """
    Do what ``append_group`` does, in a thread that has no other work.

    Its connection is closed and checked as often as that of a request: CONN_MAX_AGE.
    """
    connections[using].close_if_unusable_or_obsolete()
    try:
        return append_group(using, requests)
    finally:
        connections[using].close_if_unusable_or_obsolete()


def has_no_transaction(using: str) -> bool:
    """Return whether an append in this thread would be a transaction of its own."""
    connection = connections[using]
    if connection.in_atomic_block or not connection.settings_dict["AUTOCOMMIT"]:
        return False
    return connection.connection is None or _is_alone(connection)


def _is_alone(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a statement is a transaction of its own."""
    if in_transaction(connection):
        return False
    # Django does not know of a BEGIN, of psycopg's transaction(), or of its autocommit that was
    # switched off. A connection without a pgconn is not psycopg's.
    raw: Any = raw_connection(connection)
    pgconn = getattr(raw, "pgconn", None)
    return (
        pgconn is not None
        and raw.autocommit
        and pgconn.transaction_status == pq.TransactionStatus.IDLE
    )


def _is_refused(error: Error, connection: BaseDatabaseWrapper) -> bool:
    """
    Return whether the server has answered with an error, and the connection goes on.

    An error without an SQLSTATE is not the server's: an execute wrapper may have raised it after
    the statement was committed.
    """
    if getattr(error.__cause__, "sqlstate", None) is None:
        return False
    pgconn = getattr(connection.connection, "pgconn", None)
    return (
        pgconn is not None
        and pgconn.status == pq.ConnStatus.OK
        and pgconn.transaction_status == pq.TransactionStatus.IDLE
    )


def _copy(error: Error) -> Error:
    """Return an equal error: each caller raises its own, with its own traceback."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy


def _parameters(requests: Sequence[tuple[int, AppendRequest]]) -> dict[str, str]:
    return {
        "patience": PATIENCE,
        "requests": _as_array(_request(number, request) for number, request in requests),
        "events": _as_array(
            f'[{number},{place},"{event.type}",{event.schema_version},{event.data}]'
            for number, request in requests
            for place, event in enumerate(request.events)
        ),
    }


def _request(number: int, request: AppendRequest) -> str:
    log_id, events, expected, key, metadata, position, _ = request
    fingerprint = "null"
    if key is not None:
        fingerprint = f'"{next(request_fingerprints(events)).hex()}"'
        key = json.dumps(key)
    return (
        f'[{number},"{log_id.uuid}","{log_id.log_type}",{_or_null(expected)},'
        f"{_or_null(position)},{len(events)},{key or 'null'},{fingerprint},{metadata}]"
    )


def _or_null(number: int | None) -> str:
    return "null" if number is None else str(number)


def _as_array(items: Iterable[str]) -> str:
    # Types are letters, digits and _.:- (see events/registry.py): they need no escaping.
    return "[" + ",".join(items) + "]"
