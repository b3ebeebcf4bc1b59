"""``eventlogs grants``, and a role of PostgreSQL that has these grants and owns nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection, connections, transaction

from eventlogs import (
    Feed,
    FeedUnavailable,
    IdempotentReplay,
    LogAlreadyExists,
    LogManager,
    NameTaken,
    ProjectionUnavailable,
)
from eventlogs.management.subcommands import grants
from eventlogs.models import (
    ErasedLog,
    Event,
    EventLog,
    IdempotencyKey,
    ProjectionState,
    UniqueValue,
)
from eventlogs.operations.erasure import erase
from eventlogs.projections import rebuild, workers
from eventlogs.stores import tombstones
from eventlogs.stores.citus import CitusStore
from eventlogs.stores.portable import PortableStore
from tests.accounts import Account, Deposited, Noted, Opened, Withdrawn
from tests.locks import a_session_waits
from tests.members import Greeted, Joined, Member
from tests.processes import until
from tests.projections import conftest as projections
from tests.projections import readmodels
from tests.projections.readmodels import (
    Balance,
    Balances,
    Inlined,
    InlinedBalances,
    balances,
    fail_on,
    replayed,
)
from tests.reliability.test_feed_schemas import alias_for

tables, inlined = projections.tables, projections.inlined
ROLE = f'eventlogs "app" {os.getpid()}'


def execute(statement: str) -> list[tuple]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def connected_as(user: str, password: str) -> Iterator[None]:
    settings = connection.settings_dict
    before = {"USER": settings["USER"], "PASSWORD": settings["PASSWORD"]}
    connection.close()
    settings.update(USER=user, PASSWORD=password)
    try:
        yield
    finally:
        connection.close()
        settings.update(before)


@pytest.fixture
def known():
    """The projections of the tests, the inline one included, are those of the project."""
    with readmodels.declaring(readmodels.DECLARED):
        yield


@pytest.fixture
def as_owner(
    tables: None, known: None, inlined: None, run: Callable[..., str]
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """
    This process is connected as a role that has the grants that are printed, and no others.

    The value is a context manager within which it is connected as the owner of the tables.
    """
    owner = (connection.settings_dict["USER"], connection.settings_dict["PASSWORD"])
    quoted = grants.quoted(ROLE)
    execute(f"CREATE ROLE {quoted} LOGIN PASSWORD 'secret'")
    try:
        execute(run("grants", ROLE))
        with connected_as(ROLE, "secret"):
            assert execute("SELECT current_user, session_user") == [(ROLE, ROLE)]
            yield lambda: connected_as(*owner)
    finally:
        execute(f"DROP OWNED BY {quoted}; DROP ROLE {quoted}")


@pytest.mark.postgresql
def test_a_role_with_these_grants_appends_and_reads(as_owner):
    state = Account.logs.create(Opened("ada"), Deposited(5), idempotency_key="k")
    with pytest.raises(IdempotentReplay):
        Account.logs.create(Opened("ada"), Deposited(5), idempotency_key="k")
    with transaction.atomic():
        Account.logs.create(Opened("bob"), idempotency_key="in a transaction")
        state = Account.logs.append(state, Deposited(1), Deposited(2), idempotency_key="l")
    state = Account.logs.append(state, Noted("one"))
    Account.logs.execute(state.log_id, lambda _: [Withdrawn(1)], idempotency_key="m")

    assert Account.logs.reduce(state.log_id).aggregate.balance == 7
    assert len(Account.logs.load(state.log_id)) == 6
    assert len(Feed().read()) == 7
    assert Feed().settled() == Event.objects.last().position
    assert Feed().holding_back() == []
    assert IdempotencyKey.objects.prune(older_than=timedelta()) == 4


@pytest.mark.postgresql
def test_a_role_with_these_grants_runs_projections(as_owner, monkeypatch):
    state = Account.logs.create(Opened("ada"), Deposited(5))
    other = Account.logs.create(Opened("bob"))

    assert workers.run()["balances"] == 3
    assert balances() == replayed(state, other)
    assert balances(Inlined) == {state.log_id: 5}
    Balance.objects.update(balance=99)
    assert len(Balances.verify(repair=True).differences) == 2
    assert balances() == replayed(state, other)

    monkeypatch.setattr(Balances, "max_attempts", 1)
    fail_on(Noted)  # the inline one does not handle it
    Account.logs.append(state, Noted("parked"))
    Account.logs.append(other, Noted("parked"))
    Balances.catch_up()
    readmodels.reset()
    assert len(Balances.parked()) == 2
    assert Balances.skip(state.log_id)
    assert Balances.retry(other.log_id) == 1
    Balances.catch_up()
    assert Balances.parked() == []
    # In place, row by row, without a table of its own.
    assert InlinedBalances.rebuild() > 0
    assert Balances.rebuild(log_id=state.log_id) > 0


@pytest.mark.postgresql
def test_a_role_with_these_grants_runs_the_commands_and_checks(as_owner, run, run_json):
    state = Account.logs.create(Opened("ada"), Deposited(5), idempotency_key="k")
    Balances.catch_up()

    assert [each for each in run_checks(databases=["default"]) if "eventlogs" in each.id] == []
    assert run_json("stats")["events"] == 2
    for arguments in (
        ["show", state.log_id],
        ["reduce", state.log_id],
        ["tail"],
        ["verify"],
        ["export"],
        ["parked"],
        ["prune", "--older-than", "1s"],
        ["grants", "another"],
    ):
        run(*arguments)


@pytest.mark.postgresql
def test_a_role_with_these_grants_imports(as_owner, run, tmp_path):
    state = Account.logs.create(Opened("ada"), Deposited(5), idempotency_key="k")
    path = tmp_path / "export.jsonl"
    run("export", path)
    with as_owner():
        execute("TRUNCATE eventlogs_event, eventlogs_eventlog, eventlogs_idempotencykey")

    run("import", path)

    assert Account.logs.reduce(state.log_id).aggregate.balance == 5
    with pytest.raises(IdempotentReplay):
        Account.logs.create(Opened("ada"), Deposited(5), idempotency_key="k")


@pytest.fixture
def erased_elsewhere(as_owner, run, tmp_path):
    """An export with a log and a tombstone, neither of which the database has."""
    Account.logs.create(Opened("ada"), Deposited(5))
    gone = Account.logs.create(Opened("bob")).log_id
    path = tmp_path / "export.jsonl"
    with as_owner():
        erase(gone, reason="a test", by="grace")
        run("export", path)
        execute("TRUNCATE eventlogs_event, eventlogs_eventlog, eventlogs_erasedlog")
    return path


@pytest.mark.postgresql
def test_a_role_with_these_grants_cannot_import_that_a_log_was_erased(
    as_owner, erased_elsewhere, run
):
    with pytest.raises(CommandError, match="may not store that") as caught:
        run("import", erased_elsewhere)

    assert caught.value.returncode == 2
    assert "0 events imported" in str(caught.value)
    assert not Event.objects.exists()
    assert not ErasedLog.objects.exists()
    with as_owner():
        assert "2 events imported" in run("import", erased_elsewhere)
    assert "0 events imported, 2 were already stored." in run("import", erased_elsewhere)
    assert ErasedLog.objects.count() == 1


@pytest.mark.postgresql
def test_a_broken_version_that_does_not_ask_for_the_owner_is_refused_by_the_database(
    as_owner, erased_elsewhere, run, monkeypatch
):
    monkeypatch.setattr(tombstones, "check_owner", lambda *arguments, **options: None)

    with pytest.raises(CommandError, match="permission denied"):
        run("import", erased_elsewhere)

    assert not ErasedLog.objects.exists()


@pytest.mark.postgresql
def test_a_role_with_these_grants_reads_and_writes_through_the_portable_store(as_owner):
    accounts = LogManager(Account, store=PortableStore("default"))
    state = accounts.create(Opened("ada"), idempotency_key="k")
    state = accounts.append(state, Deposited(5), idempotency_key="l")

    with pytest.raises(IdempotentReplay):
        accounts.append(state, Deposited(5), idempotency_key="l")
    assert accounts.reduce(state.log_id).aggregate.balance == 5


@pytest.mark.postgresql
@pytest.mark.buckets
@pytest.mark.parametrize("is_inside", [False, True])
def test_a_refused_create_of_such_a_role_leaves_nothing_in_the_store_for_citus(as_owner, is_inside):
    """The role may not delete the row of a log that it has claimed."""
    members = LogManager(Member, store=CitusStore("default"))
    taken = members.create(Joined("ada@example.org"))

    with transaction.atomic() if is_inside else nullcontext():
        with pytest.raises(NameTaken):
            members.create(Joined("ada@example.org", card=1), idempotency_key="k")
        with pytest.raises(LogAlreadyExists):
            members.create(Greeted(), log_id=taken.log_id, idempotency_key="k")
        assert not IdempotencyKey.objects.exists()
        assert EventLog.objects.count() == UniqueValue.objects.count() == 1
        assert members.create(Joined("bob@example.org", card=1), idempotency_key="k").version == 1

    assert EventLog.objects.count() == Event.objects.count() == 2


@pytest.mark.postgresql
@pytest.mark.buckets
@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("is_inside", [False, True])
def test_a_create_of_such_a_role_waits_for_its_key_in_the_store_for_citus(
    as_owner, settings, chain, is_inside
):
    settings.EVENTLOGS = {"CHAIN": chain}
    accounts = LogManager(Account, store=CitusStore("default"))

    def refused() -> None:
        try:
            with transaction.atomic() if is_inside else nullcontext():
                with pytest.raises(IdempotentReplay):
                    accounts.create(Opened("ada"), idempotency_key="k")
                accounts.create(Opened("bob"))
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            accounts.create(Opened("ada"), idempotency_key="k")
            waiting = pool.submit(refused)
            until(a_session_waits)
        waiting.result(timeout=20)

    assert EventLog.objects.count() == Event.objects.count() == 2


@pytest.mark.postgresql
def test_a_rebuild_by_such_a_role_names_the_owner_who_can_run_it(as_owner, run):
    state = Account.logs.create(Opened("ada"), Deposited(5))
    Balances.catch_up()
    Balance.objects.update(balance=99)
    with as_owner():
        [(owner,)] = execute("SELECT current_user")
        execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # the default since PostgreSQL 15

    with transaction.atomic(), pytest.raises(ProjectionUnavailable) as caught:
        Balances.rebuild()
    assert (caught.value.reason, caught.value.owner) == ("privilege", owner)
    assert repr(owner) in str(caught.value)
    with pytest.raises(CommandError, match="as the owner of the table"):
        run("rebuild", "balances")
    # A worker continues, and the reason of the failed rebuild is recorded.
    rebuild.request_rebuild(Balances)
    assert workers.run()["reduced-balances"] == 2
    assert "owner of the table" in ProjectionState.objects.get(name="balances").rebuild_error

    with as_owner():
        assert Balances.rebuild() == 2
    # The new table has the grants of the old one.
    assert balances() == replayed(state)
    Account.logs.append(state, Deposited(1))
    assert Balances.catch_up() == 1


@pytest.mark.postgresql
def test_a_role_that_may_create_tables_rebuilds_by_moving_the_rows(as_owner):
    state = Account.logs.create(Opened("ada"), Deposited(5))
    Balances.catch_up()
    Balance.objects.update(balance=99)
    with as_owner():
        execute(f"GRANT CREATE ON SCHEMA public TO {grants.quoted(ROLE)}")

    assert Balances.rebuild() == 2
    assert balances() == replayed(state)


@pytest.mark.postgresql
@pytest.mark.fence
def test_statements_without_a_grant_are_refused(as_owner):
    state = Account.logs.create(Opened("ada"))
    for statement in (
        "UPDATE eventlogs_event SET index = 9",
        "DELETE FROM eventlogs_event",
        "TRUNCATE eventlogs_event",
        "DELETE FROM eventlogs_eventlog",
        "ALTER TABLE eventlogs_event DISABLE TRIGGER ALL",
        "SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'), 1)",
    ):
        with pytest.raises(ProgrammingError):
            execute(statement)

    assert Account.logs.version(state.log_id) == 1


@pytest.mark.postgresql
@pytest.mark.fence
def test_without_the_sequence_the_feed_says_what_to_grant(as_owner):
    Account.logs.create(Opened("ada"))
    with as_owner():
        execute(f"REVOKE ALL ON SEQUENCE eventlogs_event_position_seq FROM {grants.quoted(ROLE)}")

    for ask in (Feed().read, Feed().holding_back):
        with pytest.raises(FeedUnavailable, match="eventlogs grants") as caught:
            ask()
        assert caught.value.reason == "permission"


@pytest.mark.postgresql
def test_the_tables_of_another_schema_and_serial_columns_are_granted(second_database, run):
    with alias_for(second_database, "tenant") as tenant:
        with connections[tenant].cursor() as cursor:
            cursor.execute("CREATE SCHEMA tenant")
            call_command("migrate", "eventlogs", database=tenant, verbosity=0)
            cursor.execute(
                "CREATE SEQUENCE tenant.numbers OWNED BY tenant.eventlogs_parkedevent.id"
            )

        printed = run("grants", "app", database=tenant).splitlines()

    assert 'GRANT USAGE ON SCHEMA "tenant" TO "app";' in printed
    assert 'GRANT SELECT, INSERT ON TABLE "tenant"."eventlogs_event" TO "app";' in printed
    assert 'GRANT USAGE ON SEQUENCE "tenant"."numbers" TO "app";' in printed


@pytest.mark.postgresql
def test_a_missing_table_is_reported(transactional_db, known, run_json, capsys):
    found = run_json("grants", "app")

    assert set(found["absent"]) == {model._meta.db_table for model in readmodels.MODELS}
    assert "Migrate" in capsys.readouterr().err


@pytest.mark.postgresql
@pytest.mark.parametrize("role", ["", "a\0b"])
def test_a_name_that_no_role_can_have_is_a_mistake(db, run, role):
    with pytest.raises(CommandError, match="Name the role"):
        run("grants", role)


@pytest.mark.sqlite
def test_grants_is_an_error_on_other_databases(db, run):
    with pytest.raises(CommandError, match="not PostgreSQL"):
        run("grants", "app")
