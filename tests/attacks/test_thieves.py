"""A thief with a dump of the database, and with more and more of the settings."""

from __future__ import annotations

import gzip
import hmac
import json
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from django.db.models import QuerySet
from msgspec.structs import replace

from eventlogs import KeyUnavailable, LogManager, LogState
from eventlogs.archives import Retention
from eventlogs.events import chain
from eventlogs.events.codec import EncodedEvent, codec_for, request_fingerprints
from eventlogs.events.registry import registry
from eventlogs.events.sealed import place_of
from eventlogs.events.unique import Unique, unique_value
from eventlogs.models import ErasedLog, Event, IdempotencyKey, SubjectKey, UniqueValue
from eventlogs.operations import archiving
from eventlogs.operations.erasure import erase
from eventlogs.privacy import encryption, forget, key_store, memory, sealing
from eventlogs.privacy.encryption import CannotOpen, open_sealed, parsed
from eventlogs.stores import digested_events
from tests.guests import SETTINGS, Guest, Joined, Paid
from tests.members import EMAIL as MEMBER_EMAIL
from tests.members import Joined as MemberJoined
from tests.members import Member
from tests.operations.archiving.conftest import use
from tests.operations.guest_rows import KNOWN, InlineNamed
from tests.projections.tables import made
from tests.reliability.test_restored_backups import dump, needs_programs

ADA, BOB = "member:1", "member:2"
NAME, EMAIL, IP, OTHER_NAME = "Countess Lovelace", "ada@example.com", "192.0.2.77", "Bob Cratchit"
SECRETS = [NAME, EMAIL, IP, OTHER_NAME]
JOINED = Joined(ADA, NAME, email=EMAIL)
PERSONAL_EMAIL = Unique("visitor.email")
ANOTHER_KEY = b64encode(bytes(32)).decode()


@pytest.fixture(autouse=True)
def _settings(transactional_db: None, settings: Any) -> Iterator[None]:
    settings.EVENTLOGS = {**SETTINGS, "CHAIN": True}
    memory.clear()
    yield
    memory.clear()


@pytest.fixture
def guests() -> LogManager[Guest]:
    return LogManager(Guest)


@pytest.fixture
def ada(guests: LogManager[Guest]) -> LogState:
    return guests.create(JOINED, metadata={"ip": IP, "person": ADA}, idempotency_key="join-ada")


@pytest.fixture
def bob(guests: LogManager[Guest]) -> LogState:
    return guests.create(Joined(BOB, OTHER_NAME))


def stored_name(state: LogState) -> str:
    """Return the ciphertext of the name, as it is in a dump."""
    text: str = Event.objects.get(log_id=state.log_id.uuid, index=0).data["name"]["$personal"]
    return text


def open_name(text: str, secret: bytes, state: LogState) -> str:
    name: str = json.loads(open_sealed(parsed(text), secret, place_of(state.log_id, 0, "$.name")))
    return name


def plain_of(event: Joined) -> str:
    """Return the JSON that an event would have without encryption: what a thief can guess."""
    members = {
        "person": event.person,
        "name": event.name,
        "friend": event.friend,
        "friend_name": event.friend_name,
        "email": event.email,
    }
    return json.dumps(members, separators=(",", ":"))


# With a dump


@pytest.mark.postgresql
@needs_programs
def test_a_dump_has_no_personal_text(ada, bob, tmp_path: Path, settings):
    closed = Retention("visitor", timedelta(microseconds=1))
    use(settings, tmp_path / "archives", RETENTION=[closed])
    dump("default", tmp_path / "dump.sql")
    text = (tmp_path / "dump.sql").read_text()
    [name] = archiving.archive(by="grace").files
    dump("default", tmp_path / "archived.sql")
    after = (tmp_path / "archived.sql").read_text()
    after += gzip.decompress((tmp_path / "archives" / name).read_bytes()).decode()

    assert [each for each in SECRETS if each in text + after] == []
    assert str(ada.log_id) in after
    assert "eventlogs_subjectkey" in text
    # What is not hidden: subjects, types, names of fields, keys of requests.
    for each in (ADA, "visitor.joined", '"name"', "join-ada"):
        assert each in text


@pytest.mark.postgresql
@needs_programs
def test_a_dump_has_rows_of_read_models_as_they_are(guests, tmp_path: Path):
    with made(InlineNamed), KNOWN.declared("guests-inline"):
        guests.create(JOINED)
        dump("default", tmp_path / "dump.sql")
        assert NAME in (tmp_path / "dump.sql").read_text()

        forget(ADA)
        dump("default", tmp_path / "after.sql")
        assert NAME not in (tmp_path / "after.sql").read_text()


