"""Files of seals and leaves."""

from __future__ import annotations

import pytest

from eventlogs import LogId
from eventlogs.exceptions import InvalidSeal
from eventlogs.seals.documents import replace
from eventlogs.seals.files import leaves_file, locked, read_leaves, read_seals
from eventlogs.seals.leaves import Leaf
from tests.seals.test_documents import SEAL

NEXT = replace(SEAL, previous=SEAL.digest)


def test_seals_are_appended_to_a_file(tmp_path):
    path = tmp_path / "seals.jsonl"
    with locked(path) as file:
        assert file.last is None
        file.append(SEAL)
    with locked(path) as file:
        assert file.last == SEAL
        file.append(NEXT)

    assert read_seals(path) == [SEAL, NEXT]


def test_an_unfinished_line_is_cut_off(tmp_path):
    path = tmp_path / "seals.jsonl"
    path.write_text(SEAL.line + NEXT.line[:20])

    with locked(path) as file:
        assert file.last == SEAL
        file.append(NEXT)

    assert read_seals(path) == [SEAL, NEXT]


@pytest.mark.parametrize("before", ["", SEAL.line])
def test_a_seal_without_the_end_of_its_line_stays(tmp_path, before):
    path = tmp_path / "seals.jsonl"
    path.write_text(before + NEXT.line.rstrip())
    third = replace(NEXT, previous=NEXT.digest)

    with locked(path) as file:
        assert file.last == NEXT
        file.append(third)

    assert path.read_text() == before + NEXT.line + third.line


def test_another_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear Ada,\n")

    with pytest.raises(InvalidSeal), locked(path):
        pass

    assert path.read_text() == "Dear Ada,\n"


def test_a_last_line_without_its_end_is_read(tmp_path):
    path = tmp_path / "seals.jsonl"
    path.write_text(SEAL.line.rstrip())

    assert read_seals(path) == [SEAL]


def test_leaves_get_their_name_when_they_are_complete(tmp_path):
    path, leaf = tmp_path / "leaves", Leaf(LogId.new("account"), 3, bytes(32))

    with leaves_file(path) as stream:
        stream.write(leaf.text + b"\n")
        assert not path.exists()

    assert list(read_leaves(path)) == [leaf]
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_there_are_no_leaves(tmp_path):
    with pytest.raises(ZeroDivisionError), leaves_file(tmp_path / "leaves"):
        raise ZeroDivisionError

    assert list(tmp_path.iterdir()) == []


def test_leaves_of_a_killed_process_are_no_obstacle(tmp_path):
    (tmp_path / "leaves.part").write_text("half a l")

    with leaves_file(tmp_path / "leaves") as stream:
        stream.write(b"x\n")

    assert (tmp_path / "leaves").read_text() == "x\n"


def test_leaves_are_never_overwritten(tmp_path):
    path = tmp_path / "leaves"
    path.write_text("")

    with pytest.raises(FileExistsError), leaves_file(path):
        pass
