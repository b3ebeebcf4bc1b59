"""The sources of an attestation: a database, and exports."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import connection

from eventlogs.exceptions import InvalidExport
from eventlogs.operations import jsonl
from eventlogs.operations.erasure import erase
from eventlogs.seals import attest, make_seal
from eventlogs.seals.attesting import UNDECIDED
from eventlogs.seals.keys import Trusted
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.sources import DatabaseSource, ExportSource
from tests.accounts import Account, Deposited
from tests.seals.histories import PUBLIC

pytestmark = pytest.mark.feed


def export(path: Path, *, after: int = 0, until: int) -> Path:
    count = 0
    with path.open("w") as stream:
        stream.write(jsonl.header(after=after))
        for page in jsonl.export_pages("default", after=after, until=until):
            stream.writelines(page.lines)
            count += len(page.lines)
        stream.write(jsonl.footer(events=count, until=until))
    return path


@pytest.fixture
def exported(accounts_of_three, tmp_path) -> Path:
    return export(tmp_path / "all.jsonl", until=accounts_of_three[1].position)


def attested(seals, *paths):
    return attest(seals, ExportSource(paths), Trusted([PUBLIC]))


def test_an_export_is_proved_as_its_database_is(exported):
    found = attested([make_seal()], exported)

    assert found.is_proved
    assert (found.logs, found.events) == (3, 7)


def test_exports_that_follow_each_other_are_one_history(exported, accounts_of_three, tmp_path):
    first = make_seal()
    state = Account.logs.append(accounts_of_three[0], Deposited(amount=1))
    second = make_seal(previous=first)
    before = accounts_of_three[1].position
    rest = export(tmp_path / "rest.jsonl", after=before, until=state.position)

    assert attested([first, second], exported, rest).is_proved
    assert attested([first], exported).is_proved
    assert "ends at position" in attested([second], exported).verdicts[0].reason


def test_a_changed_line_is_found(exported):
    seal = make_seal()
    text = exported.read_text()

    exported.write_text(text.replace('"amount":50', '"amount":51').replace(": 50", ": 51"))
    found = attested([seal], exported)

    assert not found.is_proved
    assert {each.index for each in found.findings} == {1}
    assert len(found.findings) == 3


def test_a_line_that_was_left_out_is_found(exported):
    seal = make_seal()
    header, *lines, footer = exported.read_text().splitlines(keepends=True)

    exported.write_text("".join([header, *lines[:-1], footer.replace("7", "6", 1)]))

    assert not attested([seal], exported).is_proved


def test_an_export_without_logs_that_were_erased_is_undecided(
    accounts_of_three, transactional_db, tmp_path
):
    leaves: list[Leaf] = []
    seal = make_seal(tell=leaves.append)
    erase(accounts_of_three[1].log_id, by="ada", reason="asked for")
    path = export(tmp_path / "all.jsonl", until=seal.position)
    source = ExportSource([path])

    found = attested([seal], path)
    named = attest([seal], source, Trusted([PUBLIC]), leaves=lambda: leaves)

    assert [each.verdicts[0].state for each in (found, named)] == [UNDECIDED, UNDECIDED]
    assert [each.log_id for each in named.findings] == [accounts_of_three[1].log_id]


def test_an_export_from_the_middle_is_refused(accounts_of_three, tmp_path):
    path = export(tmp_path / "rest.jsonl", after=2, until=7)

    with pytest.raises(InvalidExport, match="does not begin at position 0"):
        ExportSource([path])


def test_exports_with_a_gap_are_refused(exported, tmp_path):
    rest = export(tmp_path / "rest.jsonl", after=2, until=7)

    with pytest.raises(InvalidExport, match="where the export before it ends"):
        ExportSource([exported, rest])


def test_an_export_that_is_not_complete_is_refused(exported):
    lines = exported.read_text().splitlines(keepends=True)
    exported.write_text("".join(lines[:-1]))

    with pytest.raises(InvalidExport, match="ends too early"):
        ExportSource([exported])


def test_progress_is_told(accounts_of_three, exported):
    told: list[int] = []
    sources = [
        DatabaseSource("default", tell=told.append),
        ExportSource([exported], tell=told.append),
    ]

    assert [len(list(each.pasts([7]))) for each in sources] == [3, 3]
    assert sum(told) == 14


def test_pages_do_not_change_the_history(accounts_of_three, monkeypatch):
    def marks():
        return [past.marks for past in DatabaseSource("default").pasts([4, 7])]

    expected = marks()
    monkeypatch.setattr("eventlogs.stores.digested_events.PAGE", 2)
    if connection.vendor == "postgresql":
        monkeypatch.setattr("eventlogs.seals.postgresql.SIZE", 2)

    assert marks() == expected
