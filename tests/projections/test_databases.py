"""Logs in a second database: their rows and checkpoints are there, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections, models

from eventlogs import (
    LogIdField,
    LogManager,
    Projection,
    ProjectionUnavailable,
    Reactor,
    handles,
    projection,
)
from eventlogs.checks import projections as system_checks
from eventlogs.models import AppliedVersion, Checkpoint, ParkedEvent, ProjectionState
from eventlogs.projections import databases
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.projections.tables import Known, made
from tests.tables import Table


class Row(Table):
    log_id = LogIdField(primary_key=True)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_databases"

    def __str__(self):
        return str(self.log_id)


class InlineRow(models.Model):
    log_id = LogIdField(primary_key=True)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "tests_of_databases"

    def __str__(self):
        return str(self.log_id)


FAILING: list[Any] = []


class Sums(Projection):
    log_types = ["account"]
    max_attempts = 1
    backoff = 0.0

    @handles(Deposited)
    def deposited(self, row, record):
        if FAILING and self.name == "sums":
            raise ValueError
        row.balance += record.event.amount


@projection("sums")
class AsyncSums(Sums):
    model = Row


@projection("inline-sums")
class InlineSums(Sums):
    model = InlineRow
    mode = Projection.INLINE


WRITTEN: list[Any] = []


@projection("letters-of-sums")
class Letters(Reactor):
    log_types = ["account"]

    @handles(Deposited)
    def write(self, record):
        WRITTEN.append(record.event.amount)


KNOWN = Known(AsyncSums, InlineSums, Letters)


@pytest.fixture
def second(second_alias):
    """A second database with the tables of read models."""
    with made(Row, InlineRow), made(Row, InlineRow, using=second_alias), KNOWN.declared():
        yield second_alias
    FAILING.clear()
    WRITTEN.clear()
    databases._found.clear()
    databases._missing.clear()


@pytest.fixture
def bare(second_alias):
    """A second database that has logs, and no tables of read models."""
    with made(Row, InlineRow), KNOWN.declared():
        yield second_alias
    databases._found.clear()
    databases._missing.clear()


def logs(using="default"):
    return LogManager(Account, using=using)


def rows(model, using):
    return dict(model.objects.using(using).values_list("log_id", "balance"))


def command(*arguments, capsys):
    call_command("eventlogs", *arguments)
    return capsys.readouterr().out


def test_an_inline_row_is_in_the_database_of_its_append(second):
    here = logs().create(Deposited(1))
    there = logs(second).create(Deposited(5))
    there = logs(second).append(there, Deposited(7))

    assert rows(InlineRow, "default") == {here.log_id: 1}
    assert rows(InlineRow, second) == {there.log_id: 12}
    assert set(AppliedVersion.objects.using(second).values_list("log_id", "version")) == {
        (there.log_id, 2)
    }
    assert InlineSums.wait_for(there.position, timeout=0, using=second)
    assert InlineSums.verify(sample=None, using=second).checked == 1


def test_each_method_works_on_the_given_database(second):
    here, there = logs().create(Deposited(1)), logs(second).create(Deposited(5))

    assert AsyncSums.catch_up(using=second) == 1
    assert (rows(Row, "default"), rows(Row, second)) == ({}, {there.log_id: 5})
    assert AsyncSums.wait_for(there.position, timeout=0, using=second)
    assert AsyncSums.lag(using=second).positions == 0
    assert not Checkpoint.objects.filter(projection="sums").exists()

    Row.objects.using(second).update(balance=0)
    assert not AsyncSums.verify(sample=None, using=second)
    assert AsyncSums.verify(sample=None, repair=True, using=second)
    assert rows(Row, second) == {there.log_id: 5}

    Row.objects.using(second).update(balance=0)
    assert AsyncSums.rebuild(using=second) == 1
    assert AsyncSums.rebuild(there.log_id, using=second) == 1
    assert rows(Row, second) == {there.log_id: 5}
    assert rows(Row, "default") == {}

    FAILING.append(1)
    logs(second).append(there, Withdrawn(1))
    other = LogManager(Account, using=second)
    state = other.create(Deposited(3))
    AsyncSums.catch_up(using=second)
    assert [each.log_id for each in AsyncSums.parked(using=second)] == [state.log_id]
    assert AsyncSums.parked() == []
    assert AsyncSums.retry(using=second) == 1
    assert AsyncSums.skip(state.log_id, using=second)
    ProjectionState.objects.using(second).update(version=0)
    assert AsyncSums.is_rebuild_due(using=second)
    assert not AsyncSums.is_rebuild_due()
    AsyncSums.request_rebuild(using=second)
    assert not ProjectionState.objects.filter(name="sums").exists()
    FAILING.clear()
    assert AsyncSums.catch_up() == 1
    assert rows(Row, "default") == {here.log_id: 1}


def test_commands_work_on_the_database_that_they_name(second, capsys):
    here, there = logs().create(Deposited(1)), logs(second).create(Deposited(5))

    out = command("project", "--once", "--database", second, "--json", capsys=capsys)
    assert json.loads(out) == {"applied": {"inline-sums": 0, "letters-of-sums": 1, "sums": 1}}
    assert (rows(Row, "default"), rows(Row, second)) == ({}, {there.log_id: 5})
    assert WRITTEN == [5]

    for model in (Row, InlineRow):
        model._default_manager.using("default").all().delete()
        model._default_manager.using(second).all().delete()
    out = command("rebuild", "sums", "inline-sums", "--database", second, capsys=capsys)
    assert out.count(repr(second)) == 2
    for model in (Row, InlineRow):
        assert (rows(model, "default"), rows(model, second)) == ({}, {there.log_id: 5})

    Row.objects.using(second).update(balance=0)
    command("rebuild", "sums", "--log", str(there.log_id), "--database", second, capsys=capsys)
    assert rows(Row, second) == {there.log_id: 5}
    out = command("stats", "--database", second, "--json", capsys=capsys)
    assert {each["name"]: each["position"] for each in json.loads(out)["projections"]} == {
        "sums": there.position,
        "inline-sums": there.position,
        "letters-of-sums": there.position,
    }
    Row.objects.using(second).update(balance=0)
    with pytest.raises(CommandError, match="findings"):
        command("verify", "--projections", "--repair", "--database", second, capsys=capsys)
    assert rows(Row, second) == {there.log_id: 5}

    FAILING.append(1)
    poor = logs(second).create(Deposited(9))
    command("project", "sums", "--once", "--database", second, capsys=capsys)
    assert str(poor.log_id) in command("parked", "--database", second, capsys=capsys)
    assert "No event waits" in command("parked", capsys=capsys)
    with pytest.raises(CommandError, match="No event"):
        command("parked", "sums", "--retry", str(poor.log_id), capsys=capsys)
    command("parked", "--retry", str(poor.log_id), "--database", second, capsys=capsys)
    command(
        *("parked", "sums", "--skip", str(poor.log_id), "--yes", "--database", second),
        capsys=capsys,
    )
    assert not ParkedEvent.objects.using(second).exists()
    assert ParkedEvent.objects.count() == 0
    assert rows(InlineRow, "default") == {}
    assert here


def test_a_missing_table_is_reported_by_a_check_and_the_commands(bare, capsys):
    state = logs(bare).create(Opened("ada"))
    logs(bare).append(state, Deposited(5))  # and is not refused

    messages = system_checks.check_further_databases(databases=[bare])
    assert [(each.id, "no table" in each.msg) for each in messages] == [
        ("eventlogs.W036", True),
        ("eventlogs.W036", True),
    ]
    with pytest.raises(ProjectionUnavailable):
        AsyncSums.catch_up(using=bare)
    with pytest.raises(CommandError, match="no table"):
        command("project", "sums", "--once", "--database", bare, capsys=capsys)
    with pytest.raises(CommandError, match="no table"):
        command("rebuild", "sums", "--database", bare, capsys=capsys)


def test_a_table_that_is_created_later_is_found_and_filled(bare, monkeypatch):
    state = logs(bare).create(Deposited(5))
    monkeypatch.setattr(databases, "LOOK_AGAIN", 0.0)
    databases._missing.clear()

    with made(InlineRow, using=bare):
        logs(bare).append(state, Deposited(7))

        assert rows(InlineRow, bare) == {state.log_id: 12}


def test_a_check_names_databases_without_a_worker_for_a_projection(second):
    logs(second).create(Opened("ada"))

    def found():
        messages = system_checks.check_further_databases(databases=["default", second])
        return [each.msg.split("projection ")[1].split()[0] for each in messages]

    assert found() == ["'inline-sums'", "'sums'"]
    AsyncSums.catch_up(using=second)
    InlineSums.catch_up(using=second)
    assert found() == []


def test_a_router_that_does_not_allow_the_model_is_respected(second, settings):
    class Keep:
        def allow_migrate(self, db, app_label, model_name=None, **hints):
            return db == "default" if app_label == "tests_of_databases" else None

    settings.DATABASE_ROUTERS = [Keep()]
    databases._found.clear()
    logs(second).create(Deposited(5))

    assert rows(InlineRow, second) == {}
    assert [each.id for each in system_checks.check_further_databases(databases=[second])] == [
        "eventlogs.W036"
    ] * 2


def test_the_tests_use_two_connections(second):
    names = [connections[alias].settings_dict["NAME"] for alias in ("default", second)]

    assert len(set(names)) == 2
