"""Export from one database, import into another: the rows are the same after any interruption."""

from __future__ import annotations

import io
import json
import signal
import sys
from contextlib import suppress
from threading import Barrier, BrokenBarrierError

import pytest
from django.core.management import CommandError
from django.db import IntegrityError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from eventlogs import ConcurrentAppend, IdempotentReplay, ImportDiffers, LogManager, LogNotFound
from eventlogs.events.codec import EncodedEvent
from eventlogs.feed import scans
from eventlogs.models import Event, EventLog
from eventlogs.operations import jsonl
from eventlogs.seals.lookups import newest
from eventlogs.stores import (
    AppendRequest,
    BaseStore,
    ExportedEvent,
    Restored,
    store_for,
)
from eventlogs.stores import (
    restore as restoring,
)
from eventlogs.stores.portable import PortableStore
from eventlogs.values import StoredEvent
from tests.accounts import Account, Deposited, Opened, encoded
from tests.management.histories import fill, held
from tests.processes import until
from tests.seals.histories import SECRET


@pytest.fixture
def export(second_database, run, tmp_path):
    """The export of a database full of history."""
    fill()
    path = tmp_path / "all.jsonl"
    run("export", path)
    return path


def test_an_import_into_an_empty_database_restores_everything(export, second_database, run):
    run("import", export, database=second_database)

    assert held(second_database) == held()
    assert "No findings." in run("verify", "--no-decode", database=second_database)


def test_an_import_leaves_out_the_logs_that_were_erased_here(
    export, second_database, run, run_json, capsys
):
    run("import", export, database=second_database)
    logs = LogManager(Account, using=second_database)
    ids = EventLog.objects.using(second_database).filter(log_type="account").order_by("pk")
    erased = ids[0].log_id
    events = logs.version(erased)
    run("erase", erased, "--reason", "order 7", "--by", "grace", "--yes", database=second_database)
    before = held(second_database)

    done = run_json("import", export, database=second_database)

    assert done["erased"] == [str(erased)]
    assert (done["stored"], done["present"]) == (0, Event.objects.count() - events)
    assert "1 log was erased in this database" in capsys.readouterr().err
    assert held(second_database) == before
    assert "No findings." in run("verify", "--no-decode", database=second_database)


@pytest.mark.feed
def test_an_import_leaves_out_the_seals_of_the_other_database(
    settings, second_database, run, run_json, capsys, tmp_path
):
    pytest.importorskip("cryptography")
    settings.EVENTLOGS = {"CHAIN": True, "SEAL_KEY": SECRET}
    Account.logs.create(Opened("ada"))
    run("seal", "--append")
    run("seal", "--append")
    run("export", tmp_path / "sealed.jsonl")

    done = run_json("import", tmp_path / "sealed.jsonl", database=second_database)
    told = capsys.readouterr().err
    run("seal", "--append", database=second_database)

    assert (done["stored"], done["seals"]) == (Event.objects.count() - 2, 2)
    assert "2 seals were left out" in told
    assert newest(second_database)["previous"] is None


def test_an_event_has_the_same_id_after_the_move_and_another_position(
    second_database, run, tmp_path
):
    Account.logs.create(Opened("lost"))  # positions from here on are others in the new database
    state = Account.logs.create(Opened("ada"), Deposited(5), idempotency_key="moved")
    run("export", tmp_path / "one.jsonl", "--log", state.log_id)
    run("import", tmp_path / "one.jsonl", database=second_database)

    here = Account.logs.load(state.log_id)
    there = LogManager(Account, using=second_database).load(state.log_id)

    assert [each.id for each in there] == [f"{state.log_id}:0", f"{state.log_id}:1"]
    assert [each.id for each in there] == [each.id for each in here]
    assert [each.position for each in there] != [each.position for each in here]
    with pytest.raises(ConcurrentAppend, match="its history is another one"):
        LogManager(Account, using=second_database).append(state, Deposited(5))


