"""Exports with tombstones: a log that was erased after a seal is proved as on the database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from eventlogs import LogId, LogState
from eventlogs.exceptions import InvalidExport
from eventlogs.operations.erasure import erase
from eventlogs.operations.jsonl import import_lines
from eventlogs.seals import Attestation, Seal, attest, make_seal
from eventlogs.seals.attesting import DIFFERS, PROVED, UNDECIDED
from eventlogs.seals.checking import Check
from eventlogs.seals.keys import Trusted
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.sources import DatabaseSource, ExportSource
from eventlogs.stores import store_for, tombstones
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.operations.archiving.conftest import use
from tests.seals.histories import PUBLIC, SECRET
from tests.seals.test_archived import archive

pytestmark = [
    pytest.mark.feed,
    pytest.mark.django_db(transaction=True, available_apps=["eventlogs"]),
]


def export(path: Path, *, after: int = 0) -> Path:
    call_command("eventlogs", "export", str(path), "--after", str(after), verbosity=0)
    return path


def until(path: Path) -> int:
    return int(json.loads(path.read_text().splitlines()[-1])["until"])


def gone(state: LogState) -> LogId:
    """Erase a log."""
    erase(state.log_id, by="ada", reason="asked for")
    return state.log_id


def states(found: Attestation) -> list[str]:
    return [each.state for each in found.verdicts]


def attested(*seals: Seal, exports: list[Path], **options: Any) -> Attestation:
    archives = options.pop("archives", ())
    source = ExportSource(exports, archives=archives)
    return attest(seals, source, Trusted([PUBLIC]), **options)


@pytest.fixture
def accounts(accounts_of_three: list[LogState]) -> list[LogState]:
    """Three accounts of 2, 3 and 2 events, committed."""
    return accounts_of_three


@pytest.fixture
def accounts_of_three(sealing, transactional_db) -> list[LogState]:
    made = [Account.logs.create(Opened(owner=name), Deposited(amount=50)) for name in "ABC"]
    made[1] = Account.logs.append(made[1], Withdrawn(amount=5))
    return made


@pytest.fixture
def sealed(accounts) -> tuple[Seal, list[Leaf]]:
    """A seal over the three accounts, and its leaves."""
    leaves: list[Leaf] = []
    return make_seal(tell=leaves.append), leaves


def forge(path: Path, log_id: LogId, **members: Any) -> None:
    """Change the tombstone of a log."""
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.startswith(f'{{"erased":"{log_id}"'):
            found = {**json.loads(line), **members}
            lines[number] = json.dumps(found, separators=(",", ":")) + "\n"
    path.write_text("".join(lines))


def take_out(path: Path, log_id: LogId) -> None:
    """Remove the tombstone of a log, as if there had been none."""
    lines = path.read_text().splitlines(keepends=True)
    kept = [each for each in lines[:-1] if not each.startswith(f'{{"erased":"{log_id}"')]
    footer = json.loads(lines[-1])
    footer["erased"] -= len(lines) - 1 - len(kept)
    path.write_text("".join([*kept, json.dumps(footer, separators=(",", ":")) + "\n"]))


def test_a_log_that_was_erased_after_the_seal_is_proved_by_its_tombstone(
    accounts, sealed, tmp_path
):
    seal, leaves = sealed
    gone(accounts[1])
    path = export(tmp_path / "all.jsonl")

    plain = attested(seal, exports=[path])
    named = attested(seal, exports=[path], leaves=lambda: leaves)

    assert (plain.is_proved, named.is_proved) == (True, True)
    assert (plain.logs, plain.events) == (2, 4)
    assert plain.verdicts[0].notes == ["1 log was erased; what is left of them stands in"]


def test_a_seal_that_was_made_after_the_erasure_is_proved_too(accounts, sealed, tmp_path):
    first, _ = sealed
    gone(accounts[0])
    second = make_seal(previous=first)
    path = export(tmp_path / "all.jsonl")

    assert states(attested(first, second, exports=[path])) == [PROVED, PROVED]


def test_all_logs_may_be_erased(accounts, sealed, tmp_path):
    for each in accounts:
        gone(each)
    path = export(tmp_path / "all.jsonl")

    assert attested(sealed[0], exports=[path]).is_proved


def test_a_log_that_was_created_and_erased_after_the_seal_is_no_difference(
    accounts, sealed, tmp_path
):
    gone(Account.logs.create(Opened(owner="D")))
    gone(accounts[2])
    path = export(tmp_path / "all.jsonl")

    assert attested(sealed[0], exports=[path]).is_proved


def test_without_the_tombstone_it_is_undecided_as_before(accounts, sealed, tmp_path):
    seal, leaves = sealed
    log_id = gone(accounts[1])
    path = export(tmp_path / "all.jsonl")
    take_out(path, log_id)

    plain = attested(seal, exports=[path])
    named = attested(seal, exports=[path], leaves=lambda: leaves)

    assert states(plain) == states(named) == [UNDECIDED]
    assert plain.verdicts[0].reason.startswith("1 log is missing, perhaps erased or archived.")
    assert [each.log_id for each in named.findings] == [log_id]


def test_a_tombstone_with_another_head_differs(accounts, sealed, tmp_path):
    seal, leaves = sealed
    log_id = gone(accounts[1])
    path = export(tmp_path / "all.jsonl")
    forge(path, log_id, digest="ab" * 32)

    plain = attested(seal, exports=[path])
    named = attested(seal, exports=[path], leaves=lambda: leaves)

    assert states(plain) == states(named) == [DIFFERS]
    assert "the tombstone of an erased log was changed" in plain.verdicts[0].reason
    assert [each.message for each in named.findings] == [
        f"what was erased is not what the seal stands over (seal of {seal.time})"
    ]


@pytest.mark.parametrize("events", [2, 4])
def test_a_tombstone_with_another_number_of_events_is_not_proved_and_differs_from_the_leaves(
    accounts, sealed, tmp_path, events
):
    seal, leaves = sealed
    log_id = gone(accounts[1])
    path = export(tmp_path / "all.jsonl")
    forge(path, log_id, events=events)

    plain = attested(seal, exports=[path])
    named = attested(seal, exports=[path], leaves=lambda: leaves)

    assert states(plain) == [UNDECIDED]
    assert states(named) == [DIFFERS]
    assert [each.log_id for each in named.findings] == [log_id]


def test_a_tombstone_does_not_hide_events_of_the_log(accounts, sealed, tmp_path):
    """The export of a log that is alive gets a false tombstone: its events are compared."""
    seal, leaves = sealed
    path = export(tmp_path / "all.jsonl")
    line = {
        "erased": str(accounts[1].log_id),
        "events": 3,
        "digest": "ab" * 32,
        "erased_by": "eve",
        "reason": "none",
        "erased_at": "2026-01-01T00:00:00Z",
    }
    *lines, footer = path.read_text().splitlines(keepends=True)
    footer = footer.replace("}", ',"erased":1}')
    path.write_text("".join([*lines, json.dumps(line, separators=(",", ":")) + "\n", footer]))

    for options in ({}, {"leaves": lambda: leaves}):
        found = attested(seal, exports=[path], **options)
        assert states(found) == [DIFFERS]
        assert "its events are not those that were erased" in found.findings[0].message


# Several exports


@pytest.fixture
def two(accounts, sealed, tmp_path) -> list[Path]:
    """
    Two exports, between which the second account got an event and was erased.

    The first one has the account's events up to the first seal.
    """
    first = export(tmp_path / "first.jsonl")
    more = Account.logs.append(accounts[1], Deposited(amount=7))
    Account.logs.append(accounts[0], Deposited(amount=1))
    gone(more)
    return [first, export(tmp_path / "second.jsonl", after=until(first))]


def test_a_log_that_was_erased_between_two_exports_is_proved_by_the_events_of_the_first(
    sealed, two
):
    """The tombstone alone has an event more than the seal: see the next test."""
    seal, leaves = sealed

    assert attested(seal, exports=two).is_proved
    assert attested(seal, exports=two, leaves=lambda: leaves).is_proved
    assert attested(seal, make_seal(previous=seal), exports=two).is_proved


def test_as_on_the_database_a_tombstone_with_later_events_needs_the_leaves(sealed, two, tmp_path):
    seal, leaves = sealed
    whole = export(tmp_path / "whole.jsonl")

    for source in (ExportSource([whole]), DatabaseSource("default")):
        plain = attest([seal], source, Trusted([PUBLIC]))
        named = attest([seal], source, Trusted([PUBLIC]), leaves=lambda: leaves)
        assert (states(plain), named.is_proved) == ([UNDECIDED], True)


def test_a_seal_between_the_exports_is_proved_by_the_tombstone(accounts, sealed, tmp_path):
    first = export(tmp_path / "first.jsonl")
    more = Account.logs.append(accounts[1], Deposited(amount=7))
    second = make_seal(previous=sealed[0])
    gone(more)
    rest = export(tmp_path / "second.jsonl", after=until(first))

    found = attested(sealed[0], second, exports=[first, rest])
    assert states(found) == [PROVED, PROVED]
    forge(rest, more.log_id, digest="ab" * 32)
    assert states(attested(sealed[0], second, exports=[first, rest])) == [PROVED, DIFFERS]


def test_changed_events_of_a_log_that_was_erased_later_differ(accounts, sealed, two):
    first, rest = two
    text = first.read_text()
    first.write_text(text.replace('"B"', '"Z"'))

    found = attested(sealed[0], exports=[first, rest])

    assert not found.is_proved
    assert {each.log_id for each in found.findings} == {accounts[1].log_id}


def test_another_tombstone_of_the_same_log_in_a_later_export_is_refused(accounts, sealed, tmp_path):
    log_id = gone(accounts[1])
    first = export(tmp_path / "first.jsonl")
    rest = export(tmp_path / "rest.jsonl", after=until(first))

    assert attested(sealed[0], exports=[first, rest]).is_proved
    forge(first, log_id, digest="ab" * 32)
    with pytest.raises(InvalidExport, match="another tombstone of the log"):
        attested(sealed[0], exports=[first, rest])


def test_tombstones_in_another_order_are_refused(accounts, sealed, tmp_path):
    gone(accounts[0])
    gone(accounts[1])
    path = export(tmp_path / "all.jsonl")
    *lines, one, two, footer = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, two, one, footer]))

    with pytest.raises(InvalidExport, match="not in the order of UUIDs"):
        attested(sealed[0], exports=[path])


def test_tombstones_are_not_kept_in_memory_but_read_beside_the_events(
    accounts, sealed, tmp_path, monkeypatch
):
    for each in accounts[:2]:
        gone(each)
    path = export(tmp_path / "all.jsonl")

    erased = ExportSource([path]).erased()

    assert next(erased).row.log_id == accounts[0].log_id
    assert [each.row.log_id for each in erased] == [accounts[1].log_id]


# With archives


def test_tombstones_and_archives_go_together(settings, transactional_db, tmp_path):
    use(settings, tmp_path / "archives", CHAIN=True, SEAL_KEY=SECRET)
    closed = Account.logs.create(Opened(owner="A"), Deposited(amount=5), Withdrawn(amount=5))
    erased = Account.logs.create(Opened(owner="B"), Deposited(amount=1))
    other = Account.logs.create(Opened(owner="C"), Deposited(amount=2))
    leaves: list[Leaf] = []
    seal = make_seal(tell=leaves.append)
    file = tmp_path / "archives" / archive()
    gone(erased)
    path = export(tmp_path / "all.jsonl")

    assert attested(seal, exports=[path], archives=[file]).is_proved
    assert attested(seal, exports=[path], archives=[file], leaves=lambda: leaves).is_proved
    without = attested(seal, exports=[path])
    assert states(without) == [UNDECIDED]
    assert without.verdicts[0].reason.startswith("1 log is missing")
    forge(path, erased.log_id, digest="ab" * 32)
    assert states(attested(seal, exports=[path], archives=[file])) == [DIFFERS]
    assert not Account.logs.exists(erased.log_id)
    assert Account.logs.version(closed.log_id) == 3
    assert Account.logs.version(other.log_id) == 2


def test_a_log_that_was_erased_does_not_stand_in_for_one_that_is_archived(
    settings, transactional_db, tmp_path
):
    """The seal's numbers fit by chance: another log was created and erased after it."""
    use(settings, tmp_path / "archives", CHAIN=True, SEAL_KEY=SECRET)
    Account.logs.create(Opened(owner="A"), Deposited(amount=5), Withdrawn(amount=5))
    erased = Account.logs.create(Opened(owner="B"), Deposited(amount=1))
    seal = make_seal()
    archive()
    gone(erased)
    gone(Account.logs.create(Opened(owner="C"), Deposited(amount=1), Deposited(amount=2)))
    path = export(tmp_path / "all.jsonl")

    assert states(attested(seal, exports=[path])) == [UNDECIDED]


