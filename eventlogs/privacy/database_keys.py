"""
The keys of subjects in a table, each encrypted by a key of ``EVENTLOGS["ENCRYPTION_KEYS"]``.

Right because: a subject has one row, by a unique constraint; a row is inserted unless it is there
and then read again, so two processes that create the key of one subject get the same key. A row is
never deleted: a destroyed key is a row without a key, and no new one is made for its subject.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from itertools import islice
from typing import Any, Final
from uuid import UUID, uuid4

from django.apps import apps
from django.db import connections, transaction
from django.db.models import QuerySet

from eventlogs.events.personal import RESERVED
from eventlogs.exceptions import KeyUnavailable, SubjectForgotten
from eventlogs.privacy import memory
from eventlogs.privacy.encryption import (
    KEY_BYTES,
    SubjectCipherKey,
    unwrapped,
    wrapped,
    wrapping_keys,
)
from eventlogs.privacy.keys import BaseKeyStore
from eventlogs.privacy.subject_logs import written_to
from eventlogs.stores.claims import insert_missing
from eventlogs.stores.clock import UTCNow
from eventlogs.stores.retries import given_up, run_again, run_in_transaction

FEW: Final = 200  # keys that are named in one statement, or wrapped in one transaction
NAMED: Final = 10  # keys that an error names
LOST: Final = f"{RESERVED}lost:"  # the subjects of keys that were given up begin like this


class DatabaseKeyStore(BaseKeyStore):
    """
    Keys in the table of SubjectKey.

    ``using`` is a database alias; without it, Django's routers choose the one that SubjectKey is
    written to. Another database than that of the logs keeps the keys out of the logs' backups.

    Override ``wrap``, ``unwrap`` and ``newest`` to let a KMS or an HSM encrypt the keys, instead of
    a key in the settings.
    """

    def __init__(self, using: str | None = None) -> None:
        self._using = using

    @property
    def using(self) -> str:
        """The database alias, also for reading: a replica may be behind."""
        return self._using or written_to("SubjectKey")

    def wrap(self, secret: bytes, key_id: UUID) -> tuple[bytes, str]:
        """
        Return a subject's key encrypted, and the id of the key that has encrypted it.

        Raise KeyUnavailable where that is not possible.
        """
        return wrapped(secret, key_id.bytes)

    def unwrap(self, wrapped_secret: bytes, wrapped_by: str, key_id: UUID) -> bytes:
        """Return a subject's key; raise KeyUnavailable where that is not possible."""
        return unwrapped(wrapped_secret, wrapped_by, key_id.bytes)

    def newest(self) -> str:
        """Return the id of the key that ``wrap`` uses now, at most 100 characters."""
        keys = wrapping_keys()
        if not keys:
            raise KeyUnavailable("EVENTLOGS['ENCRYPTION_KEYS'] has no key")
        return keys[0].id

    def for_subjects(self, subjects: Collection[str]) -> dict[str, SubjectCipherKey]:
        """Return the keys of subjects, and create those that are missing."""
        wanted = sorted(set(subjects))
        rows = self._of_subjects(wanted)
        missing = [each for each in wanted if each not in rows]
        if missing:
            # The secrets are made before the insert: an error of a KMS leaves the transaction.
            new = [self._new(each) for each in missing]
            run_again(self.using, lambda connection: self._insert(new))
            rows.update(self._of_subjects(missing, locking=True))
        if any(each not in rows for each in wanted):
            raise given_up(self.using)  # inserted by another transaction, and rolled back since
        for subject in wanted:
            row = rows[subject]
            if row.wrapped is None:
                raise SubjectForgotten(subject, key_id=row.id)
        return {
            subject: SubjectCipherKey(row.id, self._secret(row)) for subject, row in rows.items()
        }

    def secrets(self, key_ids: Collection[UUID]) -> dict[UUID, bytes]:
        """Return the 32 bytes of keys by their ids; keys that were destroyed are left out."""
        found: dict[UUID, Any] = {}
        for some in _few(key_ids):
            found.update({row.id: row for row in self._rows().filter(pk__in=some)})
        unknown = set(key_ids) - found.keys()
        if unknown:
            raise _unknown(unknown)
        return {pk: self._secret(row) for pk, row in found.items() if row.wrapped is not None}

    def existing(self, key_ids: Collection[UUID]) -> set[UUID]:
        """Return the ids of the keys that are not destroyed; nothing is unwrapped."""
        found: dict[UUID, object] = {}
        for some in _few(key_ids):
            found.update(self._rows().filter(pk__in=some).values_list("pk", "wrapped"))
        if unknown := set(key_ids) - found.keys():
            raise _unknown(unknown)
        return {pk for pk, secret in found.items() if secret is not None}

    def find(self, subject: str) -> UUID | None:
        """Return the id of a subject's key, also of a destroyed one, or None."""
        return self._rows().filter(subject=subject).values_list("pk", flat=True).first()

    def destroy(self, subject: str) -> UUID | None:
        """Destroy the key of a subject for good, and return its id, or None without a key."""
        if subject.startswith(RESERVED):
            raise ValueError(
                f"{subject!r} is the subject of a key of eventlogs' own, and no person."
            )

        def attempt() -> UUID | None:
            row = self._rows().select_for_update().filter(subject=subject).first()
            if row is not None and row.wrapped is not None:
                self._rows().filter(pk=row.pk).update(
                    wrapped=None, wrapped_by="", destroyed_at=UTCNow()
                )
            return None if row is None else row.pk

        key_id = run_in_transaction(self.using, attempt)
        memory.drop_key(subject)
        return key_id

    def rotate(self) -> int:
        """
        Wrap all keys by the newest encryption key; return how many were wrapped anew.

        200 keys are one transaction. After an interruption, the next call goes on. The older
        encryption keys must stay in the settings until it has ended.

        Raise KeyUnavailable where keys cannot be unwrapped, after all others were wrapped anew.
        """
        newest = self.newest()
        count = 0
        last = UUID(int=0)
        bad: list[UUID] = []
        first: KeyUnavailable | None = None

        def attempt() -> tuple[list[UUID], dict[UUID, KeyUnavailable]]:
            old = self._rows().filter(pk__gt=last, wrapped__isnull=False)
            rows = list(old.exclude(wrapped_by=newest).select_for_update().order_by("pk")[:FEW])
            errors: dict[UUID, KeyUnavailable] = {}
            for row in rows:
                try:
                    plain = self._secret(row)
                except KeyUnavailable as error:
                    errors[row.pk] = error
                    continue
                secret, name = self.wrap(plain, row.pk)
                # Not by the lock alone: where it was lost, a key that is destroyed would come back.
                seen = self._rows().filter(pk=row.pk, wrapped_by=row.wrapped_by)
                seen.update(wrapped=secret, wrapped_by=name)
            return [row.pk for row in rows], errors

        while True:
            done, errors = run_in_transaction(self.using, attempt)
            if not done:
                break
            count += len(done) - len(errors)
            last = done[-1]
            bad += errors
            first = first or next(iter(errors.values()), None)
        if first is not None:
            named = ", ".join(map(str, bad[:NAMED]))
            raise KeyUnavailable(
                f"{first.reason}. {len(bad)} keys of subjects were left as they are (the first of "
                f"them: {named}), and {count} others were wrapped anew"
            ) from first
        return count

    def give_up(self, key_id: UUID) -> bool:
        """
        Note a key that this store does not have as destroyed; return whether it had no row.

        What it has encrypted is erased from then on, for good.
        """
        model = apps.get_model("eventlogs", "SubjectKey")
        row = model(
            id=key_id,
            subject=f"{LOST}{key_id}",
            wrapped=None,
            wrapped_by="",
            created_at=UTCNow(),
            destroyed_at=UTCNow(),
        )

        def attempt() -> bool:
            if self._rows().filter(pk=key_id).exists():
                return False
            insert_missing(self.using, [row])
            return True

        return run_in_transaction(self.using, attempt)

    def _new(self, subject: str) -> Any:
        key_id = uuid4()
        secret, name = self.wrap(os.urandom(KEY_BYTES), key_id)
        model = apps.get_model("eventlogs", "SubjectKey")
        return model(
            id=key_id, subject=subject, wrapped=secret, wrapped_by=name, created_at=UTCNow()
        )

    def _insert(self, rows: list[Any]) -> None:
        with transaction.atomic(using=self.using):
            insert_missing(self.using, rows)

    def _secret(self, row: Any) -> bytes:
        return self.unwrap(bytes(row.wrapped), row.wrapped_by, row.id)

    def _of_subjects(self, subjects: Collection[str], *, locking: bool = False) -> dict[str, Any]:
        rows = self._rows()
        if locking and connections[self.using].vendor == "mysql":
            # A plain read answers from a snapshot, which may be older than the insert.
            with transaction.atomic(using=self.using):
                return self._named(rows.select_for_update(), subjects)
        return self._named(rows, subjects)

    def _named(self, rows: QuerySet[Any], subjects: Collection[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for some in _few(subjects):
            found.update({row.subject: row for row in rows.filter(subject__in=some)})
        return found

    def _rows(self) -> QuerySet[Any]:
        # A plain queryset: by name, since models import stores.
        return QuerySet(apps.get_model("eventlogs", "SubjectKey"), using=self.using)


def _unknown(key_ids: set[UUID]) -> KeyUnavailable:
    lost = min(key_ids)
    return KeyUnavailable(
        f"The key store has no row for the key {lost} of a subject: EVENTLOGS['KEY_STORE'] names "
        f"another database than when data were stored, or its table was not restored. Only if the "
        f"key is lost for good, give its data up: manage.py eventlogs rotate-keys --lost-key {lost}"
    )


def _few(items: Iterable[Any]) -> Iterable[list[Any]]:
    iterator = iter(items)
    while some := list(islice(iterator, FEW)):
        yield some
