"""Proofs of single logs, which docs/check_proof.py checks without a database."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eventlogs import LogState
from eventlogs.conf import MAX_POSITION
from eventlogs.operations import jsonl
from eventlogs.seals import make_seal
from eventlogs.seals.proofs import proof_document
from tests.accounts import Account, Deposited, Noted
from tests.processes import ROOT
from tests.seals.histories import OTHER_SECRET, PUBLIC

pytestmark = pytest.mark.feed

SCRIPT = ROOT / "docs" / "check_proof.py"
UNUSUAL = {
    "text": 'ä "quoted" \\ \n \x1f \u2028 😀',
    "long name": [1, -1, 0, 2**60, 1.5, 1e-7],
    "b": {"nothing": None, "yes": True, "no": False, "empty": [{}, []]},
}


def check(proof: Any, *more: Any, key: str = PUBLIC, tmp_path: Path) -> subprocess.CompletedProcess:
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(proof))
    # -I: in an environment of its own, without this project on the path.
    command = [sys.executable, "-I", SCRIPT, path, key, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def export(state: LogState, path: Path) -> Path:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(jsonl.header(after=0))
        for page in jsonl.export_pages("default", until=MAX_POSITION, logs=[state.log_id]):
            stream.writelines(page.lines)
        stream.write(jsonl.footer(events=state.version, until=MAX_POSITION))
    return path


@pytest.fixture
def state(accounts_of_three) -> LogState:
    return Account.logs.append(
        accounts_of_three[0], Noted(note=UNUSUAL), idempotency_key="k", metadata={"user": "Zoë"}
    )


@pytest.fixture
def proof(state, attested) -> dict[str, Any]:
    return proof_document(attested(make_seal(), log=state.log_id).proof)


def test_the_script_has_at_most_100_lines():
    assert len(SCRIPT.read_text().splitlines()) <= 100


def test_a_proof_is_checked_without_the_project(proof, state, tmp_path):
    done = check(proof, tmp_path=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"Proved: {state.log_id} had 3 events" in done.stdout


def test_the_events_are_checked_too(proof, state, tmp_path):
    events = export(state, tmp_path / "log.jsonl")

    done = check(proof, events, tmp_path=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")


def test_events_after_the_seal_do_not_matter(proof, state, tmp_path):
    later = Account.logs.append(state, Deposited(amount=1))

    done = check(proof, export(later, tmp_path / "log.jsonl"), tmp_path=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"amount":', '"amounts":', "the events were changed"),
        ("Zoë", "Eve", "the events were changed"),
        ('"index":1', '"index":2', "event 1 is missing"),
        ("account.noted", "account.noticed", "the events were changed"),
    ],
)
def test_changed_events_are_refused(proof, state, tmp_path, old, new, message):
    events = export(state, tmp_path / "log.jsonl")
    events.write_text(events.read_text().replace(old, new))

    done = check(proof, events, tmp_path=tmp_path)

    assert done.returncode == 1
    assert done.stderr == f"NOT PROVED: {message}.\n"


def test_missing_events_are_refused(proof, state, tmp_path):
    events = export(state, tmp_path / "log.jsonl")
    header, first, second, _, *end = events.read_text().split("\n")
    events.write_text("\n".join([header, first, second, *end]))

    done = check(proof, events, tmp_path=tmp_path)

    assert done.stderr == "NOT PROVED: there are 2 events, not 3.\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"events": 2}, "the log is not under the seal"),
        ({"head": "00" * 32}, "the log is not under the seal"),
        ({"path": []}, "the log is not under the seal"),
        ({"log": "account_01h455vb4pex5vsknk084sn02q"}, "the log is not under the seal"),
    ],
)
def test_a_changed_proof_is_refused(proof, tmp_path, change, message):
    done = check({**proof, **change}, tmp_path=tmp_path)

    assert (done.returncode, done.stderr) == (1, f"NOT PROVED: {message}.\n")


@pytest.mark.parametrize("change", [{"root": "00" * 32}, {"time": "2020-01-01T00:00:00.000000Z"}])
def test_a_changed_seal_is_refused(proof, tmp_path, change):
    done = check({**proof, "seal": {**proof["seal"], **change}}, tmp_path=tmp_path)

    assert done.returncode == 1
    assert "not signed by this key" in done.stderr


def test_a_seal_of_another_key_is_refused(proof, tmp_path, settings):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "SEAL_KEY": OTHER_SECRET}
    other = make_seal().as_json()

    done = check({**proof, "seal": other}, tmp_path=tmp_path)

    assert "not signed by this key" in done.stderr


def test_an_unknown_kind_of_seal_is_refused(proof, tmp_path):
    done = check({**proof, "seal": {**proof["seal"], "version": 2}}, tmp_path=tmp_path)

    assert "an unknown kind of seal" in done.stderr
