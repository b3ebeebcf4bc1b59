"""
Rows that say which logs may hold data of which subjects.

Right because: the row is written before the event, in the log's database, and each append that
does not know it to be committed writes it again. If a transaction is rolled back, both are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final
from uuid import UUID

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, router, transaction
from django.db.models import QuerySet

from eventlogs.ids import LogId
from eventlogs.privacy import memory
from eventlogs.stores.claims import insert_missing
from eventlogs.stores.retries import run_again
from eventlogs.utils.commits import after_commit, is_autocommit

FEW: Final = 200  # keys that are named in one statement


def written_to(model: str) -> str:
    """Return the alias that Django's routers choose for writing a model of eventlogs."""
    if not router.routers:  # nearly always, and looking the model up takes longer
        return DEFAULT_DB_ALIAS
    return router.db_for_write(apps.get_model("eventlogs", model))


def note_logs(using: str, key_ids: Iterable[UUID], log_id: LogId) -> None:
    """
    Note that a log may hold data that keys have encrypted, before that is stored.

    A row without an event is harmless: forgetting then looks at a log that has nothing.
    """
    place = memory.place_of_connection(using)
    pairs = {(key_id, log_id.uuid) for key_id in key_ids}
    unknown = memory.unknown_pairs(place, pairs)
    if not unknown:
        return
    model = apps.get_model("eventlogs", "SubjectLog")
    rows = [model(key_id=key_id, log_id=log_id) for key_id, _ in unknown]
    was_autocommit = is_autocommit(using)

    def insert(connection: object) -> None:
        with transaction.atomic(using=using):
            insert_missing(using, rows)

    run_again(using, insert)
    if was_autocommit:
        memory.know_pairs(place, unknown)
    else:

        def read_again() -> None:
            memory.know_pairs(place, _stored(using, unknown, log_id))

        after_commit(using, ("logs", tuple(unknown)), read_again)


def _stored(using: str, pairs: Collection[memory.Pair], log_id: LogId) -> list[memory.Pair]:
    rows: QuerySet[Any] = QuerySet(apps.get_model("eventlogs", "SubjectLog"), using=using)
    some = rows.filter(log_id=log_id, key_id__in=[key_id for key_id, _ in pairs][:FEW])
    return [(key_id, log_id.uuid) for key_id in some.values_list("key_id", flat=True)]
