"""Ed25519 signatures."""

from __future__ import annotations

from eventlogs.seals import signing

# The first two test vectors of RFC 8032, section 7.1.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
    "d25bf5f0595bbe24655141438e7a100b"
)


def test_signatures_are_those_of_rfc_8032():
    assert signing.public_of(SECRET) == PUBLIC
    assert signing.sign(SECRET, b"") == SIGNATURE
    assert signing.is_signed(PUBLIC, b"", SIGNATURE)


def test_another_message_key_or_signature_is_refused():
    other = signing.public_of(signing.new_secret())

    assert not signing.is_signed(PUBLIC, b"x", SIGNATURE)
    assert not signing.is_signed(other, b"", SIGNATURE)
    assert not signing.is_signed(PUBLIC, b"", bytes(64))
    assert not signing.is_signed(PUBLIC, b"", b"short")


def test_new_keys_differ():
    assert signing.new_secret() != signing.new_secret()
