"""Seals as text."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from eventlogs.exceptions import InvalidSeal
from eventlogs.seals.documents import Seal, replace, seal_of, seals_in

SEAL = Seal(
    position=7,
    root="ab" * 32,
    logs=2,
    events=7,
    unchained=1,
    erased=0,
    time="2026-11-24T12:00:00.000000Z",
    previous=None,
    key="0123456789abcdef",
    signature="c2ln",
)


def test_a_seal_is_read_as_it_was_written():
    assert seal_of(SEAL.line.encode()) == SEAL


def test_what_is_signed_is_the_documented_form():
    assert SEAL.signed == (
        b"eventlogs seal\n"
        b'{"erased":0,"events":7,"format":"eventlogs-seal","key":"0123456789abcdef","logs":2,'
        b'"position":7,"previous":null,"root":"' + b"ab" * 32 + b'",'
        b'"time":"2026-11-24T12:00:00.000000Z","unchained":1,"version":1}'
    )
    assert SEAL.digest == sha256(SEAL.signed).hexdigest()


def test_each_member_but_the_signature_is_signed():
    others = {"root": "cd" * 32, "time": "2026-11-25T12:00:00.000000Z", "key": "0" * 16}

    for name, value in SEAL.as_json().items():
        other = others.get(name, 9 if isinstance(value, int) else "other")
        is_same = replace(SEAL, **{name: other}).signed == SEAL.signed
        assert is_same == (name == "signature")


@pytest.mark.parametrize(
    "changed",
    [
        {"position": "7"},
        {"position": None},
        {"more": 1},
        {"format": "other"},
        {"root": "ab"},
        {"root": "zz" * 32},
        {"time": "yesterday"},
        {"time": "2026-11-24T12:00:00"},
        {"previous": 1},
    ],
)
def test_another_document_is_no_seal(changed):
    text = json.dumps({**SEAL.as_json(), **changed})

    with pytest.raises(InvalidSeal, match="it is not a seal"):
        seal_of(text.encode())


def test_a_newer_version_is_not_read():
    text = json.dumps({**SEAL.as_json(), "version": 2})

    with pytest.raises(InvalidSeal, match="version is 2"):
        seal_of(text.encode())


def test_a_file_has_a_seal_in_each_line():
    lines = [SEAL.line.encode(), SEAL.line.encode()]

    assert list(seals_in(lines)) == [SEAL, SEAL]


@pytest.mark.parametrize(("lines", "number"), [([], 1), ([SEAL.line.encode(), b"{}\n"], 2)])
def test_a_line_that_is_no_seal_is_named(lines, number):
    with pytest.raises(InvalidSeal) as caught:
        list(seals_in(lines))

    assert caught.value.line == number
