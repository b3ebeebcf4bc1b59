"""People in archived logs: their data are exported, and forgotten; values stay claimed."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db.models import QuerySet

from eventlogs import ArchiveUnavailable, LogErased, LogManager, NameTaken
from eventlogs.archives import Retention, storage
from eventlogs.models import ArchivedLog, ArchiveFile, ErasedLog, EventLog, StoredType, UniqueValue
from eventlogs.operations import archiving, erasure, unique_values
from eventlogs.operations.catalogue import catalogue
from eventlogs.operations.erasure import erase, preview
from eventlogs.operations.forgetting import forget
from eventlogs.operations.subject_exports import export_subject
from eventlogs.operations.verification import ProjectionVerifier, Scope, verify
from eventlogs.privacy import memory
from eventlogs.stores.erasing import NO_LOG_TYPE
from tests.feeds import has_feed
from tests.guests import SETTINGS, Guest, Joined, Moved
from tests.operations.archiving.conftest import use
from tests.operations.guest_rows import (
    EACH,
    KNOWN,
    MODELS,
    InlineNamed,
    InlineNames,
    Named,
    ReducedNamed,
)
from tests.projections.tables import made

pytestmark = pytest.mark.django_db(transaction=True)

guests = LogManager(Guest)
KINDS = EACH if has_feed() else (InlineNames,)
ROWS = (Named, InlineNamed, ReducedNamed) if has_feed() else (InlineNamed,)
ALL_GUESTS = Retention("visitor", timedelta(microseconds=1))


@pytest.fixture(autouse=True)
def archives(transactional_db, settings, tmp_path):
    settings.EVENTLOGS = SETTINGS
    use(settings, tmp_path, RETENTION=[ALL_GUESTS])
    memory.clear()
    with made(*MODELS), KNOWN.declared(*(each.name for each in KINDS)):
        yield tmp_path
    memory.clear()


def catch_up():
    """Let the read models come to the last event."""
    for each in KINDS:
        if has_feed():
            each.catch_up(strict=True)


def filled():
    """Archive two guests; return their ids."""
    ada = guests.create(
        Joined("1", "Ada", email="ada@example.com"), Moved("1", ["x"]), idempotency_key="ada"
    )
    other = guests.create(Joined("2", "Charles", email="c@example.com"))
    catch_up()
    assert archiving.archive(by="grace").logs == 2
    return ada.log_id, other.log_id


def names():
    """Return the names in all rows."""
    return [sorted(each.objects.values_list("name", flat=True)) for each in ROWS]


def findings():
    return list(verify(Scope("default"), [ProjectionVerifier()]))


def test_a_database_with_archives_is_right():
    filled()

    assert findings() == []
    assert unique_values.claim() == unique_values.Claimed(2, reached=findings_reached())
    assert UniqueValue.objects.count() == 2
    with pytest.raises(NameTaken):
        guests.create(Joined("3", "Ada", email="ada@example.com"))


def findings_reached():
    """Return the last log in the order of UUIDs."""
    return ArchivedLog.objects.order_by("-pk").first().log_id


def test_values_of_an_archived_log_are_compared_with_its_archive():
    ada, _ = filled()
    QuerySet(UniqueValue, using="default").filter(log_id=ada.uuid).delete()

    [finding] = findings()
    assert (finding.check, finding.subject) == ("unique", str(ada))

    assert unique_values.claim().changed == 1
    assert findings() == []


def test_an_archived_log_without_its_mark_is_a_finding():
    ada, _ = filled()
    marks: QuerySet[EventLog] = QuerySet(EventLog, using="default").filter(log_type=NO_LOG_TYPE)
    marks.filter(pk=ada.uuid)._raw_delete("default")

    assert [(each.check, each.subject, each.message) for each in findings()] == [
        (
            "archived",
            str(ada),
            "it is archived, and its row does not keep it from being created again",
        )
    ]


def test_the_data_of_a_person_in_an_archived_log_are_exported():
    ada, _ = filled()

    found = list(export_subject("1"))

    assert [(each.log, each.index) for each in found] == [(ada, 0), (ada, 1)]
    assert found[0].data == {"$.name": "Ada", "$.email": "ada@example.com"}


def test_a_person_is_forgotten_in_an_archived_log():
    ada, _ = filled()
    before = forget("1", dry_run=True)
    assert (before.logs, sum(before.rows.values())) == (1, len(ROWS))

    done = forget("1", by="grace")

    assert done.is_complete
    assert (done.logs, done.failed, sum(done.rows.values()), done.new_receipts) == (
        1,
        0,
        len(ROWS),
        1,
    )
    assert names() == [["Charles", "erased"]] * len(ROWS)
    assert not UniqueValue.objects.filter(log_id=ada.uuid).exists()
    assert guests.reduce(ada).aggregate.name == "erased"
    assert findings() == []
    guests.create(Joined("3", "Ada", email="ada@example.com"))


def test_nobody_is_reported_as_forgotten_while_an_archive_is_missing():
    filled()
    for name in ArchiveFile.objects.values_list("name", flat=True):
        storage.delete(name)

    with pytest.raises(ArchiveUnavailable):
        forget("1", by="grace")

    assert UniqueValue.objects.count() == 2
    assert [len(each) for each in names()] == [2] * len(ROWS)


def test_copies_of_an_archived_log_that_is_still_there_stay():
    ada, _ = filled()

    assert erasure.forget_copies(ada).to_rebuild == ()

    assert names() == [["Ada", "Charles"]] * len(ROWS)
    assert UniqueValue.objects.count() == 2
    assert findings() == []


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_archived_log_is_erased_and_its_archive_has_it_no_more(archives, monkeypatch, is_killed):
    ada, other = filled()
    before = preview(ada)
    assert (before.events, before.idempotency_keys, before.unique_values) == (2, 1, 1)
    assert len(before.rows) == len(ROWS)
    [old] = ArchiveFile.objects.values_list("name", flat=True)
    if is_killed:

        def kill(using):
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr(erasure, "tidy", kill)
            with pytest.raises(SystemExit):
                erase(ada, reason="asked", by="grace")
        assert (archives / old).exists()

    done = erase(ada, reason="asked", by="grace")

    assert (done.is_new, done.tombstone.events) == (not is_killed, 2)
    assert not (archives / old).exists()
    assert [(each.logs, each.problem) for each in archiving.check()] == [(1, "")]
    assert names() == [["Charles"]] * len(ROWS)
    assert guests.reduce(other).aggregate.name == "Charles"
    with pytest.raises(LogErased):
        guests.reduce(ada)
    assert ErasedLog.objects.count() == 1
    assert findings() == []


def test_an_import_of_an_archived_log_says_that_it_is_archived(tmp_path):
    guests.create(Joined("1", "Ada", email="ada@example.com"))
    catch_up()
    file = tmp_path / "all.jsonl"
    call_command("eventlogs", "export", str(file))
    archiving.archive(by="grace")
    out, err = io.StringIO(), io.StringIO()

    call_command("eventlogs", "import", str(file), stdout=out, stderr=err)

    assert "1 log is archived in this database: their events were left out" in err.getvalue()
    assert "erased" not in out.getvalue() + err.getvalue()
    assert not EventLog.objects.exists()
    assert findings() == []


def test_types_that_only_archived_logs_have_stay_noted():
    filled()
    StoredType.objects.create(log_type="visitor", type="visitor.retired", schema_version=1)
    StoredType.objects.create(log_type="nobody", type="nobody.there", schema_version=1)

    catalogue(exact=True)

    assert StoredType.objects.filter(type="visitor.retired").exists()
    assert not StoredType.objects.filter(type="nobody.there").exists()
