"""The example's key store, with a real token of PKCS#11: SoftHSM."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventlogs import KeyUnavailable
from eventlogs.models import SubjectKey
from eventlogs.privacy import BaseKeyStore, memory
from eventlogs.testing.contracts.key_stores import KeyStoreContract
from tests.people import Admitted, Patient

pkcs11 = pytest.importorskip("pkcs11")
hsm_keys = pytest.importorskip("example_project.hsm_keys")
LIBRARIES = [
    *Path("/usr/lib").glob("*/softhsm/libsofthsm2.so"),
    *Path("/usr/lib/softhsm").glob("libsofthsm2.so"),
    *Path("/opt/homebrew/lib/softhsm").glob("libsofthsm2.so"),
]
if not LIBRARIES or shutil.which("softhsm2-util") is None:
    pytest.skip("SoftHSM is not installed: apt-get install softhsm2", allow_module_level=True)

TOKEN, PIN = "eventlogs", "1234"
autocommit = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A token with two keys that cannot be read out of it."""
    directory = tmp_path_factory.mktemp("softhsm")
    (directory / "tokens").mkdir()
    (directory / "softhsm2.conf").write_text(f"directories.tokendir = {directory}/tokens\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(directory / "softhsm2.conf")
    init = ["softhsm2-util", "--init-token", "--free", "--label", TOKEN]
    subprocess.run([*init, "--pin", PIN, "--so-pin", "5678"], check=True, capture_output=True)
    library = str(LIBRARIES[0])
    token = pkcs11.lib(library).get_token(token_label=TOKEN)
    with token.open(user_pin=PIN, rw=True) as session:
        for label in ("old", "new"):
            session.generate_key(pkcs11.KeyType.AES, 256, label=label, store=True)
    yield library
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


def made(library: str, *labels: str) -> Any:
    return hsm_keys.HSMKeyStore(library=library, token=TOKEN, pin=PIN, labels=labels)


@autocommit
class TestHSMKeyStore(KeyStoreContract):
    @pytest.fixture
    def key_store(self, hsm: str) -> BaseKeyStore:
        return made(hsm, "old")


@autocommit
def test_a_rotation_moves_the_keys_to_another_key_of_the_hsm(hsm):
    keys = made(hsm, "old").for_subjects(["a", "b"])

    assert made(hsm, "new", "old").rotate() == 2

    assert set(SubjectKey.objects.values_list("wrapped_by", flat=True)) == {"new"}
    assert made(hsm, "new").for_subjects(["a", "b"]) == keys


@autocommit
def test_a_key_that_the_hsm_lacks_is_an_error(hsm):
    with pytest.raises(KeyUnavailable, match="cannot use its key 'lost' \\(NoSuchKey\\)"):
        made(hsm, "lost").for_subjects(["a"])


@autocommit
def test_personal_data_are_stored_and_read_by_it(hsm: str, settings: Any) -> None:
    options = {"library": hsm, "token": TOKEN, "pin": PIN, "labels": ["new"]}
    backend = "example_project.hsm_keys.HSMKeyStore"
    settings.EVENTLOGS = {"KEY_STORE": {"BACKEND": backend, "OPTIONS": options}}
    memory.clear()
    state = Patient.logs.create(Admitted(1, "Ann"))

    assert Patient.logs.reduce(state.log_id).aggregate.name == "Ann"
