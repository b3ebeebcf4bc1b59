"""
The keys of seals: which one signs, and which ones are trusted.

``EVENTLOGS["SEAL_KEY"]`` signs. It is trusted, and so are ``EVENTLOGS["SEAL_PUBLIC_KEYS"]``:
earlier keys, and the keys of other machines. A machine that only attests needs no secret key.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final

from django.utils.module_loading import import_string

from eventlogs import conf
from eventlogs.exceptions import SealUnavailable
from eventlogs.seals.documents import S, Signable, replace

LENGTH: Final = 32  # bytes of a key


def signing() -> Any:
    """Return the module that signs; raise SealUnavailable if its package is not installed."""
    try:
        import_string("eventlogs.seals.signing.sign")
    except ImportError as error:
        if (error.name or "").split(".")[0] != "cryptography":
            raise
        raise SealUnavailable(
            "the package cryptography is not installed: pip install 'eventlogs[privacy]'"
        ) from None
    return import_string("eventlogs.seals.signing")


def key_of(text: str) -> bytes:
    """Return the key that a text in base64 is; raise ValueError for any other text."""
    try:
        key = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != LENGTH:
        raise ValueError(f"A key is {LENGTH} bytes in base64.")
    return key


def key_id(public: bytes) -> str:
    """Return the id by which seals name a public key: 16 hexadecimal digits of its SHA-256."""
    return sha256(public).hexdigest()[:16]


def new_pair() -> tuple[str, str]:
    """Return a new secret key and its public key, in base64."""
    made = signing()
    secret: bytes = made.new_secret()
    return b64encode(secret).decode(), b64encode(made.public_of(secret)).decode()


def signed(unsigned: S) -> S:
    """
    Return a seal or a manifest with the id and the signature of the project's key.

    Raise SealUnavailable if there is none.
    """
    made, secret = signing(), secret_key()
    named = replace(unsigned, key=key_id(made.public_of(secret)))
    signature = b64encode(made.sign(secret, named.signed)).decode()
    return replace(named, signature=signature)


def secret_key() -> bytes:
    """Return the key of the settings; raise SealUnavailable if there is none."""
    text = conf.seal_key()
    if text is None:
        raise SealUnavailable(
            "EVENTLOGS['SEAL_KEY'] is not set. Make a key with: manage.py eventlogs seal --new-key"
        )
    return key_of(text)


class Trusted:
    """Public keys whose signatures count."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """
        Take public keys in base64; by default, those of the settings.

        Raise ValueError for a text that is no key, and SealUnavailable without any key.
        """
        self._signing = signing()
        found = [key_of(each) for each in keys]
        if not found:
            found = [key_of(each) for each in conf.seal_public_keys()]
            if conf.seal_key() is not None:
                found.append(self._signing.public_of(secret_key()))
        if not found:
            raise SealUnavailable(
                "no public key is known, so no signature can be checked. Set "
                "EVENTLOGS['SEAL_PUBLIC_KEYS'], or pass --public-key"
            )
        self._keys = {key_id(each): each for each in found}

    def why_not(self, seal: Signable) -> str | None:
        """Return why a seal or a manifest is not to be trusted, or None."""
        public = self._keys.get(seal.key)
        if public is None:
            return f"it is signed by the key {seal.key}, which is not trusted here"
        try:
            signature = b64decode(seal.signature, validate=True)
        except (binascii.Error, ValueError):
            signature = b""
        if not self._signing.is_signed(public, seal.signed, signature):
            return "its signature is wrong: it was changed, or is forged"
        return None