def test_an_export_of_the_import_is_the_same(export, second_database, run, tmp_path):
    run("import", export, database=second_database)
    run("export", tmp_path / "again.jsonl", database=second_database)

    def without_positions(path):
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:-1]]
        return [{name: each for name, each in line.items() if name != "position"} for line in lines]

    assert without_positions(tmp_path / "again.jsonl") == without_positions(export)


def test_importing_again_imports_nothing(export, second_database, run_json):
    first = run_json("import", export, database=second_database)
    again = run_json("import", export, database=second_database)

    assert first == {"stored": len(held()["events in order"]), "present": 0}
    assert again == {"stored": 0, "present": first["stored"]}
    assert held(second_database) == held()


def test_a_retry_after_the_move_is_a_replay(export, second_database, run):
    run("import", export, database=second_database)

    with pytest.raises(IdempotentReplay) as caught:
        LogManager(Account, using=second_database).create(
            Opened(owner="Ada 1"), idempotency_key="open 1"
        )

    assert caught.value.index == 0


@pytest.mark.feed
def test_later_events_are_imported_behind_earlier_ones(
    export, second_database, run, run_json, tmp_path
):
    run("import", export, database=second_database)
    until = json.loads(export.read_text().splitlines()[-1])["until"]
    fill_more()

    run("export", tmp_path / "whole.jsonl")
    run("export", tmp_path / "later.jsonl", "--after", until)
    later = run_json("import", tmp_path / "later.jsonl", database=second_database)
    whole = run_json("import", tmp_path / "whole.jsonl", database=second_database)

    assert (later["present"], whole["stored"]) == (0, 0)
    assert later["stored"] > 0
    assert held(second_database) == held()


def fill_more() -> None:
    log_id = Event.objects.filter(type="account.opened").last().log.log_id
    state = LogManager(Account).append(log_id, Deposited(amount=9), expected_version=7)
    LogManager(Account).append(state, Deposited(amount=10), idempotency_key="later")
    LogManager(Account).create(Opened(owner="Bob"))


def test_another_history_is_refused_and_named(export, second_database, run):
    log_id = Event.objects.filter(type="account.opened").first().log.log_id
    LogManager(Account, using=second_database).create(Opened(owner="Mallory"), log_id=log_id)

    with pytest.raises(CommandError, match=f"Event 0 of {log_id}") as caught:
        run("import", export, database=second_database)

    assert caught.value.returncode == 2
    assert "Mallory" not in str(caught.value)
    assert Event.objects.using(second_database).count() == 1


def spoil(path, line: int, change) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line[: len(line) // 2] + "\n",
        lambda line: "garbage\n",
        lambda line: "\n",
        lambda line: line.replace('"index":', '"index":-'),
        lambda line: line.replace('"log_id":"', '"log_id":"X'),
        lambda line: line.replace('"data":{', '"data":{"nul":"\\u0000",'),
        lambda line: line.replace('"data":{', '"data":{"lone":"\\ud800",'),
        lambda line: line.replace('"data":{', '"data":{"large":1e999,'),
        lambda line: line.replace('"metadata":{', '"metadata":[{').replace('},"rec', '}],"rec'),
        lambda line: line.replace('"type":"', '"type":" '),
        lambda line: line.replace('Z"', '"'),
    ],
    ids=[
        "half a line",
        "garbage",
        "empty",
        "index",
        "log id",
        "NUL",
        "lone surrogate",
        "infinity",
        "metadata",
        "type",
        "naive time",
    ],
)
def test_a_corrupt_line_is_named(export, second_database, run, monkeypatch, change):
    monkeypatch.setattr(jsonl, "BATCH", 5)
    spoil(export, 20, change)

    with pytest.raises(CommandError, match="Line 20:"):
        run("import", export, database=second_database)

    # Whole batches before it are stored, and a corrected file carries on.
    assert 0 < Event.objects.using(second_database).count() < 20


def test_a_file_that_is_not_utf8_is_named_by_its_line(export, second_database, run):
    export.write_bytes(export.read_bytes().replace(b"parcel.sent", b"parcel.s\xffnt"))

    with pytest.raises(CommandError, match=r"Line \d+:"):
        run("import", export, database=second_database)


