"""The keys of seals."""

from __future__ import annotations

import pytest

from eventlogs.exceptions import SealUnavailable
from eventlogs.seals import keys
from eventlogs.seals.documents import replace
from eventlogs.seals.keys import Trusted
from tests.seals.histories import OTHER_SECRET, PUBLIC, SECRET
from tests.seals.test_documents import SEAL


@pytest.fixture
def signed(settings):
    settings.EVENTLOGS = {"SEAL_KEY": SECRET}
    return keys.signed(SEAL)


def test_a_seal_is_signed_by_the_key_of_the_settings(signed):
    assert signed.key == keys.key_id(keys.key_of(PUBLIC))
    assert Trusted([PUBLIC]).why_not(signed) is None


def test_by_default_the_own_key_is_trusted(signed):
    assert Trusted().why_not(signed) is None


def test_a_machine_that_only_attests_needs_no_secret_key(signed, settings):
    settings.EVENTLOGS = {"SEAL_PUBLIC_KEYS": [PUBLIC]}

    assert Trusted().why_not(signed) is None


def test_seals_of_an_earlier_key_stay_trusted(signed, settings):
    settings.EVENTLOGS = {"SEAL_KEY": OTHER_SECRET, "SEAL_PUBLIC_KEYS": [PUBLIC]}

    assert Trusted().why_not(signed) is None
    assert Trusted().why_not(keys.signed(SEAL)) is None


def test_a_seal_of_another_key_is_not_trusted(signed):
    _, other = keys.new_pair()

    assert "not trusted here" in Trusted([other]).why_not(signed)


@pytest.mark.parametrize(
    "change", [{"events": 8}, {"signature": ""}, {"signature": "?"}, {"signature": "AAAA"}]
)
def test_a_changed_seal_is_not_trusted(signed, change):
    assert "its signature is wrong" in Trusted([PUBLIC]).why_not(replace(signed, **change))


def test_without_a_key_nothing_is_signed_or_trusted(settings):
    settings.EVENTLOGS = {}

    with pytest.raises(SealUnavailable, match="SEAL_KEY"):
        keys.signed(SEAL)
    with pytest.raises(SealUnavailable, match="SEAL_PUBLIC_KEYS"):
        Trusted()


def test_a_new_pair_belongs_together(settings):
    secret, public = keys.new_pair()
    settings.EVENTLOGS = {"SEAL_KEY": secret}

    assert Trusted([public]).why_not(keys.signed(SEAL)) is None


@pytest.mark.parametrize("text", ["", "abc", "AAAA", PUBLIC + "AAAA", "ä"])
def test_another_text_is_no_key(text):
    with pytest.raises(ValueError, match="32 bytes"):
        keys.key_of(text)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    def missing(_: str) -> None:
        raise ImportError("no such module", name="cryptography.exceptions")

    monkeypatch.setattr(keys, "import_string", missing)

    with pytest.raises(SealUnavailable, match=r"eventlogs\[privacy\]"):
        keys.signing()