def test_keys_of_a_dump_do_not_open_with_another_key(ada, settings):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "ENCRYPTION_KEYS": [ANOTHER_KEY]}
    row = SubjectKey.objects.get(subject=ADA)

    with pytest.raises(KeyUnavailable, match="lacks the key"):
        encryption.unwrapped(bytes(row.wrapped), row.wrapped_by, row.id.bytes)
    [own] = encryption.wrapping_keys()
    with pytest.raises(KeyUnavailable, match="was changed"):
        encryption.unwrapped(bytes(row.wrapped), own.id, row.id.bytes)


def test_values_of_a_dump_do_not_open_with_another_key(ada, bob):
    text = stored_name(ada)

    for secret in (os.urandom(32), secret_of(BOB)):
        with pytest.raises(CannotOpen):
            open_name(text, secret, ada)
    assert open_name(text, secret_of(ADA), ada) == NAME


def secret_of(subject: str) -> bytes:
    """Return a subject's key: what a thief gets with ENCRYPTION_KEYS."""
    row = SubjectKey.objects.get(subject=subject)
    return encryption.unwrapped(bytes(row.wrapped), row.wrapped_by, row.id.bytes)


def test_equal_values_of_two_events_look_different(guests, ada):
    again = guests.append(ada, Joined(ADA, NAME))
    [first, second] = Event.objects.filter(log_id=again.log_id.uuid).order_by("index")

    assert first.data["name"] != second.data["name"]


def test_a_digest_of_a_chain_confirms_no_guess_of_a_personal_value(ada):
    [(event, digest)] = digested_events.of_log("default", ada.log_id.uuid)
    guess = replace(event, data=plain_of(JOINED))

    assert chain.digest(None, event) == digest
    assert chain.digest(None, guess) != digest


def test_the_digest_of_an_ordinary_unique_value_confirms_a_guess():
    LogManager(Member).create(MemberJoined(EMAIL))

    guess = unique_value(MEMBER_EMAIL, EMAIL)
    assert UniqueValue.objects.get(scope=guess.scope).digest == guess.digest


def test_the_digest_of_a_tombstone_confirms_a_guess_of_a_whole_log(guests):
    """Of a log without personal fields, with the times of its events to the microsecond."""
    state = guests.create(Paid(500))
    [(event, _)] = digested_events.of_log("default", state.log_id.uuid)
    erase(state.log_id, reason="a test", by="grace")

    guesses = [replace(event, data=f'{{"amount": {amount}}}') for amount in (400, 500, 600)]
    found = [chain.digest(None, each) for each in guesses]
    assert found.index(bytes(ErasedLog.objects.get().digest)) == 1


def test_the_digest_of_a_tombstone_confirms_no_guess_of_a_personal_value(ada):
    [(event, digest)] = digested_events.of_log("default", ada.log_id.uuid)
    erase(ada.log_id, reason="a test", by="grace")

    assert bytes(ErasedLog.objects.get().digest) == digest
    assert chain.digest(None, replace(event, data=plain_of(JOINED))) != digest


# With a dump and SECRET_KEY: the functions below use the one of the settings


def guesses_of_request(secret_key: str) -> list[EncodedEvent]:
    """Return what a request may have been compared by, if each personal value is guessed."""
    codec = codec_for(registry.by_class(Joined))
    encoded = codec.encode(JOINED, 10_000)
    assert json.loads(encoded.data) == json.loads(plain_of(JOINED))
    ways: list[Callable[[bytes], str]] = [
        lambda plain: sha256(plain).hexdigest(),
        lambda plain: hmac.digest(secret_key.encode(), plain, "sha256").hex(),
        lambda plain: hmac.digest(
            hmac.digest(secret_key.encode(), b"eventlogs.fingerprint", "sha256"), plain, "sha256"
        ).hex(),
    ]
    texts = [encoded.data]
    for way in ways:
        text = encoded.data
        for value in (NAME, EMAIL):
            plain = json.dumps(value)
            text = text.replace(plain, f'{{"$personal":"{way(plain.encode())}"}}')
        texts.append(text)
    return [EncodedEvent(encoded.type, encoded.schema_version, text) for text in texts]