def test_a_file_that_ends_too_early_is_found(export, second_database, run, monkeypatch):
    lines = export.read_text().splitlines(keepends=True)
    export.write_text("".join(lines[:-1]))

    monkeypatch.setattr(jsonl, "BATCH", 5)

    with pytest.raises(CommandError, match="ends too early"):
        run("import", export, database=second_database)

    # The append at its end may be incomplete: the last batch is left out.
    stored = held(second_database)["events in order"]
    assert 0 < len(stored) < len(lines)
    assert stored == held()["events in order"][: len(stored)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("dear diary\n", "Line 1: this is not an export"),
        ('{"format":"other","version":1}\n', "Line 1: this is not an export"),
        ('{"format":"eventlogs","version":3}\n', "the format's version is 3"),
        ('{"format":"eventlogs","version":1}\n{"end":true,"events":3}\n', "0 events, not 3"),
        (
            '{"format":"eventlogs","version":1}\n{"end":true,"events":0}\n\n',
            "lines after the end",
        ),
    ],
)
def test_files_that_are_no_exports_are_refused(db, run, tmp_path, text, message):
    (tmp_path / "file").write_text(text)

    with pytest.raises(CommandError, match=message):
        run("import", tmp_path / "file")


def test_a_missing_file_is_a_command_error(db, run, tmp_path):
    with pytest.raises(CommandError, match="cannot be read: No such file"):
        run("import", tmp_path / "nowhere")


