"""
A key store of a project's own: an HSM wraps the keys of subjects.

The wrapping key is made in the HSM and never leaves it: a thief who has the database and the
settings has no key. The interface is PKCS#11, by the package ``python-pkcs11``; all HSMs and many
cloud services have it. A KMS with an API of its own takes the same three methods. Settings::

    EVENTLOGS = {
        "KEY_STORE": {
            "BACKEND": "example_project.hsm_keys.HSMKeyStore",
            "OPTIONS": {
                "library": "/usr/lib/softhsm/libsofthsm2.so",
                "token": "shop",
                "pin": os.environ["HSM_PIN"],
                "labels": ["personal-2026"],  # the newest first
            },
        },
    }
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any
from uuid import UUID

import pkcs11
from pkcs11 import GCMParams, KeyType, Mechanism, ObjectClass

from eventlogs import KeyUnavailable
from eventlogs.privacy import DatabaseKeyStore

NONCE_BYTES = 12


class HSMKeyStore(DatabaseKeyStore):
    """Keys of subjects in the database, each encrypted by a key that is in an HSM."""

    def __init__(
        self,
        *,
        library: str,
        token: str,
        pin: str,
        labels: Sequence[str],
        using: str | None = None,
    ) -> None:
        super().__init__(using)
        self._library, self._token, self._pin = library, token, pin
        self._labels = list(labels)
        self._lock = Lock()  # all sessions of a process share one login

    def newest(self) -> str:
        """Return the label of the key that wraps now."""
        return self._labels[0]

    def wrap(self, secret: bytes, key_id: UUID) -> tuple[bytes, str]:
        """Let the HSM encrypt a subject's key."""
        nonce = os.urandom(NONCE_BYTES)
        with self._key(self.newest()) as key:
            sealed = key.encrypt(
                secret, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(nonce, key_id.bytes)
            )
        return nonce + bytes(sealed), self.newest()

    def unwrap(self, wrapped_secret: bytes, wrapped_by: str, key_id: UUID) -> bytes:
        """Let the HSM decrypt a subject's key."""
        nonce, sealed = wrapped_secret[:NONCE_BYTES], wrapped_secret[NONCE_BYTES:]
        with self._key(wrapped_by) as key:
            opened = key.decrypt(
                sealed, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(nonce, key_id.bytes)
            )
        return bytes(opened)

    @contextmanager
    def _key(self, label: str) -> Iterator[Any]:
        try:
            with self._lock:
                token = pkcs11.lib(self._library).get_token(token_label=self._token)
                with token.open(user_pin=self._pin) as session:
                    yield session.get_key(
                        object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, label=label
                    )
        except pkcs11.PKCS11Error as error:
            # Its class says what is wrong; its text is the HSM's.
            raise KeyUnavailable(
                f"The HSM cannot use its key {label!r} ({type(error).__name__})"
            ) from error
