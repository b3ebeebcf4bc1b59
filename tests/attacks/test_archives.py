"""Archives: somebody who can write to their storage, and a thief who has copies of the files."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from eventlogs import (
    ArchiveUnavailable,
    CannotErase,
    LogArchived,
    LogId,
    LogManager,
    LogState,
)
from eventlogs.archives import Retention
from eventlogs.archives.frames import file_digest
from eventlogs.events.codec import request_fingerprints
from eventlogs.models import ArchivedLog
from eventlogs.operations import archiving
from eventlogs.operations.archiving import manifests
from eventlogs.privacy import memory
from eventlogs.privacy.encryption import CannotOpen
from eventlogs.seals import make_seal
from eventlogs.seals.attesting import DIFFERS
from eventlogs.seals.documents import replace
from eventlogs.seals.keys import Trusted
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.attacks.conftest import sql
from tests.attacks.test_owners import verdicts
from tests.attacks.test_thieves import (
    ADA,
    ANOTHER_KEY,
    JOINED,
    SECRETS,
    guesses_of_request,
    open_name,
    secret_of,
)
from tests.guests import SETTINGS, Guest
from tests.operations.archiving.conftest import use
from tests.seals.histories import OTHER_SECRET, SECRET

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def directory(tmp_path: Path, settings: Any) -> Path:
    use(settings, tmp_path / "archives", CHAIN=True, SEAL_KEY=SECRET)
    return tmp_path / "archives"


@pytest.fixture
def archived(directory: Path) -> list[tuple[LogId, Path]]:
    """Two archived logs, each in a file of its own."""
    found = []
    for name in ("Ann", "Bob"):
        state = Account.logs.create(Opened(owner=name), Deposited(amount=5), Withdrawn(amount=5))
        [file] = archiving.archive(by="grace").files
        found.append((state.log_id, directory / file))
    return found


def problems() -> list[str]:
    return [each.problem for each in archiving.check() if each.problem]


# Somebody who can write to the storage


def change(file: Path, other: Path) -> None:
    text = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(text.replace(b"Ann", b"Eve")))


def truncate(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-150])


def delete(file: Path, other: Path) -> None:
    file.unlink()


def swap(file: Path, other: Path) -> None:
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("attack", [change, truncate, delete, swap])
def test_a_file_that_was_changed_is_never_believed(archived, attack):
    (log_id, file), (_, other) = archived
    attack(file, other)

    with pytest.raises(ArchiveUnavailable):
        Account.logs.reduce(log_id)
    assert len(problems()) == (2 if attack is swap else 1)


def manifest_of(file: Path) -> Path:
    return file.with_name(file.name + manifests.SUFFIX)


@pytest.mark.parametrize("member", ["sha256", "events", "root", "time"])
def test_a_manifest_that_was_changed_is_named(archived, member):
    [(_, file), _] = archived
    members = json.loads(manifest_of(file).read_text())
    was = members[member]
    # A digit of it; not every digest has a certain one.
    members[member] = 99 if member == "events" else f"{was[:3]}{int(was[3], 16) ^ 1:x}{was[4:]}"
    manifest_of(file).write_text(json.dumps(members))

    assert len(problems()) == 1


@pytest.mark.parametrize("secret", ["", OTHER_SECRET])
def test_a_file_that_was_changed_with_its_manifest_is_named(archived, settings, secret):
    [(log_id, file), _] = archived
    own = settings.EVENTLOGS
    change(file, file)
    with file.open("rb") as stream:
        size, digest = file_digest(stream)
    name = ArchivedLog.objects.get(pk=log_id.uuid).archive.name
    unsigned = {"key": "", "signature": ""}
    forged = replace(manifests.read(name), size=size, sha256=digest.hex(), **unsigned)
    if secret:
        settings.EVENTLOGS = {**own, "SEAL_KEY": secret}
        forged = manifests.signed(forged)
        settings.EVENTLOGS = own
    manifest_of(file).write_bytes(manifests.text_of(forged))

    assert problems() == ["the file was changed"]
    with pytest.raises(ArchiveUnavailable):
        Account.logs.reduce(log_id)
    # Without the database, the signature shows it: there is none, or it is that of another key.
    told = manifests.read(name)
    assert Trusted().why_not(told) is not None


# The application's role


@pytest.mark.postgresql
def test_the_application_takes_no_logs_out(as_application, directory):
    with as_application(), pytest.raises(CannotErase):
        archiving.archive(by="me")

    assert not ArchivedLog.objects.exists()


@pytest.mark.postgresql
@pytest.mark.fence
def test_an_event_that_is_put_behind_an_archived_log_is_seen_by_a_seal(
    as_application, log, directory
):
    state = Account.logs.create(Opened(owner="Ann"))
    archiving.archive(by="grace")
    seal = make_seal()
    with as_application():
        with pytest.raises(LogArchived):
            Account.logs.append(state, Deposited(amount=1))
        sql(
            "INSERT INTO eventlogs_event (log_id, log_type, index, type, schema_version, data,"
            " metadata, recorded_at) VALUES (%s, 'account', 1, 'account.deposited', 1,"
            " '{\"amount\": 99}', '{}', now())",
            state.log_id.uuid,
        )

    assert verdicts(seal) == [DIFFERS]


# A thief with the files


@pytest.fixture
def stolen(directory, settings) -> tuple[LogId, str]:
    """A guest with personal fields, and the text of the archive that the guest is in."""
    closed = Retention("visitor", timedelta(microseconds=1))
    use(settings, directory, **SETTINGS, RETENTION=[closed])
    memory.clear()
    guests = LogManager(Guest)
    state = guests.create(JOINED, metadata={"ip": SECRETS[2], "person": ADA}, idempotency_key="k")
    [name] = archiving.archive(by="grace").files
    return state.log_id, gzip.decompress((directory / name).read_bytes()).decode()


def test_files_have_no_personal_text(stolen):
    log_id, text = stolen

    assert [each for each in SECRETS if each in text] == []
    for each in (ADA, "visitor.joined", '"name"', str(log_id)):  # what is not hidden
        assert each in text


def test_values_in_files_do_not_open_with_secret_key_or_another_key(stolen, settings):
    log_id, text = stolen
    line = json.loads(text.splitlines()[1])
    name = line["data"]["name"]["$personal"]
    state = LogState(log_id, 1, 1)

    for secret in (sha256(settings.SECRET_KEY.encode()).digest(), b64decode(ANOTHER_KEY)):
        with pytest.raises(CannotOpen):
            open_name(name, secret, state)
    assert open_name(name, secret_of(ADA), state) == JOINED.name
    fingerprint = bytes.fromhex(line["claim"]["fingerprint"])
    guesses = guesses_of_request(settings.SECRET_KEY)
    assert [fingerprint in request_fingerprints([each]) for each in guesses] == [False] * 4
