"""The transactions of partitioning: short, patient about locks, and with the table's schema."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from django.db import Error, connections, transaction

from eventlogs.exceptions import CannotPartition
from eventlogs.stores.retries import must_retry

T = TypeVar("T")

LOCK_TIMEOUT: Final = 1_000  # milliseconds: other statements on the table wait meanwhile
ATTEMPTS: Final = 60  # to get a lock
PAUSE: Final = 2.0  # seconds between two attempts, on average
LOCK_NOT_AVAILABLE: Final = "55P03"

# Names are those of the table's schema only: another schema in the path may have a copy of its own.
# All is made as the table's owner, so that another member of that role can go on.
SETTINGS: Final = """
SELECT set_config('search_path', quote_ident(nspname), true),
       set_config('role', pg_get_userbyid(relowner), true),
       set_config('lock_timeout', %s, true),
       set_config('statement_timeout', '0', true)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE pg_class.oid = 'eventlogs_event'::regclass
"""
# Calls take turns. With two numbers, the key is none of a fence.
TURN: Final = """
SELECT pg_advisory_xact_lock(hashtext('eventlogs partition'), relnamespace::oid::integer)
FROM pg_class WHERE oid = 'eventlogs_event'::regclass
"""
# Whether a session has the turn now, in the schema with this oid. Every role may see locks.
HOLDS_TURN: Final = """
EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND classid::bigint = hashtext('eventlogs partition')::bigint & 4294967295
      AND objid = {schema})
"""


def one_step(
    using: str,
    attempt: Callable[..., T],
    *args: Any,
    purpose: str,
    isolation: str = "READ COMMITTED",
) -> T:
    """
    Call ``attempt`` with a cursor and ``args``, in a transaction of its own, and return its answer.

    It is called again while it does not get its locks, or the database aborts it. Raise
    CannotPartition after about two minutes, and RuntimeError inside of a caller's transaction.
    """
    connection = connections[using]
    for number in range(ATTEMPTS):
        try:
            with transaction.atomic(using=using, durable=True), connection.cursor() as cursor:
                cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
                cursor.execute(SETTINGS, [str(LOCK_TIMEOUT)])
                cursor.execute(TURN)
                return attempt(cursor, *args)
        except Error as error:
            is_locked = getattr(error.__cause__, "sqlstate", None) == LOCK_NOT_AVAILABLE
            if not is_locked and not must_retry(error):
                raise
            if number == ATTEMPTS - 1:
                raise CannotPartition(
                    using=using,
                    reason=f"other transactions have kept the table of events locked for minutes, "
                    f"so that nobody could {purpose}",
                    action="Find them in pg_locks and end them, then run this again: it goes on "
                    "from here",
                ) from error
        time.sleep(random.uniform(0, 2 * PAUSE))
    raise AssertionError("unreachable: the last attempt returns or raises")
