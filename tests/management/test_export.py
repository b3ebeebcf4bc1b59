from __future__ import annotations

import json
import os
import signal
from xml.etree import ElementTree

import pytest
from django.core.management import CommandError

from eventlogs import Feed
from eventlogs.feed import scans
from eventlogs.feed.tokens import Token
from eventlogs.models import Event
from eventlogs.operations import jsonl, xes
from tests.accounts import Account, Deposited, Noted, Opened
from tests.management.histories import fill


@pytest.fixture
def history(db):
    fill()


def exported(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.feed
def test_a_line_for_each_event_in_the_order_of_positions(history, run, tmp_path):
    run("export", tmp_path / "all.jsonl")

    header, *events, footer = exported(tmp_path / "all.jsonl")
    last = Event.objects.last().position
    assert (header["format"], header["version"], header["after"]) == ("eventlogs", 2, 0)
    assert footer == {"end": True, "events": len(events), "until": last}
    assert [each["position"] for each in events] == list(
        Event.objects.order_by("position").values_list("position", flat=True)
    )


def test_a_line_has_the_keys_of_a_page_as_json(account, run, tmp_path):
    run("export", tmp_path / "all.jsonl")

    lines = exported(tmp_path / "all.jsonl")[1:-1]
    page = json.loads(Account.logs.load(account).as_json())["events"]
    for line, event in zip(lines, page, strict=True):
        line.pop("claim", None)
        line.pop("log_created_at", None)
        assert line == {name: value for name, value in event.items() if value is not None}


def test_the_first_event_of_an_append_carries_its_key(db, run, tmp_path):
    state = Account.logs.create(Opened(owner="Ada"))
    Account.logs.append(state, *[Deposited(amount=1)] * 3, idempotency_key="k")

    run("export", tmp_path / "all.jsonl")

    lines = exported(tmp_path / "all.jsonl")[1:-1]
    assert ["claim" in line for line in lines] == [False, True, False, False]
    assert lines[1]["claim"]["count"] == 3
    assert len(bytes.fromhex(lines[1]["claim"]["fingerprint"])) == 32


def test_exported_events_can_be_filtered(history, account, run, tmp_path):
    run("export", tmp_path / "parcels.jsonl", "--log-type", "parcel")
    run("export", tmp_path / "one.jsonl", "--log", account)

    assert [each["type"] for each in exported(tmp_path / "parcels.jsonl")[1:-1]] == ["parcel.sent"]
    one = exported(tmp_path / "one.jsonl")[1:-1]
    assert [(each["log_id"], each["index"]) for each in one] == [
        (str(account), n) for n in range(3)
    ]


@pytest.mark.feed
def test_events_after_a_position_are_exported(account, run, tmp_path):
    run("export", tmp_path / "late.jsonl", "--after", Event.objects.last().position - 1)

    assert [each["index"] for each in exported(tmp_path / "late.jsonl")[1:-1]] == [2]


def test_pages_leave_nothing_out(history, run, tmp_path, monkeypatch):
    run("export", tmp_path / "at once.jsonl")
    monkeypatch.setattr(scans, "PAGE", 4)
    run("export", tmp_path / "in pages.jsonl")

    assert exported(tmp_path / "in pages.jsonl")[1:] == exported(tmp_path / "at once.jsonl")[1:]


def test_an_empty_database_has_an_export(db, run, tmp_path):
    run("export", tmp_path / "nothing.jsonl")

    assert exported(tmp_path / "nothing.jsonl")[1:] == [{"end": True, "events": 0, "until": 0}]


def test_an_existing_file_is_not_overwritten(db, run, tmp_path):
    path = tmp_path / "there.jsonl"
    path.write_text("dear diary")

    with pytest.raises(CommandError, match="already exists"):
        run("export", path)

    assert path.read_text() == "dear diary"


@pytest.mark.feed
def test_the_result_reports_the_events_and_the_last_position(history, run_json, tmp_path):
    told = run_json("export", tmp_path / "all.jsonl")

    assert told["events"] == Event.objects.count()
    assert told["until"] == Event.objects.last().position
    assert told["checkpoint"] == Feed().checkpoint()


@pytest.mark.feed
def test_an_export_goes_on_from_the_checkpoint_of_another_one(history, account, run_json, tmp_path):
    first = run_json("export", tmp_path / "first.jsonl")
    Account.logs.append(account, Deposited(amount=7), expected_version=3)

    run_json("export", tmp_path / "second.jsonl", "--after", first["checkpoint"])

    header, *events, footer = exported(tmp_path / "second.jsonl")
    assert header["after"] == first["until"]
    assert [each["index"] for each in events] == [3]
    assert footer["until"] == events[-1]["position"]


@pytest.mark.feed
def test_an_export_of_another_history_is_not_resumed(history, run, tmp_path):
    path = tmp_path / "cut.jsonl"
    run("export", path)
    *lines, last, _ = path.read_text().splitlines()
    other = {**json.loads(last), "recorded_at": "2001-02-03T04:05:06Z"}
    path.write_text("\n".join([*lines, json.dumps(other), ""]))

    with pytest.raises(CommandError, match="is not of the history of the database"):
        run("export", path, "--resume")

    assert json.loads(path.read_text().splitlines()[-1]) == other


@pytest.mark.feed
def test_an_export_during_which_the_history_changes_is_left_without_its_end(
    history, run, tmp_path, monkeypatch
):
    """As with a pooler, which goes on with another server after a failover."""
    checkpoint = Token.parse(Feed().checkpoint())
    witness = checkpoint.witnesses[0]._replace(digest=bytes(16))
    other = str(checkpoint._replace(witnesses=(witness,)))
    pages = jsonl.export_pages

    read = Feed.read

    def of_another_history(self, *, after=0, **options):
        return read(self, after=other, **options)

    def failing_over(*arguments, **options):
        yield from pages(*arguments, **options)
        monkeypatch.setattr(Feed, "read", of_another_history)

    monkeypatch.setattr(jsonl, "export_pages", failing_over)
    with pytest.raises(CommandError, match="is not of the history of the database"):
        run("export", tmp_path / "all.jsonl")

    assert "end" not in exported(tmp_path / "all.jsonl")[-1]


@pytest.mark.feed
@pytest.mark.parametrize("lost", [1, 30, 200, 1_000], ids="last {} bytes".format)
def test_an_interrupted_export_can_be_resumed(history, account, run, tmp_path, lost):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run("export", whole)
    cut.write_bytes(whole.read_bytes()[:-lost])

    run("export", cut, "--resume")

    assert exported(cut) == exported(whole)


@pytest.mark.feed
def test_a_complete_export_cannot_be_resumed(history, run, tmp_path):
    run("export", tmp_path / "all.jsonl")

    with pytest.raises(CommandError, match="is complete"):
        run("export", tmp_path / "all.jsonl", "--resume")


@pytest.mark.feed
def test_resume_starts_an_export_that_has_not_begun(history, run, tmp_path):
    (tmp_path / "empty.jsonl").touch()

    run("export", tmp_path / "empty.jsonl", "--resume")
    run("export", tmp_path / "new.jsonl", "--resume")

    assert exported(tmp_path / "empty.jsonl")[1:] == exported(tmp_path / "new.jsonl")[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume needs a FILE"),
        (["FILE", "--format", "xes", "--after", "3"], "would cut logs in two"),
        (["FILE", "--format", "xes", "--resume"], "--resume needs a FILE"),
        (["/nowhere/at/all.jsonl"], "cannot be written"),
        (["/nowhere/at/all.xes", "--format", "xes"], "cannot be written"),
        (["FILE", "--timestamp", "data.at"], "--timestamp needs --format xes"),
        (["FILE", "--format", "xes", "--timestamp", "at"], "not a field of an event"),
        (["FILE", "--format", "xes", "--timestamp", "data."], "not a field of an event"),
    ],
)
def test_mistakes_of_the_user_are_command_errors(db, run, tmp_path, arguments, message):
    arguments = [str(tmp_path / "file") if each == "FILE" else each for each in arguments]

    with pytest.raises(CommandError, match=message):
        run("export", *arguments)