def confirmed(guesses: list[EncodedEvent]) -> list[bool]:
    [stored] = IdempotencyKey.objects.filter(key="join-ada")
    return [bytes(stored.fingerprint) in request_fingerprints([each]) for each in guesses]


def test_a_fingerprint_confirms_no_guess_of_a_personal_value(ada, settings):
    stored = Event.objects.get(log_id=ada.log_id.uuid).data
    guesses = guesses_of_request(settings.SECRET_KEY)
    ciphertext = json.dumps(stored, separators=(",", ":"))
    guesses.append(EncodedEvent("visitor.joined", 1, ciphertext))

    assert confirmed(guesses) == [False] * 5


def test_a_broken_version_that_compares_without_the_key_of_the_person_confirms_a_guess(
    guests, settings, monkeypatch
):
    monkeypatch.setattr(sealing, "compared", lambda secret, plain: sha256(plain).hexdigest())
    guests.create(JOINED, idempotency_key="join-ada")

    assert confirmed(guesses_of_request(settings.SECRET_KEY)) == [False, True, False, False]


def test_a_fingerprint_confirms_a_guess_of_an_event_without_personal_values(guests):
    guests.create(Paid(500), idempotency_key="pay")
    [stored] = IdempotencyKey.objects.filter(key="pay")
    codec = codec_for(registry.by_class(Paid))

    found = [
        bytes(stored.fingerprint) in request_fingerprints([codec.encode(Paid(amount), 1_000)])
        for amount in (400, 500, 600)
    ]
    assert found == [False, True, False]


def test_a_unique_digest_confirms_no_guess_of_a_personal_value(guests, ada, settings):
    [stored] = UniqueValue.objects.filter(scope="visitor.email")

    keys = [None, settings.SECRET_KEY.encode(), secret_of(ADA)]
    found = [unique_value(PERSONAL_EMAIL, EMAIL, key).digest for key in keys]
    assert stored.digest not in found
    assert guests.find("visitor.email", EMAIL) == ada.log_id  # with the key of digests


# With a dump, SECRET_KEY and ENCRYPTION_KEYS


def test_with_all_keys_all_that_is_not_forgotten_is_read_and_nothing_else(guests, ada, bob):
    texts = stored_name(ada), stored_name(bob)
    forget(ADA)

    assert open_name(texts[1], secret_of(BOB), bob) == OTHER_NAME
    row = SubjectKey.objects.get(subject=ADA)
    assert (row.wrapped, row.wrapped_by) == (None, "")
    others = [secret_of(each.subject) for each in SubjectKey.objects.exclude(subject=ADA)]
    assert len(others) >= 2  # that of digests, too
    for secret in others:
        with pytest.raises(CannotOpen):
            open_name(texts[0], secret, ada)
    assert guests.reduce(ada.log_id).aggregate.name == "erased"


def test_a_dump_of_the_keys_from_before_reads_a_forgotten_person(ada):
    text = stored_name(ada)
    [older] = SubjectKey.objects.filter(subject=ADA).values()
    forget(ADA)

    secret = encryption.unwrapped(bytes(older["wrapped"]), older["wrapped_by"], older["id"].bytes)
    assert open_name(text, secret, ada) == NAME


def test_with_the_key_of_digests_a_guess_of_a_unique_value_is_confirmed(ada):
    stored = UniqueValue.objects.get(scope="visitor.email")

    assert unique_value(PERSONAL_EMAIL, EMAIL, secret_of("$unique")).digest == stored.digest


def test_a_rotation_does_not_help_against_a_thief_who_has_the_old_key(ada, settings):
    [older] = SubjectKey.objects.filter(subject=ADA).values()
    secret = secret_of(ADA)
    settings.EVENTLOGS = {
        **settings.EVENTLOGS,
        "ENCRYPTION_KEYS": [ANOTHER_KEY, *settings.EVENTLOGS["ENCRYPTION_KEYS"]],
    }
    key_store().rotate()

    assert bytes(SubjectKey.objects.get(subject=ADA).wrapped) != bytes(older["wrapped"])
    assert secret_of(ADA) == secret


def test_rows_of_keys_cannot_be_exchanged(ada, bob):
    """Who writes to the table cannot give a person the key of another."""
    rows: QuerySet[SubjectKey] = QuerySet(SubjectKey)
    other = SubjectKey.objects.get(subject=BOB)
    rows.filter(subject=ADA).update(wrapped=other.wrapped, wrapped_by=other.wrapped_by)

    with pytest.raises(KeyUnavailable, match="was changed"):
        secret_of(ADA)
