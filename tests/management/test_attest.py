from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from eventlogs.seals.documents import replace
from eventlogs.seals.files import read_seals
from eventlogs.seals.keys import new_pair
from tests.accounts import Account, Deposited
from tests.management.test_seal import SECRET
from tests.seals.conftest import owner as owner
from tests.seals.histories import PUBLIC, events

pytest.importorskip("cryptography")
pytestmark = pytest.mark.feed


@pytest.fixture
def log(settings, request):
    settings.EVENTLOGS = {"CHAIN": True, "SEAL_KEY": SECRET}
    return request.getfixturevalue("account")


@pytest.fixture
def seals(log, run, tmp_path) -> Path:
    """A file with one seal."""
    path = tmp_path / "seals.jsonl"
    run("seal", "--output", path)
    return path


def test_a_history_is_proved(seals, run):
    told = run("attest", seals)

    assert "proved, 1 log with 3 events." in told


def test_the_verdicts_are_told_as_json(seals, run_json):
    told = run_json("attest", seals)

    assert (told["proved"], told["logs"], told["events"], told["findings"]) == (True, 1, 3, [])
    assert [each["state"] for each in told["seals"]] == ["proved"]


def test_a_changed_event_is_a_finding(seals, owner, run, log):
    events().filter(log_id=log.uuid, index=1).update(data={"amount": 101})

    with pytest.raises(CommandError, match="0 of 1 seal proved, 1 finding") as caught:
        run("attest", seals)

    assert caught.value.returncode == 1


def test_what_differs_is_told(seals, owner, log, run):
    events().filter(log_id=log.uuid, index=1).update(data={"amount": 101})
    out = StringIO()

    with pytest.raises(CommandError):
        call_command("eventlogs", "attest", str(seals), stdout=out)

    assert "DIFFERS: the root is another one" in out.getvalue()
    assert f"{log} event 1: it does not fit its digest" in out.getvalue()


def test_a_forged_seal_is_a_finding(seals, run):
    [seal] = read_seals(seals)
    seals.write_text(replace(seal, events=4).line)

    with pytest.raises(CommandError, match="0 of 1 seal proved"):
        run("attest", seals)


def test_only_the_keys_of_the_options_are_trusted(seals, run):
    _, other = new_pair()

    assert "proved" in run("attest", seals, "--public-key", PUBLIC)
    with pytest.raises(CommandError, match="0 of 1 seal proved"):
        run("attest", seals, "--public-key", other)
    with pytest.raises(CommandError, match="32 bytes in base64"):
        run("attest", seals, "--public-key", "nonsense")


def test_an_export_is_proved(seals, run, tmp_path):
    run("export", tmp_path / "all.jsonl")

    assert "proved, 1 log with 3 events." in run(
        "attest", seals, "--export", tmp_path / "all.jsonl"
    )


def test_an_export_with_another_event_is_not(seals, run, tmp_path):
    path = tmp_path / "all.jsonl"
    run("export", path)
    path.write_text(path.read_text().replace('"Ada"', '"Eve"'))

    with pytest.raises(CommandError, match="0 of 1 seal proved"):
        run("attest", seals, "--export", path)


def test_leaves_are_compared(log, run, tmp_path):
    seals, leaves = tmp_path / "seals.jsonl", tmp_path / "leaves"
    run("seal", "--output", seals, "--leaves", leaves)

    assert "proved" in run("attest", seals, "--leaves", leaves)
    leaves.write_text(leaves.read_text().replace(" 3 ", " 2 "))
    with pytest.raises(CommandError, match="leaves of another seal"):
        run("attest", seals, "--leaves", leaves)


def test_a_proof_is_written_to_a_new_file(seals, log, run, tmp_path):
    path = tmp_path / "proof.json"

    run("attest", seals, "--log", log, "--proof", path)

    proof = json.loads(path.read_text())
    assert (proof["log"], proof["events"]) == (str(log), 3)
    with pytest.raises(CommandError, match="already exists"):
        run("attest", seals, "--log", log, "--proof", path)


def test_a_proof_is_the_output(seals, log, run):
    assert json.loads(run("attest", seals, "--log", log, "--proof", "-"))["log"] == str(log)


def test_a_log_that_is_newer_has_no_proof(seals, run):
    state = Account.logs.create(Deposited(amount=1))

    with pytest.raises(CommandError, match="is not under the last seal"):
        run("attest", seals, "--log", state.log_id, "--proof", "-")


@pytest.mark.parametrize(
    "options", [["--proof", "-"], ["--log", "account_01h455vb4pex5vsknk084sn02q"]]
)
def test_log_and_proof_go_together(seals, run, options):
    with pytest.raises(CommandError, match="go together"):
        run("attest", seals, *options)


def test_a_file_that_is_not_there_is_named(log, run, tmp_path):
    with pytest.raises(CommandError, match="No such file") as caught:
        run("attest", tmp_path / "nothing.jsonl")

    assert caught.value.returncode == 2


def test_a_file_that_is_no_seal_is_refused(log, run, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear Ada,\n")

    with pytest.raises(CommandError, match="it is not a seal"):
        run("attest", tmp_path / "letter.txt")
