"""The stored form of an encrypted value, byte for byte, and the comparison of requests."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventlogs.privacy.encryption import (
    CannotOpen,
    SubjectCipherKey,
    compared,
    key_ids_in,
    open_sealed,
    parsed,
    seal,
)

KEY = SubjectCipherKey(uuid4(), os.urandom(32))
PLACE = "patient_01h455vb4pex5vsknk084sn02q:3:$.name"


def test_a_stored_text_is_what_the_documentation_says():
    text = seal(KEY, b'"Ada"', PLACE)

    body = text.removeprefix("1.")
    raw = urlsafe_b64decode(body + "=" * (-len(body) % 4))

    assert text.startswith("1.")
    assert raw[:16] == KEY.id.bytes
    assert AESGCM(KEY.secret).decrypt(raw[16:28], raw[28:], PLACE.encode()) == b'"Ada"'
    assert key_ids_in(f'{{"a":{{"$personal": "{text}"}}}}') == {KEY.id}


def test_equal_values_have_different_texts_and_are_opened_at_their_place_only():
    text, other = seal(KEY, b"1", PLACE), seal(KEY, b"1", PLACE)

    assert text != other
    assert open_sealed(parsed(text), KEY.secret, PLACE) == b"1"
    with pytest.raises(CannotOpen):
        open_sealed(parsed(text), KEY.secret, PLACE + "x")
    with pytest.raises(CannotOpen):
        open_sealed(parsed(text), os.urandom(32), PLACE)


def test_requests_are_compared_by_the_subjects_own_key():
    assert compared(KEY.secret, b"1") == compared(KEY.secret, b"1")
    assert compared(KEY.secret, b"1") != compared(KEY.secret, b"2")
    assert compared(KEY.secret, b"1") != compared(os.urandom(32), b"1")