@pytest.mark.feed
def test_another_file_cannot_be_resumed(db, run, tmp_path):
    (tmp_path / "diary").write_text("dear diary\n")

    with pytest.raises(CommandError, match="not an export"):
        run("export", tmp_path / "diary", "--resume")

    assert (tmp_path / "diary").read_text() == "dear diary\n"


# Databases without a feed


@pytest.mark.fence
@pytest.mark.mariadb
def test_without_a_feed_an_export_is_of_one_moment(
    transactional_db, run, tmp_path, monkeypatch, elsewhere
):
    """Events may be committed at any position while the export is written."""
    fill()
    before = list(Event.objects.order_by("position").values_list("position", flat=True))
    log_id = Event.objects.filter(type="account.opened").last().log.log_id
    exported_of, version = scans.exported, 7

    def append_meanwhile(*arguments):
        nonlocal version
        elsewhere(lambda: Account.logs.create(Opened(owner="Bob")))
        elsewhere(lambda: Account.logs.append(log_id, Deposited(1), expected_version=version))
        version += 1
        return exported_of(*arguments)

    monkeypatch.setattr(scans, "PAGE", 10)
    monkeypatch.setattr(scans, "exported", append_meanwhile)
    run("export", tmp_path / "all.jsonl")
    run("export", tmp_path / "one.jsonl", "--log", log_id)

    _, *events, footer = exported(tmp_path / "all.jsonl")
    assert version > 7 + 3
    assert [each["position"] for each in events] == before
    assert footer == {"end": True, "events": len(before), "until": 0}
    _, *of_one, _ = exported(tmp_path / "one.jsonl")
    assert [each["index"] for each in of_one] == list(range(len(of_one)))


