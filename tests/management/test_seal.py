from __future__ import annotations

import json

import pytest
from django.core.management import CommandError

from eventlogs.seals.appended import SealLog
from eventlogs.seals.documents import seal_of
from eventlogs.seals.files import read_leaves, read_seals
from eventlogs.seals.keys import Trusted

pytest.importorskip("cryptography")
pytestmark = pytest.mark.feed

SECRET = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@pytest.fixture
def sealed(settings, db, account_of_chain):
    """A chained log, and a key."""


@pytest.fixture
def account_of_chain(settings, request):
    settings.EVENTLOGS = {"CHAIN": True, "SEAL_KEY": SECRET}
    return request.getfixturevalue("account")


def test_a_seal_is_written_to_the_standard_output(sealed, run):
    seal = seal_of(run("seal").encode())

    assert (seal.logs, seal.events) == (1, 3)
    assert Trusted().why_not(seal) is None


def test_a_seal_is_appended_to_a_file(sealed, run, tmp_path):
    path = tmp_path / "seals.jsonl"

    told = run("seal", "--output", path)
    run("seal", "--output", path)

    assert "a seal at position" in told
    assert "over 1 log with 3 events" in told
    first, second = read_seals(path)
    assert second.previous == first.digest


def test_a_seal_is_appended_to_the_log_of_seals(sealed, run):
    run("seal", "--append")

    assert SealLog("default").last()[1] == 1


def test_the_seal_is_told_as_json(sealed, run_json, tmp_path):
    told = run_json("seal", "--output", tmp_path / "seals.jsonl")

    assert (told["logs"], told["events"]) == (1, 3)


def test_leaves_are_written_to_a_new_file(sealed, run, tmp_path, account):
    run("seal", "--leaves", tmp_path / "leaves")

    [leaf] = read_leaves(tmp_path / "leaves")
    assert leaf.log_id == account
    with pytest.raises(CommandError, match="already exists"):
        run("seal", "--leaves", tmp_path / "leaves")


def test_logs_without_a_chain_are_told(sealed, settings, run, tmp_path):
    settings.EVENTLOGS = {"SEAL_KEY": SECRET}
    from_now = run("seal", "--append")  # its own log has no chain
    told = run("seal", "--output", tmp_path / "seals.jsonl")

    assert json.loads(from_now)["unchained"] == 0
    assert "1 log has no chain: the seal says nothing about it" in told


def test_a_new_key_is_a_pair_of_settings(run, run_json, settings, db):
    settings.EVENTLOGS = {}
    assert '"SEAL_KEY": "' in run("seal", "--new-key")

    pair = run_json("seal", "--new-key")

    settings.EVENTLOGS = {"SEAL_KEY": pair["secret"]}
    assert Trusted([pair["public"]])


def test_without_a_key_it_says_how_to_make_one(run, settings, account):
    settings.EVENTLOGS = {}

    with pytest.raises(CommandError, match="--new-key") as caught:
        run("seal")

    assert caught.value.returncode == 2


def test_a_file_that_cannot_be_written_is_named(sealed, run, tmp_path):
    with pytest.raises(CommandError, match="cannot be written"):
        run("seal", "--output", tmp_path / "nowhere" / "seals.jsonl")


def test_another_file_is_left_alone(sealed, run, tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear Ada,\n")

    with pytest.raises(CommandError, match="it is not a seal"):
        run("seal", "--output", path)

    assert path.read_text() == "Dear Ada,\n"
