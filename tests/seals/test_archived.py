"""Archived logs stay under seals, and whatever somebody does to an archive is found."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.db.models import QuerySet

from eventlogs import LogState
from eventlogs.events import chain
from eventlogs.exceptions import InvalidExport, SealUnavailable
from eventlogs.feed.reader import Feed
from eventlogs.models import ArchivedLog, ArchiveFile
from eventlogs.operations import archiving
from eventlogs.operations.erasure import erase
from eventlogs.seals import attest, make_seal
from eventlogs.seals.attesting import DIFFERS, PROVED, UNDECIDED
from eventlogs.seals.keys import Trusted
from eventlogs.seals.leaves import Counts, Leaf, leaves_at
from eventlogs.seals.proofs import proof_document
from eventlogs.seals.sources import DatabaseSource, ExportSource
from eventlogs.stores import export_lines
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.operations.archiving.conftest import use
from tests.seals.histories import PUBLIC, SECRET
from tests.seals.test_proofs import check
from tests.seals.test_sources import export

pytestmark = [pytest.mark.feed, pytest.mark.django_db(transaction=True)]


def archived(using: str = "default") -> QuerySet[Any]:
    """Return the rows of archived logs, to be changed in spite of the manager."""
    return QuerySet(ArchivedLog, using=using)


@pytest.fixture
def directory(tmp_path: Path, settings: Any) -> Path:
    use(settings, tmp_path / "archives", CHAIN=True, SEAL_KEY=SECRET)
    return tmp_path / "archives"


@pytest.fixture
def accounts(directory: Path) -> list[LogState]:
    """Three accounts; the first and the last one are closed, and the last one ended last."""
    states = [Account.logs.create(Opened(owner=name), Deposited(amount=50)) for name in "ABC"]
    for number in (0, 2):
        states[number] = Account.logs.append(states[number], Withdrawn(amount=50))
    return states


def archive() -> Path:
    """Archive the closed accounts; return the name of the file."""
    [name] = archiving.archive(by="grace").files
    return Path(name)


def states_of(found):
    return [each.state for each in found.verdicts]


@pytest.mark.fence
def test_seals_of_before_and_after_are_proved(accounts, attested):
    before = make_seal()
    archive()
    after = make_seal(previous=before)
    Account.logs.append(accounts[1], Withdrawn(amount=50))
    archive()
    last = make_seal(previous=after)

    found = attested(before, after, last)

    assert states_of(found) == [PROVED] * 3
    assert (found.findings, found.logs, found.events) == ([], 3, 9)
    assert (before.root, before.position) == (after.root, after.position)
    assert last.position == after.position + 1

    for each in accounts:
        archiving.restore(each.log_id)

    assert attested(before, after, last).is_proved


def test_a_seal_stands_over_what_is_archived_even_if_nothing_else_is_there(accounts, attested):
    state = Account.logs.append(accounts[1], Withdrawn(amount=50))
    archive()

    seal = make_seal()

    assert (seal.position, seal.logs, seal.events) == (state.position, 3, 9)
    assert Feed().settled() == 0
    assert attested(seal).is_proved


def test_a_mark_is_as_of_the_position_of_an_earlier_seal(directory, attested):
    state = Account.logs.create(Opened(owner="A"), Deposited(amount=50))
    early = make_seal()
    Account.logs.append(state, Withdrawn(amount=50))
    archive()

    assert attested(early).is_proved


def test_logs_without_a_chain_are_counted(accounts, settings, attested):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "CHAIN": False}
    Account.logs.create(Opened(owner="D"))
    before = make_seal()
    archive()
    after = make_seal(previous=before)

    assert [before.unchained, after.unchained] == [1, 1]
    assert attested(before, after).is_proved


def test_leaves_of_archived_logs_read_no_file(accounts, directory, attested):
    leaves: list[Leaf] = []
    before = make_seal(tell=leaves.append)
    archive()
    for each in directory.rglob("*"):
        if each.is_file():
            each.unlink()

    assert list(leaves_at("default", before.position, Counts())) == leaves


def test_an_archived_log_that_is_erased_is_an_erased_one(accounts, attested):
    seal = make_seal()
    archive()
    erase(accounts[0].log_id, by="ada", reason="asked for")

    found = attested(seal)

    assert states_of(found) == [PROVED]
    assert found.verdicts[0].notes == ["1 log was erased; what is left of them stands in"]


def test_the_proof_of_an_archived_log_is_checked_without_the_project(accounts, attested, tmp_path):
    seal = make_seal()
    events = export(tmp_path / "all.jsonl", until=seal.position)
    archive()

    found = attested(seal, log=accounts[2].log_id)
    done = check(proof_document(found.proof), events, tmp_path=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"Proved: {accounts[2].log_id} had 3 events" in done.stdout


# What somebody does to a file


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def changed(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"50", b"51")))


def overwritten(path: Path) -> None:
    path.write_bytes(b"nothing")


@pytest.mark.parametrize("attack", [missing, truncated, changed, overwritten])
@pytest.mark.parametrize("with_leaves", [False, True])
def test_a_file_that_is_not_what_was_written_is_named(
    accounts, directory, attested, attack, with_leaves
):
    leaves: list[Leaf] = []
    seal = make_seal(tell=leaves.append)
    name = archive()
    attack(directory / name)

    found = attested(seal, **({"leaves": lambda: leaves} if with_leaves else {}))

    assert states_of(found) == [UNDECIDED]
    assert found.verdicts[0].reason == (
        "the events of 2 archived logs cannot be read. Restore the files that are named from a "
        "backup, then attest it again"
    )
    assert [each.log_id for each in found.findings] == [accounts[0].log_id, accounts[2].log_id]
    for each in found.findings:
        assert each.message.startswith(f"its archive {name} cannot be used: ")


def test_a_row_that_does_not_fit_the_file_is_named(accounts, attested):
    seal = make_seal()
    name = archive()
    for frames in ([], [[0, 1, 2]], "nothing", [[0, -1, 9, "00"]], [[0, 10**30, 9, "00"]]):
        archived().filter(pk=accounts[0].log_id.uuid).update(frames=frames)

        found = attested(seal)

        assert states_of(found) == [UNDECIDED]
        assert [each.log_id for each in found.findings] == [accounts[0].log_id]
        assert str(name) in found.findings[0].message


def forge(directory: Path, name: Path, log_id: Any) -> None:
    """Change the events of an archived log, with its digests, its row and its file."""
    row = archived().get(pk=log_id.uuid)
    lines = gzip.decompress((directory / name).read_bytes()).splitlines(keepends=True)
    header, *events, _ = lines
    head, own = chain.FIRST, []
    for line in events:
        exported = export_lines.read_event(line, 1)
        if exported.event.log_id == log_id:
            new = line.replace(b'"amount": 50', b'"amount": 51')
            new = new.replace(b'"amount":50', b'"amount":51')
            event = export_lines.read_event(new, 1).event
            head = chain.digest(head, event)
            own.append(new.replace(exported.digest.hex().encode(), head.hex().encode()))
    member = gzip.compress(b"".join(own))
    content = gzip.compress(header) + member
    (directory / name).with_name("forged").write_bytes(content)
    file = ArchiveFile.objects.get(pk=row.archive_id)
    file.pk, file.name, file.logs, file.size = None, "forged", 1, len(content)
    file.name = str(name.with_name("forged"))
    file.save()
    frames = [[0, len(content) - len(member), len(member), chain.FIRST.hex()]]
    archived().filter(pk=row.pk).update(archive_id=file.pk, frames=frames, digest=head, head=head)


def test_an_owner_who_rewrites_file_and_row_is_found(accounts, directory, attested):
    leaves: list[Leaf] = []
    seal = make_seal(tell=leaves.append)
    forge(directory, archive(), accounts[0].log_id)
    assert Account.logs.reduce(accounts[0].log_id).aggregate.balance == 0

    found = attested(seal)
    named = attested(seal, leaves=lambda: leaves)

    assert states_of(found) == states_of(named) == [DIFFERS]
    assert [each.log_id for each in named.findings] == [accounts[0].log_id]
    assert "its events are not those of the seal" in named.findings[0].message


def test_a_row_that_is_put_in_or_removed_is_found(accounts, attested):
    seal = make_seal()
    archive()
    row = archived().get(pk=accounts[0].log_id.uuid)

    archived().filter(pk=row.pk).delete()
    removed = attested(seal)
    row.head = None
    archived().bulk_create([row])
    unchained = attested(seal)

    assert states_of(removed) == states_of(unchained) == [DIFFERS]


def test_a_log_in_both_places_is_read_from_the_tables(accounts, attested):
    seal = make_seal()
    archive()
    [row] = archived().filter(pk=accounts[0].log_id.uuid)
    archiving.restore(accounts[0].log_id)
    row.archive = ArchiveFile.objects.get(state=ArchiveFile.COMPLETE)
    archived().bulk_create([row])

    assert attested(seal).is_proved


class Archived(DatabaseSource):
    """Archives logs when the first one was read, and the rows of archived logs were."""

    def _live(self, positions):
        for number, each in enumerate(super()._live(positions)):
            yield each
            if not number:
                archive()


class Restored(DatabaseSource):
    """Brings a log back when the tables were read, and the rows of archived logs were not."""

    log_id: Any = None

    def _live(self, positions):
        found = list(super()._live(positions))
        archiving.restore(self.log_id)
        yield from found


class ArchivedLater(DatabaseSource):
    """Archives logs when the tables were read: they are in both places."""

    def _live(self, positions):
        found = list(super()._live(positions))
        archive()
        yield from found


def one_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr("eventlogs.stores.digested_events.PAGE", 1)
    if connection.vendor == "postgresql":
        monkeypatch.setattr("eventlogs.seals.postgresql.SIZE", 1)


def test_a_log_that_is_archived_meanwhile_leaves_it_open(accounts, monkeypatch, attested):
    one_at_a_time(monkeypatch)
    seal = make_seal()

    found = attest([seal], Archived("default"), Trusted([PUBLIC]))

    assert states_of(found) == [UNDECIDED]
    assert found.verdicts[0].reason == (
        "logs were archived or brought back while the events were read: attest it again"
    )
    assert attested(seal).is_proved


def test_a_log_that_is_brought_back_meanwhile_leaves_it_open(accounts, attested):
    seal = make_seal()
    archive()
    source = Restored("default")
    source.log_id = accounts[2].log_id

    found = attest([seal], source, Trusted([PUBLIC]))

    assert states_of(found) == [UNDECIDED]
    assert found.verdicts[0].reason == (
        "logs were archived or brought back while the events were read: attest it again"
    )
    assert attested(seal).is_proved


def test_a_log_that_is_seen_in_both_places_counts_once(accounts):
    found = attest([make_seal()], ArchivedLater("default"), Trusted([PUBLIC]))

    assert found.is_proved
    assert found.logs == 3


def test_an_export_without_archived_logs_is_undecided(accounts, tmp_path):
    leaves: list[Leaf] = []
    seal = make_seal(tell=leaves.append)
    archive()
    source = ExportSource([export(tmp_path / "all.jsonl", until=seal.position)])

    found = attest([seal], source, Trusted([PUBLIC]))
    named = attest([seal], source, Trusted([PUBLIC]), leaves=lambda: leaves)

    assert states_of(found) == states_of(named) == [UNDECIDED]
    assert found.verdicts[0].reason.startswith(
        "2 logs are missing, perhaps erased or archived. An export does not have such logs: attest "
        "the database, or pass --leaves to compare the other logs"
    )
    assert named.verdicts[0].reason.startswith(
        "2 logs are missing, and all others are those of its leaves. An export does not have logs "
        "that were erased or archived: ask the database"
    )
    assert [each.log_id for each in named.findings] == [accounts[0].log_id, accounts[2].log_id]


def test_an_export_is_proved_with_the_files_of_the_archives(accounts, directory, tmp_path):
    before = make_seal()
    whole = export(tmp_path / "whole.jsonl", until=before.position)
    file = directory / archive()
    after = make_seal(previous=before)
    rest = export(tmp_path / "rest.jsonl", until=after.position)

    for exports, archives in (([rest], [file]), ([rest], [file, file]), ([whole], [file])):
        source = ExportSource(exports, archives=archives)
        found = attest([before, after], source, Trusted([PUBLIC]))
        assert found.is_proved
        assert found.logs == 3

    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InvalidExport) as caught:
        attest([after], ExportSource([rest], archives=[file]), Trusted([PUBLIC]))
    assert caught.value.reason == f"{file.name} is not the file of an archive, or a part of it"


def test_a_log_that_is_archived_between_two_exports_is_no_difference(directory, tmp_path):
    state = Account.logs.create(Opened(owner="A"), Deposited(amount=50))
    other = Account.logs.create(Opened(owner="B"), Deposited(amount=1))
    first = export(tmp_path / "first.jsonl", until=other.position)
    Account.logs.append(state, Withdrawn(amount=50))
    leaves: list[Leaf] = []
    seal = make_seal(tell=leaves.append)
    file = directory / archive()
    second = export(tmp_path / "second.jsonl", after=other.position, until=seal.position)

    def attested(**options: Any):
        source = ExportSource([first, second], **options)
        plain = attest([seal], source, Trusted([PUBLIC]))
        return plain, attest([seal], source, Trusted([PUBLIC]), leaves=lambda: leaves)

    assert [each.is_proved for each in attested(archives=[file])] == [True, True]
    plain, named = attested()
    assert states_of(plain) == states_of(named) == [UNDECIDED]
    assert plain.verdicts[0].reason.startswith(
        "1 event is missing, perhaps of logs that were archived between two exports. Pass "
        "--archive with the files of their archives"
    )
    assert [each.message for each in named.findings] == [
        f"it has 2 events here, and had 3: perhaps it was archived since (seal of {seal.time})"
    ]


def test_an_export_with_a_changed_event_differs_though_another_is_missing(directory, tmp_path):
    state = Account.logs.create(Opened(owner="A"), Deposited(amount=50))
    path = export(tmp_path / "all.jsonl", until=state.position)
    Account.logs.append(state, Withdrawn(amount=50))
    seal = make_seal()
    path.write_text(re.sub(r'("amount": ?)50', r"\g<1>51", path.read_text()))

    found = attest([seal], ExportSource([path]), Trusted([PUBLIC]))

    assert states_of(found) == [DIFFERS]


@pytest.mark.fence
def test_a_position_that_was_not_given_out_is_refused(accounts):
    archive()
    archived().update(last_position=10**6)

    with pytest.raises(SealUnavailable) as caught:
        make_seal()

    assert str(caught.value) == (
        f"There is no seal: the positions end at {accounts[2].position}, before 1000000, that "
        "of the last event of an archived log: an older backup was restored, or a row of "
        "eventlogs_archivedlog was changed. Find out why."
    )