@pytest.mark.fence
@pytest.mark.mariadb
@pytest.mark.parametrize("option", ["--after=3", "--resume"])
def test_without_a_feed_an_export_is_whole(db, run, tmp_path, option):
    path = tmp_path / "all.jsonl"
    if option == "--resume":
        path.touch()

    with pytest.raises(CommandError, match="Leave out --after and --resume"):
        run("export", path, option)

    assert not path.exists() or path.read_bytes() == b""


# Interrupted exports of XES


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("happens", "error"),
    [
        (interrupt, KeyboardInterrupt),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit),
        (lambda: 1 / 0, ZeroDivisionError),
    ],
    ids=["Ctrl-C", "SIGTERM", "an error"],
)
def test_an_interrupted_export_of_xes_leaves_no_file(
    history, run, tmp_path, monkeypatch, happens, error
):
    path, read, before = tmp_path / "all.xes", [], signal.getsignal(signal.SIGTERM)
    logs_with_events = scans.logs_with_events

    def interrupted(*arguments):
        for each in logs_with_events(*arguments):
            read.append(each)
            yield each
            if len(read) == 3:
                assert (tmp_path / "all.xes.part").exists()
                happens()

    monkeypatch.setattr(scans, "logs_with_events", interrupted)
    with pytest.raises(error):
        run("export", path, "--format", "xes")

    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.undo()
    run("export", path, "--format", "xes")
    assert [each.name for each in tmp_path.iterdir()] == ["all.xes"]
    assert ElementTree.parse(path).getroot().tag.endswith("log")


def test_a_full_disk_leaves_no_incomplete_xes(history, run, tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # bytes
    try:
        with pytest.raises(CommandError, match="cannot be written: File too large"):
            run("export", tmp_path / "all.xes", "--format", "xes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_export_writes_is_not_touched(history, run, tmp_path):
    part = tmp_path / "all.xes.part"
    part.write_text("<log>")

    with pytest.raises(CommandError, match="another export is writing it, or was killed"):
        run("export", tmp_path / "all.xes", "--format", "xes")

    assert part.read_text() == "<log>"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_xes_on_the_output_says_so_and_is_refused_by_parsers(start, number, code):
    for _ in range(3):
        Account.logs.create(Opened("ada"), *[Noted("x" * 10_000)] * 30)
    program = start("export", "--format", "xes")

    first = program.line()  # and the output is larger than the buffer of a pipe
    program.send_signal(number)

    text = f"{first}\n{program.ended(code=code)}"
    assert text.endswith(xes.INCOMPLETE)
    assert "</log>" not in text
    assert "The XES is incomplete" in program.error_text
    assert "Traceback" not in program.error_text
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring(text)


def test_xes_takes_its_times_from_a_field_and_reports_events_without_it(db, run, tmp_path, capsys):
    Account.logs.create(Opened("ada"), Noted("2026-01-31"), metadata={"at": "2025-01-01T10:00Z"})

    written = run("export", tmp_path / "a.xes", "--format", "xes", "--timestamp", "data.note")
    run("export", tmp_path / "b.xes", "--format", "xes", "--timestamp", "metadata.at")

    assert "1 log, 2 events" in written
    assert "1 of 2 events have no time in data.note" in capsys.readouterr().err
    assert 'key="time:timestamp" value="2026-01-31T00:00:00' in (tmp_path / "a.xes").read_text()
    second = (tmp_path / "b.xes").read_text()
    assert second.count('key="time:timestamp" value="2025-01-01T10:00:00.000000+00:00"') == 2