def test_an_import_from_the_input(export, second_database, run, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(export.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)

    run("import", "-", database=second_database)

    assert held(second_database) == held()


def test_a_batch_does_not_end_within_an_append(second_database, run, tmp_path, monkeypatch):
    state = LogManager(Account).create(*[Opened(owner="Ada")] * 7)
    LogManager(Account).append(state, *[Deposited(amount=1)] * 4, idempotency_key="k")
    run("export", tmp_path / "all.jsonl")
    monkeypatch.setattr(jsonl, "BATCH", 5)

    with (tmp_path / "all.jsonl").open("rb") as lines:
        sizes = [len(batch) for batch in jsonl.batches(lines)]

    assert sizes == [7, 4]


def test_an_import_that_is_killed_can_be_resumed(start, second_database, run, run_json, tmp_path):
    for n in range(300):
        LogManager(Account).create(
            Opened(owner="Ada"), *[Deposited(amount=n)] * 9, idempotency_key=f"k{n}"
        )
    path = tmp_path / "all.jsonl"
    run("export", path)
    lines = path.read_bytes().splitlines(keepends=True)
    program = start("import", "-", database=second_database)
    program.stdin.write(b"".join(lines[:2_500]))
    until(lambda: Event.objects.using(second_database).exists())

    program.kill()
    program.ended(code=-signal.SIGKILL)

    before = Event.objects.using(second_database).count()
    assert 0 < before < 3_000
    assert "No findings." in run("verify", database=second_database)
    done = run_json("import", path, database=second_database)
    assert done == {"stored": 3_000 - before, "present": before}
    assert held(second_database) == held()
    assert "No findings." in run("verify", database=second_database)


def events_of(path) -> list:
    with path.open("rb") as lines:
        return list(jsonl.read_events(lines))


def test_two_imports_of_one_file_at_once_import_it_once(export, second_database, race):
    events = events_of(export)
    store = store_for(second_database)

    def import_all() -> Restored:
        imported = Restored(0, 0)
        for start in range(0, len(events), 3):
            done = store.restore(events[start : start + 3])
            imported = Restored(imported.stored + done.stored, imported.present + done.present)
        return imported

    answers = race(*[import_all] * 4)

    assert all(isinstance(each, Restored) for each in answers), answers
    assert sum(each.stored for each in answers) == len(events)
    assert sum(each.present for each in answers) == 3 * len(events)
    assert {key: held()[key] for key in ("logs", "keys")} == {
        key: held(second_database)[key] for key in ("logs", "keys")
    }


def test_an_import_and_appends_at_once_leave_no_hole(
    export, second_database, race, run, monkeypatch
):
    events = events_of(export)
    store = store_for(second_database)
    log_ids = list(dict.fromkeys(event.log_id for event, *_ in events if event.index == 1))

    # With the smallest batches: one append is never split.
    monkeypatch.setattr(jsonl, "BATCH", 1)
    with export.open("rb") as lines:
        batches = list(jsonl.batches(lines))
    assert len(batches) > 1

    def import_it() -> object:
        return [store.restore(batch) for batch in batches]

    def append() -> None:
        for _ in range(20):
            for log_id in log_ids:
                request = AppendRequest(log_id, encoded(1), None, None, "{}")
                with suppress(LogNotFound):
                    store.append(request)

    answers = race(import_it, append, append)

    # An append that comes first makes the import's next event differ, and the import reports it.
    assert answers[1:] == [None, None]
    assert isinstance(answers[0], ImportDiffers | list)

    assert "No findings." in run("verify", "--no-decode", database=second_database)


# Deliberately broken versions: the tests above must fail on them.


class AppendsAnything(PortableStore):
    """A broken version: import by appending, as a naive script would."""

    def restore(self, events):
        for event, *_ in events:
            version = self.version(event.log_id)
            request = AppendRequest(
                event.log_id,
                [EncodedEvent(event.type, event.schema_version, event.data)],
                version if version == 0 else None,
                None,
                event.metadata,
            )
            self.append(request)
        return Restored(len(events), 0)


def import_with(store: BaseStore, path) -> None:
    with path.open("rb") as lines:
        jsonl.import_lines(store, lines)


def test_an_import_that_is_not_idempotent_is_found(export, second_database):
    variant = AppendsAnything(second_database)

    import_with(variant, export)
    once = len(held(second_database)["events in order"])
    import_with(variant, export)

    assert len(held(second_database)["events in order"]) == 2 * once
    assert held(second_database) != held()


ALL_LOOK = Barrier(4)


def look_without_locking(using, events):
    """A broken version of ``restoring._lock`` without a lock."""
    rows = restoring.rows(using, "EventLog").filter(
        pk__in={each.event.log_id.uuid for each in events}
    )
    known = {
        log: restoring.Known(log_type, version, None)
        for log, log_type, version in rows.values_list("pk", "log_type", "version")
    }
    with suppress(BrokenBarrierError):
        ALL_LOOK.wait(5)  # each of the four has read before one of them writes
    return known


@pytest.mark.postgresql
def test_an_import_without_locks_is_found(second_database, race, monkeypatch):
    log_id = LogManager(Account, using=second_database).create(Opened(owner="Ada")).log_id
    event = ExportedEvent(
        StoredEvent(
            log_id, 1, 0, "account.deposited", 1, '{"amount":1}', "{}", None, timezone.now()
        )
    )
    ALL_LOOK.reset()
    monkeypatch.setattr(restoring, "_lock", look_without_locking)

    answers = race(*[lambda: store_for(second_database).restore([event])] * 4)

    # The unique constraint still refuses the doubled event.
    assert [type(each) for each in answers if not isinstance(each, Restored)] == [
        IntegrityError
    ] * 3


def test_pages_of_the_export_may_be_small(second_database, run, tmp_path, monkeypatch):
    monkeypatch.setattr(scans, "PAGE", 3)
    monkeypatch.setattr(jsonl, "BATCH", 2)
    fill()
    run("export", tmp_path / "all.jsonl")

    run("import", tmp_path / "all.jsonl", database=second_database)

    assert held(second_database) == held()
    assert "No findings." in run("verify", "--no-decode", database=second_database)


def test_with_debug_an_import_keeps_no_list_of_its_statements(db, run, tmp_path, settings):
    """Django would keep the last 9,000 statements in memory, each with the events of a batch."""
    fill()
    run("export", tmp_path / "all.jsonl")
    settings.DEBUG = True
    connection.queries_log.clear()

    run("import", tmp_path / "all.jsonl")
    kept = len(connection.queries)
    with CaptureQueriesContext(connection) as captured:
        run("import", tmp_path / "all.jsonl")
    Event.objects.first()

    assert kept == 0
    assert len(captured) > 1
    assert connection.queries
