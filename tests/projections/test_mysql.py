"""Inline projections on databases without upserts by key and without write conflicts."""

from __future__ import annotations

import pytest
from django.db import (
    IntegrityError,
    OperationalError,
    ProgrammingError,
    connection,
    models,
    transaction,
)

from eventlogs import (
    ANY,
    FeedUnavailable,
    TransactionMustRetry,
)
from eventlogs.projections import mysql
from eventlogs.projections.rows import Rows, upsert
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.projections.readmodels import (
    Balances,
    Inlined,
    InlinedBalances,
    Letters,
    balances,
    replayed,
)
from tests.tables import Table

pytestmark = pytest.mark.usefixtures("tables", "inlined")


class Named(Table):
    """Names that only one row may have."""

    number = models.IntegerField(primary_key=True)
    name = models.CharField(max_length=20, unique=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        app_label = "tests_of_projections"

    def __str__(self):
        return self.name


@pytest.fixture
def _named(transactional_db):
    with connection.schema_editor() as editor:
        editor.create_model(Named)
    yield
    with connection.schema_editor() as editor:
        editor.delete_model(Named)


@pytest.mark.usefixtures("_named")
def test_a_row_with_the_unique_value_of_another_row_is_refused():
    upsert(Named, [Named(number=1, name="ada"), Named(number=2, name="bob")], "default")

    with pytest.raises(IntegrityError), transaction.atomic():
        upsert(Named, [Named(number=3, name="ada")], "default")
    with pytest.raises(IntegrityError), transaction.atomic():
        upsert(Named, [Named(number=2, name="ada")], "default")

    assert dict(Named.objects.values_list("number", "name")) == {1: "ada", 2: "bob"}


@pytest.mark.usefixtures("_named")
def test_rows_are_inserted_and_updated_with_the_time_of_the_change():
    upsert(Named, [Named(number=1, name="ada")], "default")
    before = Named.objects.get().changed_at

    rows = Rows(Named, [1, 2], "default")
    rows[1].name, rows[2].name = "eve", "bob"
    rows.write()

    assert dict(Named.objects.values_list("number", "name")) == {1: "eve", 2: "bob"}
    assert Named.objects.get(number=1).changed_at > before


def test_an_inline_projection_is_rebuilt_verified_and_repaired():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    bob = Account.logs.create(Deposited(7))
    assert InlinedBalances.verify(sample=None)
    Inlined.objects.filter(pk=ada.log_id).update(balance=6)
    Inlined.objects.filter(pk=bob.log_id).delete()

    assert not InlinedBalances.verify(sample=None)
    assert InlinedBalances.verify(sample=None, repair=True)
    assert balances(Inlined) == replayed(ada, bob)

    Inlined.objects.update(balance=0)
    assert InlinedBalances.rebuild(ada.log_id) == 1
    assert balances(Inlined) == {ada.log_id: 5, bob.log_id: 0}
    assert InlinedBalances.rebuild() == 2
    assert balances(Inlined) == replayed(ada, bob)
    ada = Account.logs.append(ada, Withdrawn(1))
    assert balances(Inlined) == replayed(ada, bob)


@pytest.mark.mariadb
@pytest.mark.fence
@pytest.mark.parametrize("call", [Balances.catch_up, InlinedBalances.catch_up, Letters.catch_up])
def test_methods_that_read_the_feed_are_refused(call):
    Account.logs.create(Deposited(5))

    with pytest.raises(FeedUnavailable) as caught:
        call()

    assert caught.value.reason == "database"


@pytest.mark.mariadb
class TestSnapshots:
    def repeatable_read(self):
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert not Account.logs.exists(Account.logs.new_id())  # takes the snapshot

    def test_an_append_on_a_snapshot_that_lacks_events_must_be_run_again(self, elsewhere):
        ada = Account.logs.create(Deposited(5))

        with transaction.atomic():
            self.repeatable_read()
            elsewhere(lambda: Account.logs.append(ada, Deposited(2)))
            with pytest.raises(TransactionMustRetry):
                Account.logs.append(ada.log_id, Deposited(1), expected_version=ANY)

        assert Account.logs.version(ada.log_id) == 2
        assert balances(Inlined) == {ada.log_id: 7}

    @pytest.mark.fence  # the counters refuse such a snapshot by themselves
    def test_a_broken_version_that_accepts_the_snapshot_misses_an_event(
        self, elsewhere, monkeypatch
    ):
        monkeypatch.setattr(mysql, "refuse_old_snapshot", lambda *_: None)
        monkeypatch.setattr(mysql, "latest", lambda rows, using: rows)
        ada = Account.logs.create(Deposited(5))

        with transaction.atomic():
            self.repeatable_read()
            elsewhere(lambda: Account.logs.append(ada, Deposited(2)))
            Account.logs.append(ada.log_id, Deposited(1), expected_version=ANY)

        assert balances(Inlined) != replayed(ada)

    def test_a_row_that_was_repaired_after_the_snapshot_is_not_lost(self, elsewhere):
        ada = Account.logs.create(Deposited(5))
        Inlined.objects.update(balance=0)

        with transaction.atomic():
            self.repeatable_read()
            elsewhere(lambda: InlinedBalances.verify(sample=None, repair=True))
            Account.logs.append(ada, Deposited(1))

        assert balances(Inlined) == {ada.log_id: 6}

    def test_a_version_that_was_applied_after_the_snapshot_is_not_applied_twice(
        self, elsewhere, monkeypatch
    ):
        ada = Account.logs.create(Deposited(5))
        with monkeypatch.context() as patch:
            patch.setattr("eventlogs.stores.participants.registered", {})
            ada = Account.logs.append(ada, Deposited(2))

        with transaction.atomic():
            self.repeatable_read()
            elsewhere(lambda: InlinedBalances.rebuild(ada.log_id))
            Account.logs.append(ada, Deposited(1))

        assert balances(Inlined) == {ada.log_id: 8}


def test_a_missing_table_is_not_an_error_of_the_handler():
    ada = Account.logs.create(Deposited(5))
    with connection.schema_editor() as editor:
        editor.alter_db_table(Inlined, Inlined._meta.db_table, "elsewhere")
    try:
        with pytest.raises((ProgrammingError, OperationalError)):
            Account.logs.append(ada, Deposited(1))
    finally:
        with connection.schema_editor() as editor:
            editor.alter_db_table(Inlined, "elsewhere", Inlined._meta.db_table)

    assert Account.logs.version(ada.log_id) == 1
