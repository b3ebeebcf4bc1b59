"""Exports carry the tombstones of erased logs, and imports take them over."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError
from django.db import connection

from eventlogs import LogErased, LogId, LogManager
from eventlogs.models import ErasedLog, Event, EventLog
from eventlogs.operations import jsonl
from tests.accounts import Account, Deposited, Opened, Parcel, Sent
from tests.management.histories import held

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tombstones_in(path: Path) -> list[dict[str, Any]]:
    return [each for each in lines_of(path)[1:-1] if "erased" in each]


def stones(using: str = "default") -> list[tuple[Any, ...]]:
    rows = ErasedLog.objects.using(using).order_by("pk")
    return [
        (
            each.log_id,
            each.count,
            bytes(each.digest),
            each.erased_by,
            each.reason,
            each.erased_at,
        )
        for each in rows
    ]


@pytest.fixture
def erase(run):
    """A function that erases a log, here or in another database."""

    def erase(log_id: LogId, **options: str) -> None:
        run("erase", log_id, "--reason", "an order", "--by", "grace", "--yes", **options)

    return erase


@pytest.fixture
def kept() -> LogId:
    """A log that stays."""
    return Account.logs.create(Opened("ada"), Deposited(5)).log_id


@pytest.fixture
def gone(kept: LogId, erase) -> LogId:
    """A log of three events that was erased."""
    log_id = Account.logs.create(Opened("bob"), Deposited(1), Deposited(2)).log_id
    erase(log_id)
    return log_id


@pytest.fixture
def exported(gone: LogId, run, tmp_path) -> Path:
    """An export with the events of one log, and the tombstone of the other."""
    run("export", tmp_path / "all.jsonl")
    return tmp_path / "all.jsonl"


# Exports


def test_a_tombstone_is_a_line_behind_the_events(exported, gone):
    header, *events, stone, footer = lines_of(exported)

    assert header["version"] == 2
    assert [each["index"] for each in events] == [0, 1]
    [row] = ErasedLog.objects.all()
    assert stone.pop("log_created_at")
    assert stone.pop("erased_at").startswith(f"{row.erased_at:%Y-%m-%dT%H:%M:%S}")
    assert stone == {
        "erased": str(gone),
        "events": 3,
        "digest": bytes(row.digest).hex(),
        "erased_by": "grace",
        "reason": "an order",
    }
    assert (footer["events"], footer["erased"]) == (2, 1)


def test_the_number_of_tombstones_is_told(gone, run, run_json, tmp_path):
    assert run_json("export", tmp_path / "one.jsonl")["tombstones"] == 1
    assert "2 events, 1 tombstone." in run("export", tmp_path / "two.jsonl")


def test_an_export_of_a_type_has_the_tombstones_of_that_type(gone, erase, run, tmp_path):
    parcel = LogManager(Parcel).create(Sent("ada")).log_id
    erase(parcel)

    run("export", tmp_path / "parcels.jsonl", "--log-type", "parcel")

    assert [each["erased"] for each in tombstones_in(tmp_path / "parcels.jsonl")] == [str(parcel)]


def test_an_export_of_a_log_has_its_tombstone_and_no_other(kept, gone, run, tmp_path):
    run("export", tmp_path / "gone.jsonl", "--log", gone)
    run("export", tmp_path / "kept.jsonl", "--log", kept)

    _, stone, footer = lines_of(tmp_path / "gone.jsonl")
    assert (stone["erased"], footer["events"], footer["erased"]) == (str(gone), 0, 1)
    assert tombstones_in(tmp_path / "kept.jsonl") == []


@pytest.mark.feed
def test_an_export_from_a_position_has_all_tombstones(kept, gone, run, tmp_path):
    last = Event.objects.last().position

    run("export", tmp_path / "rest.jsonl", "--after", last)

    assert [each["erased"] for each in tombstones_in(tmp_path / "rest.jsonl")] == [str(gone)]


def test_a_log_that_is_erased_while_the_export_runs_has_a_tombstone(
    kept, erase, run, tmp_path, monkeypatch
):
    """On a database without a feed, the export is as of one moment: it has the log as a whole."""
    gone = Account.logs.create(Opened("bob")).log_id
    pages = jsonl.tombstone_pages

    def after_an_erasure(*arguments, **options):
        if connection.vendor != "mysql":
            erase(gone)
        return pages(*arguments, **options)

    monkeypatch.setattr(jsonl, "tombstone_pages", after_an_erasure)
    run("export", tmp_path / "all.jsonl")

    logs = {each["log_id"] for each in lines_of(tmp_path / "all.jsonl")[1:-1] if "log_id" in each}
    assert logs == {str(kept), str(gone)}
    erased = [each["erased"] for each in tombstones_in(tmp_path / "all.jsonl")]
    assert erased == ([] if connection.vendor == "mysql" else [str(gone)])


@pytest.mark.feed
@pytest.mark.parametrize("lost", [1, 60, 250, 500], ids="last {} bytes".format)
def test_an_interrupted_export_is_resumed_with_all_tombstones(exported, kept, erase, run, lost):
    whole = exported.read_bytes()
    exported.write_bytes(whole[:-lost])
    another = Account.logs.create(Opened("eve")).log_id
    erase(another)

    run("export", exported, "--resume")

    assert [each["erased"] for each in tombstones_in(exported)] == sorted(
        str(each.log_id) for each in ErasedLog.objects.all()
    )
    assert [each["log_id"] for each in lines_of(exported)[1:-1] if "log_id" in each] == [
        str(kept)
    ] * 2
    assert list(jsonl.read_events(exported.read_bytes().splitlines(keepends=True)))


@pytest.mark.feed
def test_an_export_that_an_older_release_has_begun_is_not_resumed(exported, run):
    text = exported.read_text().replace('"version":2', '"version":1')
    exported.write_text("".join(text.splitlines(keepends=True)[:-2]))

    with pytest.raises(CommandError, match="an older release has begun it"):
        run("export", exported, "--resume")


# Imports


def test_an_import_takes_the_tombstones_over(exported, gone, second_database, run, run_json):
    done = run_json("import", exported, database=second_database)

    assert done == {"stored": 2, "present": 0, "tombstones": 1}
    assert held(second_database) == held()
    assert stones(second_database) == stones()
    accounts = LogManager(Account, using=second_database)
    with pytest.raises(LogErased):
        accounts.reduce(gone)
    with pytest.raises(LogErased):
        accounts.create(Opened("bob"), log_id=gone)
    assert "No findings." in run("verify", "--no-decode", database=second_database)


def test_importing_it_again_changes_nothing(exported, second_database, run, run_json):
    assert "1 tombstone imported." in run("import", exported, database=second_database)

    done = run_json("import", exported, database=second_database)

    assert done == {"stored": 0, "present": 2}
    assert stones(second_database) == stones()


def test_an_export_of_the_import_has_the_same_tombstones(exported, second_database, run, tmp_path):
    run("import", exported, database=second_database)
    run("export", tmp_path / "again.jsonl", database=second_database)

    [first], [second] = tombstones_in(exported), tombstones_in(tmp_path / "again.jsonl")
    assert first.pop("log_created_at") < second.pop("log_created_at")  # it is the import's time
    assert second == first


def test_a_file_without_tombstones_is_imported_as_before(kept, second_database, run, tmp_path):
    path = tmp_path / "old.jsonl"
    run("export", path)
    path.write_text(path.read_text().replace('"version":2', '"version":1'))

    assert "2 events imported" in run("import", path, database=second_database)
    assert held(second_database) == held()


def test_a_log_that_is_alive_here_is_refused_and_nothing_is_changed(
    exported, gone, second_database, run
):
    LogManager(Account, using=second_database).create(Opened("bob"), log_id=gone)
    before = held(second_database)

    with pytest.raises(CommandError, match=f"has erased {gone}, and this one has not") as caught:
        run("import", exported, database=second_database)

    assert caught.value.returncode == 2
    assert held(second_database) == before
    assert stones(second_database) == []


def test_all_tombstones_are_looked_at_before_one_is_stored(
    gone, erase, second_database, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(jsonl, "BATCH", 1)
    last = Account.logs.create(Opened("eve")).log_id
    erase(last)
    run("export", tmp_path / "all.jsonl")
    LogManager(Account, using=second_database).create(Opened("eve"), log_id=last)

    with pytest.raises(CommandError, match=f"has erased {last}, and this one has not"):
        run("import", tmp_path / "all.jsonl", database=second_database)

    assert stones(second_database) == []


def test_from_a_stream_a_log_that_is_alive_here_is_refused_behind_the_events(
    exported, gone, second_database, run, monkeypatch
):
    accounts = LogManager(Account, using=second_database)
    accounts.create(Opened("bob"), log_id=gone)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(exported.read_bytes())))

    with pytest.raises(CommandError, match="2 events imported") as caught:
        run("import", "-", database=second_database)

    assert "An import erases nothing" in str(caught.value)
    assert accounts.version(gone) == 1
    assert stones(second_database) == []


def test_a_stream_with_tombstones_is_imported(exported, gone, second_database, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(exported.read_bytes())))

    told = run("import", "-", database=second_database)

    assert "2 events imported, 0 were already stored. 1 tombstone imported." in told
    assert stones(second_database) == stones()


@pytest.fixture
def two(kept, erase, run, tmp_path) -> tuple[Path, Path, LogId]:
    """Two exports that follow each other, and a log that was erased between them."""
    gone = Account.logs.create(Opened("bob"), Deposited(1)).log_id
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    run("export", first)
    until = lines_of(first)[-1]["until"]
    Account.logs.append(gone, Deposited(2), expected_version=2)
    erase(gone)
    Account.logs.append(kept, Deposited(6), expected_version=2)
    run("export", second, "--after", until)
    return first, second, gone


@pytest.mark.feed
def test_exports_that_follow_each_other_do_not_bring_a_log_back(
    two, second_database, run, run_json
):
    first, second, gone = two

    done = run_json("import", first, second, database=second_database)

    assert done == {"stored": 3, "present": 0, "tombstones": 1, "erased": [str(gone)]}
    assert held(second_database) == held()
    assert stones(second_database) == stones()


@pytest.mark.feed
def test_one_after_the_other_the_second_is_refused_until_the_log_is_erased_here(
    two, erase, second_database, run, run_json, capsys
):
    first, second, gone = two
    run("import", first, database=second_database)
    before = held(second_database)

    with pytest.raises(CommandError, match="and this one has not"):
        run("import", second, database=second_database)
    assert held(second_database) == before
    erase(gone, database=second_database)
    done = run_json("import", second, database=second_database)

    assert done == {"stored": 1, "present": 0, "differing_tombstones": 1}
    assert "1 log was erased here at another version" in capsys.readouterr().err
    assert held(second_database) == held()


@pytest.mark.feed
def test_a_broken_version_that_reads_the_events_first_brings_the_log_back(
    two, second_database, run, monkeypatch
):
    first, second, gone = two
    monkeypatch.setattr(
        "eventlogs.management.subcommands.import_.can_be_read_again", lambda name: False
    )

    with pytest.raises(CommandError, match="and this one has not"):
        run("import", first, second, database=second_database)

    assert LogManager(Account, using=second_database).exists(gone)


def test_the_log_of_seals_has_no_tombstone_in_the_other_database(
    exported, gone, second_database, run
):
    text = exported.read_text()
    seals = LogId("eventlogs_seal", gone.uuid)
    exported.write_text(text.replace(f'"erased":"{gone}"', f'"erased":"{seals}"'))
    LogManager(Account, using=second_database).create(Opened("bob"), log_id=gone)

    run("import", exported, database=second_database)

    assert stones(second_database) == []


def test_tombstones_are_stored_in_batches(erase, second_database, run, tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "BATCH", 2)
    for name in "abcde":
        erase(Account.logs.create(Opened(name)).log_id)
    run("export", tmp_path / "all.jsonl")

    run("import", tmp_path / "all.jsonl", database=second_database)

    assert stones(second_database) == stones()
    assert not EventLog.objects.using(second_database).exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"events":3', '"events":-1', "its number of events is out of bounds"),
        ('"digest":"', '"digest":"xy', "its digest is invalid"),
        ('"digest":"', '"digest":"00', "its digest is invalid"),
        ('{"erased":"', '{"erased":"X', "its log is not a log id"),
        ('"reason":"', '"reason":"\\u0000', "its reason is invalid"),
        ('"erased_by":"', '"erased_by":"' + "x" * 255, "its erased_by is invalid"),
        ('"erased_by":', '"by":', "it is not the tombstone of a log"),
    ],
)
def test_a_tombstone_that_cannot_be_read_is_named(
    exported, second_database, run, old, new, message
):
    exported.write_text(exported.read_text().replace(old, new))

    with pytest.raises(CommandError, match=f"Line 4: {message}"):
        run("import", exported, database=second_database)

    assert not Event.objects.using(second_database).exists()


def test_a_tombstone_that_was_taken_out_is_missed(exported, second_database, run):
    lines = exported.read_text().splitlines(keepends=True)
    exported.write_text("".join([*lines[:-2], lines[-1]]))

    with pytest.raises(CommandError, match="there are 0 tombstones, not 1"):
        run("import", exported, database=second_database)
