"""
Encryption of one value: AES-256-GCM with a random nonce, and the text that is stored.

The stored text is ``"1."`` and, in base64url without padding, 16 bytes of the key's id, 12 of the
nonce, and the ciphertext with its tag of 16 bytes. The place of the value (log, index, path) is
authenticated and not stored: a ciphertext that was moved to another place cannot be opened.

Random nonces of 96 bits allow 2**32 values under one key (NIST SP 800-38D, 8.3): each subject has a
key of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, Final, NamedTuple
from uuid import UUID

from eventlogs import conf
from eventlogs.exceptions import KeyUnavailable

VERSION: Final = "1."
KEY_BYTES: Final = 32  # AES-256
ID_BYTES: Final = 16
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SHORTEST: Final = ID_BYTES + NONCE_BYTES + TAG_BYTES
# 24 characters of base64 are 18 bytes: the key's id and 2 bytes of the nonce.
KEY_ID: Final = re.compile(r'\{"\$personal": ?"1\.([\w-]{24})')


class SubjectCipherKey(NamedTuple):
    """The key of a subject: its id, which is stored with what it has encrypted, and 32 bytes."""

    id: UUID
    secret: bytes


class CannotOpen(Exception):
    """A text that is no ciphertext of its place; the argument says why."""


@cache
def _cipher() -> Any:
    try:
        return import_module("eventlogs.privacy.aead")
    except ImportError:
        raise KeyUnavailable(
            "Personal data need the package cryptography, which is not installed: pip install "
            "'eventlogs[privacy]'"
        ) from None


@lru_cache(1_000)
def _fingerprint_key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"eventlogs.fingerprint", "sha256")


def is_installed() -> bool:
    """Return whether the package that encrypts is installed."""
    try:
        _cipher()
    except KeyUnavailable:
        return False
    return True


def seal(key: SubjectCipherKey, plain: bytes, place: str) -> str:
    """Return the text that is stored for a value, which can be opened at its place only."""
    nonce = os.urandom(NONCE_BYTES)
    sealed = _cipher().AESGCM(key.secret).encrypt(nonce, plain, place.encode())
    return VERSION + urlsafe_b64encode(key.id.bytes + nonce + sealed).rstrip(b"=").decode()


class SealedText(NamedTuple):
    """The parts of a stored text."""

    key_id: UUID
    nonce: bytes
    sealed: bytes


def open_sealed(text: SealedText, secret: bytes, place: str) -> bytes:
    """Return the value of a stored text; raise CannotOpen if it is not that of its place."""
    cipher = _cipher()
    try:
        opened: bytes = cipher.AESGCM(secret).decrypt(text.nonce, text.sealed, place.encode())
    except cipher.InvalidTag:
        raise CannotOpen(
            "its personal data were changed, or belong to another event, log or field"
        ) from None
    return opened


def key_ids_in(text: str) -> set[UUID]:
    """Return the ids of the keys of all stored texts in JSON; text like them counts, too."""
    return {UUID(bytes=urlsafe_b64decode(each)[:ID_BYTES]) for each in KEY_ID.findall(text)}


def parsed(text: str) -> SealedText:
    """Return the parts of a stored text; raise CannotOpen for another text."""
    try:
        if not text.startswith(VERSION):
            raise ValueError
        body = text.removeprefix(VERSION)
        raw = b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True)
        if len(raw) < SHORTEST:
            raise ValueError
    except ValueError:
        raise CannotOpen("its personal data have a form that this release does not know") from None
    nonce = raw[ID_BYTES : ID_BYTES + NONCE_BYTES]
    return SealedText(UUID(bytes=raw[:ID_BYTES]), nonce, raw[ID_BYTES + NONCE_BYTES :])


def compared(secret: bytes, plain: bytes) -> str:
    """
    Return what stands for a value where requests are compared.

    Without the subject's key nobody can test a guess of the value against it.
    """
    return hmac.digest(_fingerprint_key(secret), plain, "sha256").hex()


# The keys of the settings, which wrap those of the subjects


class WrappingKey(NamedTuple):
    """A key of EVENTLOGS["ENCRYPTION_KEYS"], and the id by which wrapped keys name it."""

    id: str
    secret: bytes


@lru_cache(100)
def _wrapping_key(encoded: str) -> WrappingKey:
    secret = b64decode(encoded, validate=True)
    if len(secret) != KEY_BYTES:
        raise ValueError
    return WrappingKey(hashlib.sha256(b"eventlogs.key:" + secret).hexdigest()[:32], secret)


def is_wrapping_key(value: object) -> bool:
    """Return whether a value is a key: base64 of 32 bytes."""
    try:
        return isinstance(value, str) and bool(_wrapping_key(value))
    except ValueError:
        return False


def wrapping_keys() -> list[WrappingKey]:
    """Return the keys of EVENTLOGS["ENCRYPTION_KEYS"]; raise KeyUnavailable where one is wrong."""
    try:
        return [_wrapping_key(each) for each in conf.encryption_keys()]
    except (ValueError, TypeError):
        raise KeyUnavailable(
            "EVENTLOGS['ENCRYPTION_KEYS'] must be a list of base64 of 32 bytes each"
        ) from None


def wrapped(secret: bytes, about: bytes) -> tuple[bytes, str]:
    """
    Return a secret encrypted by the newest key of the settings, and the id of that key.

    ``about`` is authenticated, and needed again. Raise KeyUnavailable without a key.
    """
    keys = wrapping_keys()
    if not keys:
        raise KeyUnavailable(
            "EVENTLOGS['ENCRYPTION_KEYS'] has no key. Make one with: python -c 'import base64, os; "
            "print(base64.b64encode(os.urandom(32)).decode())'"
        )
    newest = keys[0]
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher().AESGCM(newest.secret).encrypt(nonce, secret, about), newest.id


def unwrapped(wrapped_secret: bytes, wrapped_by: str, about: bytes) -> bytes:
    """Return a wrapped secret; raise KeyUnavailable where the settings do not have its key."""
    secret = next((each.secret for each in wrapping_keys() if each.id == wrapped_by), None)
    if secret is None:
        raise KeyUnavailable(
            f"EVENTLOGS['ENCRYPTION_KEYS'] lacks the key {wrapped_by}, which wraps the key of a "
            f"subject"
        )
    cipher = _cipher()
    nonce, sealed = wrapped_secret[:NONCE_BYTES], wrapped_secret[NONCE_BYTES:]
    try:
        opened: bytes = cipher.AESGCM(secret).decrypt(nonce, sealed, about)
    except cipher.InvalidTag:
        raise KeyUnavailable(
            "The stored key of a subject was changed: it is not what EVENTLOGS['ENCRYPTION_KEYS'] "
            "has wrapped"
        ) from None
    return opened
