"""Making a seal and keeping it."""

from __future__ import annotations

import pytest

from eventlogs.exceptions import ConcurrentAppend, SealUnavailable
from eventlogs.seals import make_seal, running
from eventlogs.seals.appended import SealLog, Seals
from eventlogs.seals.files import SealFile, read_leaves, read_seals
from eventlogs.seals.lookups import SEALS
from eventlogs.seals.merkle import Tree
from eventlogs.seals.running import seal
from tests.seals.test_documents import SEAL

pytestmark = pytest.mark.feed


def test_a_file_of_seals_is_a_chain(accounts_of_three, attested, tmp_path):
    path = tmp_path / "seals.jsonl"

    first, second = seal(output=path), seal(output=path)

    assert read_seals(path) == [first, second]
    assert (first.previous, second.previous) == (None, first.digest)
    assert attested(first, second).is_proved


def test_a_seal_can_be_appended_to_a_log(accounts_of_three, attested):
    first, second = seal(append=True), seal(append=True)

    assert Seals.logs.reduce(SEALS).aggregate.count == 2
    assert SealLog("default").last() == (second, 2)
    assert second.previous == first.digest
    assert second.events == first.events + 1  # the first seal's event is under the second one
    assert attested(first, second).is_proved


def test_a_file_follows_the_log(accounts_of_three, tmp_path):
    path = tmp_path / "seals.jsonl"
    first = seal(append=True, output=path)
    second = seal(append=True)
    third = seal(append=True, output=path)

    assert read_seals(path) == [first, second, third]


def test_a_new_file_gets_all_seals_of_the_log(accounts_of_three, tmp_path):
    first = seal(append=True)
    second = seal(append=True, output=tmp_path / "new.jsonl")

    assert read_seals(tmp_path / "new.jsonl") == [first, second]


def test_a_file_of_other_seals_is_refused(accounts_of_three, tmp_path):
    path = tmp_path / "seals.jsonl"
    path.write_text(SEAL.line)
    seal(append=True)

    with pytest.raises(SealUnavailable, match="not in the log of seals"):
        seal(append=True, output=path)

    assert read_seals(path) == [SEAL]
    assert SealLog("default").last()[1] == 1


def test_the_leaves_have_the_root_of_the_seal(accounts_of_three, tmp_path):
    made = seal(leaves=tmp_path / "leaves")

    tree = Tree()
    for leaf in read_leaves(tmp_path / "leaves"):
        tree.add(leaf.text)
    assert (tree.root().hex(), tree.count) == (made.root, 3)


def test_the_leaves_are_kept_before_the_seal(accounts_of_three, tmp_path, monkeypatch):
    there = []
    monkeypatch.setattr(SealFile, "append", lambda *_: there.append((tmp_path / "l").exists()))

    seal(leaves=tmp_path / "l", output=tmp_path / "seals.jsonl")

    assert there == [True]


def test_after_an_error_there_are_no_files(settings, db, tmp_path):
    settings.EVENTLOGS = {}

    with pytest.raises(SealUnavailable):
        seal(leaves=tmp_path / "leaves", output=tmp_path / "seals.jsonl")

    assert not (tmp_path / "leaves").exists()
    assert (tmp_path / "seals.jsonl").read_text() == ""


def test_two_processes_do_not_append_seals_that_name_the_same_one(accounts_of_three, monkeypatch):
    seal(append=True)

    def meanwhile(**options):
        monkeypatch.setattr(running, "make_seal", make_seal)
        seal(append=True)
        return make_seal(**options)

    monkeypatch.setattr(running, "make_seal", meanwhile)
    with pytest.raises(ConcurrentAppend):
        seal(append=True)

    assert SealLog("default").last()[1] == 2


def test_celery_beat_makes_seals(accounts_of_three, tmp_path):
    tasks = pytest.importorskip("eventlogs.tasks", exc_type=ImportError)

    told = tasks.make_seal(output=str(tmp_path / "seals.jsonl"))

    [seal_of_file] = read_seals(tmp_path / "seals.jsonl")
    assert told == seal_of_file.as_json()
    assert SealLog("default").last() == (seal_of_file, 1)
