from __future__ import annotations

import json

import pytest
from django.core.management import CommandError

from eventlogs import scans
from eventlogs.models import Event
from tests.accounts import Account, Deposited, Opened
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
    assert (header["format"], header["version"], header["after"]) == ("eventlogs", 1, 0)
    assert footer == {"end": True, "events": len(events), "until": last}
    assert [each["position"] for each in events] == list(
        Event.objects.order_by("position").values_list("position", flat=True)
    )


def test_a_line_is_named_as_a_page_is(account, run, tmp_path):
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


def test_what_is_exported_can_be_chosen(history, account, run, tmp_path):
    run("export", tmp_path / "parcels.jsonl", "--log-type", "parcel")
    run("export", tmp_path / "one.jsonl", "--log", account)

    assert [each["type"] for each in exported(tmp_path / "parcels.jsonl")[1:-1]] == ["parcel.sent"]
    one = exported(tmp_path / "one.jsonl")[1:-1]
    assert [(each["log_id"], each["index"]) for each in one] == [
        (str(account), n) for n in range(3)
    ]


@pytest.mark.feed
def test_what_is_behind_a_position_is_exported(account, run, tmp_path):
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


def test_a_file_is_not_written_over(db, run, tmp_path):
    path = tmp_path / "there.jsonl"
    path.write_text("dear diary")

    with pytest.raises(CommandError, match="is there already"):
        run("export", path)

    assert path.read_text() == "dear diary"


@pytest.mark.feed
def test_what_was_written_is_told(history, run_json, tmp_path):
    told = run_json("export", tmp_path / "all.jsonl")

    assert told["events"] == Event.objects.count()
    assert told["until"] == Event.objects.last().position


@pytest.mark.feed
@pytest.mark.parametrize("lost", [1, 30, 200, 1_000], ids="last {} bytes".format)
def test_an_interrupted_export_is_carried_on(history, account, run, tmp_path, lost):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run("export", whole)
    cut.write_bytes(whole.read_bytes()[:-lost])

    run("export", cut, "--resume")

    assert exported(cut) == exported(whole)


@pytest.mark.feed
def test_a_complete_export_is_not_carried_on(history, run, tmp_path):
    run("export", tmp_path / "all.jsonl")

    with pytest.raises(CommandError, match="is complete"):
        run("export", tmp_path / "all.jsonl", "--resume")


@pytest.mark.feed
def test_an_export_that_did_not_begin_is_begun(history, run, tmp_path):
    (tmp_path / "empty.jsonl").touch()

    run("export", tmp_path / "empty.jsonl", "--resume")
    run("export", tmp_path / "new.jsonl", "--resume")

    assert exported(tmp_path / "empty.jsonl")[1:] == exported(tmp_path / "new.jsonl")[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume needs a FILE"),
        (["FILE", "--format", "xes", "--after", "3"], "cuts logs in two"),
        (["FILE", "--format", "xes", "--resume"], "--resume needs a FILE"),
        (["/nowhere/at/all.jsonl"], "cannot be written"),
    ],
)
def test_mistakes(db, run, tmp_path, arguments, message):
    arguments = [str(tmp_path / "file") if each == "FILE" else each for each in arguments]

    with pytest.raises(CommandError, match=message):
        run("export", *arguments)


@pytest.mark.feed
def test_another_file_is_not_carried_on(db, run, tmp_path):
    (tmp_path / "diary").write_text("dear diary\n")

    with pytest.raises(CommandError, match="not an export"):
        run("export", tmp_path / "diary", "--resume")

    assert (tmp_path / "diary").read_text() == "dear diary\n"


# Databases without a feed


@pytest.mark.mariadb
def test_without_a_feed_an_export_is_of_one_moment(
    transactional_db, run, tmp_path, monkeypatch, elsewhere
):
    """Whatever is committed while it is written, at whatever positions."""
    fill()
    before = list(Event.objects.order_by("position").values_list("position", flat=True))
    log_id = Event.objects.filter(type="account.opened").last().log.log_id
    claims_of, version = scans.claims_of, 7

    def append_meanwhile(*arguments):
        nonlocal version
        elsewhere(lambda: Account.logs.create(Opened(owner="Bob")))
        elsewhere(lambda: Account.logs.append(log_id, Deposited(1), expected_version=version))
        version += 1
        return claims_of(*arguments)

    monkeypatch.setattr(scans, "PAGE", 10)
    monkeypatch.setattr(scans, "claims_of", append_meanwhile)
    run("export", tmp_path / "all.jsonl")
    run("export", tmp_path / "one.jsonl", "--log", log_id)

    _, *events, footer = exported(tmp_path / "all.jsonl")
    assert version > 7 + 3
    assert [each["position"] for each in events] == before
    assert footer == {"end": True, "events": len(before), "until": 0}
    _, *of_one, _ = exported(tmp_path / "one.jsonl")
    assert [each["index"] for each in of_one] == list(range(len(of_one)))


@pytest.mark.mariadb
@pytest.mark.parametrize("option", ["--after=3", "--resume"])
def test_without_a_feed_an_export_is_whole(db, run, tmp_path, option):
    path = tmp_path / "all.jsonl"
    if option == "--resume":
        path.touch()

    with pytest.raises(CommandError, match="Leave out --after and --resume"):
        run("export", path, option)

    assert not path.exists() or path.read_bytes() == b""
