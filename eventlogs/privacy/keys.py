"""
The interface of key stores, which keep the keys of subjects.

``EVENTLOGS["KEY_STORE"]`` names one. The default, ``DatabaseKeyStore``, is in ``database_keys``. A
key store must pass the contract suite in ``eventlogs.testing.contracts.key_stores``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, Final
from uuid import UUID

from django.utils.module_loading import import_string

from eventlogs import conf
from eventlogs.exceptions import KeyUnavailable
from eventlogs.privacy.encryption import SubjectCipherKey

__all__ = ["BaseKeyStore", "SubjectCipherKey", "key_store"]


class BaseKeyStore(ABC):
    """Where the keys of subjects are kept; threads share one."""

    @property
    def using(self) -> str | None:
        """
        The database alias whose transactions it takes part in.

        None is for a store in no database: what that creates or destroys is there at once.
        """
        return None

    @abstractmethod
    def for_subjects(self, subjects: Collection[str]) -> dict[str, SubjectCipherKey]:
        """
        Return the keys of subjects, and create those that are missing.

        Callers that create the key of one subject at the same time get the same key. Raise
        SubjectForgotten if one of the keys was destroyed; the caller's transaction stays usable.
        """

    @abstractmethod
    def secrets(self, key_ids: Collection[UUID]) -> dict[UUID, bytes]:
        """
        Return the 32 bytes of keys by their ids; keys that were destroyed are left out.

        The answer is never older than the call. Raise KeyUnavailable for a key that exists and
        cannot be used, and for an id that the store has never had: otherwise a wrong setting
        would look as if all people were forgotten.
        """

    def existing(self, key_ids: Collection[UUID]) -> set[UUID]:
        """
        Return the ids of the keys that are not destroyed, as ``secrets`` does; raise what it does.

        Override it where that is possible without decrypting each key. Then a key that exists and
        cannot be used may be in the answer.
        """
        return set(self.secrets(key_ids))

    def give_up(self, key_id: UUID) -> bool:
        """
        Note a key that the store does not have as destroyed, so that its data count as erased.

        For a key that is lost for good. Return False, and change nothing, where the store has it.
        The default raises NotImplementedError.
        """
        raise NotImplementedError(
            f"{type(self).__qualname__} cannot note that a key is lost. Override give_up()."
        )

    @abstractmethod
    def find(self, subject: str) -> UUID | None:
        """Return the id of a subject's key, also of a destroyed one, or None."""

    @abstractmethod
    def destroy(self, subject: str) -> UUID | None:
        """
        Destroy the key of a subject for good, and return its id, or None without a key.

        Afterwards ``for_subjects`` raises SubjectForgotten. A repetition changes nothing.
        """

    @abstractmethod
    def rotate(self) -> int:
        """Wrap all keys by the newest encryption key; return how many were wrapped anew."""


_made: Final[dict[str, tuple[Any, BaseKeyStore]]] = {}  # the value of the setting, and its store


def key_store() -> BaseKeyStore:
    """
    Return the key store of ``EVENTLOGS["KEY_STORE"]``.

    Raise KeyUnavailable if the setting is wrong.
    """
    setting = conf.key_store()
    known, store = _made.get("last", (None, None))
    if store is not None and known is setting:
        return store
    try:
        made: BaseKeyStore = import_string(setting["BACKEND"])(**setting.get("OPTIONS", {}))
    except (ImportError, TypeError, KeyError, AttributeError) as error:
        raise KeyUnavailable(
            f"EVENTLOGS['KEY_STORE'] names no key store that can be made ({type(error).__name__})"
        ) from error
    _made["last"] = setting, made
    return made
