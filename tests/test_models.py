"""The tables: their rows, and that Python changes none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.db import IntegrityError, models, transaction

from eventlogs import AppendOnlyError
from eventlogs.models import Event, EventLog, IdempotencyKey
from tests.accounts import Account, Deposited, Opened

MODELS = [EventLog, Event, IdempotencyKey]


@pytest.fixture
def state(db):
    return Account.logs.create(Opened("ada"), Deposited(5), idempotency_key="k")


def run_async(call: Callable[[], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        return await call()

    return async_to_sync(run)()


def contents() -> list[list[str]]:
    return [sorted(map(repr, model._default_manager.values_list())) for model in MODELS]


REFUSED = {
    "save": lambda row: row.save(),
    "save_again": lambda row: type(row)(pk=row.pk).save(force_insert=True),
    "asave": lambda row: run_async(lambda: row.asave()),
    "delete": lambda row: row.delete(),
    "adelete": lambda row: run_async(lambda: row.adelete()),
    "update": lambda row: type(row).objects.update(pk=row.pk),
    "update_filtered": lambda row: type(row).objects.filter(pk=row.pk).update(pk=row.pk),
    "aupdate": lambda row: run_async(lambda: type(row).objects.aupdate(pk=row.pk)),
    "queryset_delete": lambda row: type(row).objects.all().delete(),
    "queryset_adelete": lambda row: run_async(lambda: type(row).objects.all().adelete()),
    "create": lambda row: type(row).objects.create(pk=row.pk),
    "acreate": lambda row: run_async(lambda: type(row).objects.acreate(pk=row.pk)),
    "bulk_create": lambda row: type(row).objects.bulk_create([row]),
    "abulk_create": lambda row: run_async(lambda: type(row).objects.abulk_create([row])),
    "bulk_update": lambda row: type(row).objects.bulk_update([row], ["pk"]),
    "abulk_update": lambda row: run_async(lambda: type(row).objects.abulk_update([row], ["pk"])),
    "get_or_create": lambda row: type(row).objects.get_or_create(pk=row.pk),
    "aget_or_create": lambda row: run_async(lambda: type(row).objects.aget_or_create(pk=row.pk)),
    "update_or_create": lambda row: type(row).objects.update_or_create(pk=row.pk),
    "aupdate_or_create": lambda row: run_async(
        lambda: type(row).objects.aupdate_or_create(pk=row.pk)
    ),
    "base_save": lambda row: type(row)._base_manager.get(pk=row.pk).save(),
    "base_delete": lambda row: type(row)._base_manager.get(pk=row.pk).delete(),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("model", MODELS)
def test_writing_through_the_orm_is_refused(state, model, call):
    before = contents()

    with pytest.raises(AppendOnlyError) as caught:
        call(model.objects.first())

    assert caught.value.model == model.__name__
    assert caught.value.operation.endswith("()")
    assert contents() == before


@pytest.mark.parametrize(
    "call",
    [
        lambda log: log.events.create(index=9),
        lambda log: log.events.all().delete(),
        lambda log: log.events.update(index=9),
        lambda log: log.events.add(log.events.get(index=1), bulk=False),
        lambda log: log.events.add(log.events.get(index=1)),
        lambda log: log.idempotency_keys.all().delete(),
    ],
)
def test_events_of_a_log_are_not_changed_through_the_log(state, call):
    with pytest.raises(AppendOnlyError), transaction.atomic():
        call(EventLog.objects.get())

    assert Account.logs.version(state.log_id) == 2


def test_a_log_is_a_row(state):
    log = EventLog.objects.get()

    assert log.log_id == state.log_id
    assert str(log) == str(state.log_id)
    assert (log.id, log.log_type, log.version) == (state.log_id.uuid, "account", 2)
    assert log.created_at <= log.updated_at
    assert abs(log.created_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_log_was_updated_when_its_last_event_was_recorded(state):
    Account.logs.append(state, Deposited(1), Deposited(2))

    log = EventLog.objects.get()

    assert log.updated_at == log.events.get(index=3).recorded_at
    assert log.created_at <= log.events.get(index=0).recorded_at
    assert log.created_at <= log.updated_at


def test_an_event_is_a_row(state):
    event = Event.objects.get(index=1)

    assert (event.pk, event.log_id) == (state.position, state.log_id.uuid)
    assert (event.type, event.schema_version) == ("account.deposited", 1)
    assert (event.data, event.metadata, event.idempotency_key) == ({"amount": 5}, {}, "k")
    assert event.log.log_id == state.log_id
    assert str(event) == "account.deposited (1)"


def test_an_idempotency_key_is_a_row(state):
    key = IdempotencyKey.objects.get()

    assert (key.log_type, key.key, key.log_id) == ("account", "k", state.log_id.uuid)
    assert (key.first_index, key.count, len(key.fingerprint)) == (0, 2, 32)
    assert str(key) == "k"


def test_a_duplicate_row_is_refused_by_a_constraint_of_the_database(state):
    event, key = Event.objects.last(), IdempotencyKey.objects.get()

    for row, field in ((event, "position"), (key, "id")):
        setattr(row, field, None)
        with pytest.raises(IntegrityError), transaction.atomic():
            models.Model.save(row, force_insert=True)


def test_unique_constraints_on_events_name_the_log_or_the_position_only():
    unique = [constraint.fields for constraint in Event._meta.total_unique_constraints]

    assert unique == [("log", "index")]
    assert Event._meta.pk.name == "position"
    assert not [field for field in Event._meta.fields if field.unique and not field.primary_key]


def test_no_foreign_key_is_a_constraint_of_the_database():
    for model in (Event, IdempotencyKey):
        field = model._meta.get_field("log")
        assert getattr(field, "db_constraint", None) is False


@pytest.mark.django_db
def test_migrations_are_complete():
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_every_field_is_one_that_forms_do_not_edit():
    for model in MODELS:
        for field in model._meta.fields:
            assert not field.editable or field.primary_key


@pytest.mark.django_db(transaction=True)
def test_a_flush_empties_the_tables_of_a_test_database():
    Account.logs.create(Opened("ada"), idempotency_key="k")

    call_command("flush", interactive=False, verbosity=0)

    assert contents() == [[], [], []]