# Imported tombstones


def test_seals_from_before_an_import_of_tombstones_stay_proved(accounts, sealed, tmp_path):
    first, leaves = sealed
    gone(accounts[0])
    stone = foreign_tombstone()
    tombstones.restore("default", [stone])
    second = make_seal(previous=first)
    path = export(tmp_path / "all.jsonl")

    for source in (DatabaseSource("default"), ExportSource([path])):
        found = attest([first, second], source, Trusted([PUBLIC]))
        named = attest([first], source, Trusted([PUBLIC]), leaves=lambda: leaves)
        assert states(found) == [PROVED, PROVED]
        assert named.is_proved
    assert (first.logs, second.logs) == (3, 5)


def foreign_tombstone() -> tombstones.Tombstone:
    """Return the tombstone of a log of another database that was erased long ago."""
    state = Account.logs.create(Opened(owner="D"))
    gone(state)
    found = [each for page in tombstones.pages("default") for each in page]
    [stone] = [each for each in found if each.log_id == state.log_id]
    there = LogId.from_key("account", "elsewhere")
    long_ago = stone.erased_at.replace(year=2020)
    return stone._replace(log_id=there, erased_at=long_ago, created_at=None)


def test_a_broken_version_that_believes_the_time_of_the_erasure_cannot_prove_earlier_seals(
    accounts, sealed, monkeypatch
):
    tombstones.restore("default", [foreign_tombstone()])
    whole = Check.add_erased

    def without_the_time(self, row, *, created_at=None, mark=None):
        return whole(self, row, mark=mark)

    assert attest([sealed[0]], DatabaseSource("default"), Trusted([PUBLIC])).is_proved
    monkeypatch.setattr(Check, "add_erased", without_the_time)
    assert states(attest([sealed[0]], DatabaseSource("default"), Trusted([PUBLIC]))) == [UNDECIDED]


def test_a_broken_version_that_takes_each_tombstone_for_its_log_differs(
    accounts, sealed, two, monkeypatch
):
    """It prefers the tombstone, with its later events, to the events that the seal stands over."""
    whole = ExportSource.erased

    def incomplete(self):
        for each in whole(self):
            yield each._replace(complete_until=0)

    assert attested(sealed[0], exports=two).is_proved
    monkeypatch.setattr(ExportSource, "erased", incomplete)
    assert states(attested(sealed[0], exports=two)) == [UNDECIDED]


def test_an_import_of_the_export_has_the_erased_logs(accounts, sealed, second_database, tmp_path):
    log_id = gone(accounts[1])
    path = export(tmp_path / "all.jsonl")

    with path.open("rb") as lines:
        done = import_lines(store_for(second_database), lines)

    assert (done.stored, done.tombstones) == (4, 1)
    [page] = tombstones.pages(second_database)
    assert [each.log_id for each in page] == [log_id]
