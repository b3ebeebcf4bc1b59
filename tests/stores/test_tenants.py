"""
Tenants by schema, with the real django-tenants: no tenant sees the events of another.

The backend sets ``search_path`` in its cursor. Two schemas of one database, each with tables of
its own, are behind the alias "default".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper

from eventlogs import ANY, Feed, IdempotentReplay, LogErased, LogId, LogNotFound
from eventlogs.caches.counters import FOREIGN_HISTORY, counters
from eventlogs.feed.sources import source_in
from eventlogs.models import EventLog
from eventlogs.projections.databases import has_table
from eventlogs.stores import erasing, store_for
from eventlogs.stores.psycopg_connections import direct_connection
from eventlogs.testing.contracts.stores import new_key
from example_project.payments.events import Captured, Payment, Requested
from example_project.payments.models import PaymentSummary
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Account, Deposited, Opened

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(find_spec("django_tenants") is None, reason="no django-tenants here"),
]
TENANTS = ("acme", "bolt")
accounts = Account.logs
POSITIONS = count(10**6, 10**6)  # far above those of other tests


def be(tenant: str) -> None:
    """Switch to a tenant, as the middleware of django-tenants does for each request."""
    connections["default"].set_schema(tenant, include_public=False)  # type: ignore[attr-defined]


@contextmanager
def default_database(**settings: Any) -> Iterator[None]:
    """Have other settings of the default database, in all threads."""
    before, wrapper = connections.databases["default"], connections["default"]
    connections.databases["default"] = {**before, **settings}
    del connections["default"]
    try:
        yield
    finally:
        connections["default"].close()
        connections.databases["default"] = before
        connections["default"] = wrapper
        for by_alias in (store_for, source_in):
            by_alias.cache_clear()


@pytest.fixture(scope="module")
def database(django_db_setup: None, django_db_blocker: Any) -> Iterator[str]:
    """The name of a database with a schema for each tenant."""
    name = f"eventlogs_tenants_{uuid4().hex[:8]}_{os.getpid()}"
    with django_db_blocker.unblock():
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        try:
            with default_database(ENGINE="django_tenants.postgresql_backend", NAME=name):
                for tenant in TENANTS:
                    with connection.cursor() as cursor:
                        cursor.execute(f"CREATE SCHEMA {tenant}")
                    be(tenant)
                    for app in ("eventlogs", "payments"):
                        call_command("migrate", app, verbosity=0)
            yield name
        finally:
            with connection.cursor() as cursor:
                cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["each cursor", "once"])
def _tenants(request: Any, database: str, transactional_db: None, settings: Any) -> Iterator[None]:
    """Have both tenants, whose schema is set for each cursor, or once for each change."""
    settings.TENANT_LIMIT_SET_CALLS = request.param == "once"
    with default_database(ENGINE="django_tenants.postgresql_backend", NAME=database):
        yield


def events_in(tenant: str, log_id: LogId) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM {tenant}.eventlogs_event WHERE log_id = %s", [log_id.uuid]
        )
        return int(cursor.fetchone()[0])


@pytest.mark.usefixtures("_tenants")
class TestTenants:
    def test_each_statement_goes_through_the_backend(self):
        be("acme")
        assert direct_connection(connections["default"]) is None

    @pytest.mark.parametrize("inside", ["autocommit", "a transaction"])
    def test_the_data_of_a_tenant_is_only_in_its_schema(self, inside):
        made: dict[str, LogId] = {}
        key = new_key()  # the same for both
        for tenant in TENANTS:
            be(tenant)
            if inside == "autocommit":
                made[tenant] = self.every_kind_of_append(tenant, key)
            else:
                with transaction.atomic():
                    made[tenant] = self.every_kind_of_append(tenant, key)

        for tenant, log_id in made.items():
            assert {each: events_in(each, log_id) for each in TENANTS} == {
                each: 6 * (each == tenant) for each in TENANTS
            }
            self.everything_is_read(tenant, log_id)
            other = next(each for each in TENANTS if each != tenant)
            self.nothing_is_read(other, log_id)

    def every_kind_of_append(self, tenant: str, key: str) -> LogId:
        state = accounts.create(Opened(tenant), idempotency_key=key)
        state = accounts.append(state, Deposited(1))
        state = accounts.append(state, Deposited(1), Deposited(1))
        state = accounts.append(state, Deposited(1), idempotency_key=f"{key}, again")
        state = accounts.execute(state.log_id, lambda account: [Deposited(account.balance)])
        with pytest.raises(IdempotentReplay) as replay:
            accounts.create(Opened(tenant), idempotency_key=key)
        assert replay.value.log_id == state.log_id
        return state.log_id

    def everything_is_read(self, tenant: str, log_id: LogId) -> None:
        be(tenant)
        assert accounts.version(log_id) == 6
        assert [each.index for each in accounts.load(log_id)] == list(range(6))
        assert [each.index for each in accounts.load(log_id, reverse=True)] == [5, 4, 3, 2, 1, 0]
        assert len(list(accounts.stream(log_id))) == 6
        reduction = accounts.reduce(log_id)
        assert (reduction.aggregate.owner, reduction.aggregate.balance) == (tenant, 8)
        assert EventLog.objects.filter(pk=log_id.uuid).exists()

    def nothing_is_read(self, tenant: str, log_id: LogId) -> None:
        be(tenant)
        assert accounts.version(log_id) == 0
        assert not accounts.exists(log_id)
        assert list(accounts.load(log_id)) == list(accounts.stream(log_id)) == []
        for call in (
            lambda: accounts.reduce(log_id),
            lambda: accounts.append(log_id, Deposited(1), expected_version=ANY),
        ):
            with pytest.raises(LogNotFound):
                call()
        assert not EventLog.objects.filter(pk=log_id.uuid).exists()

    def test_a_feed_shows_one_tenants_events(self):
        before = {}
        for tenant in TENANTS:
            be(tenant)
            before[tenant] = Feed().settled()
        be("acme")
        logs = {accounts.create(Opened("acme")).log_id for _ in range(5)}
        be("bolt")
        logs_of_bolt = {accounts.create(Opened("bolt")).log_id for _ in range(2)}

        for tenant, expected in (("acme", logs), ("bolt", logs_of_bolt), ("acme", logs)):
            be(tenant)
            found = list(Feed().read(after=before[tenant], limit=100))
            assert [each.event for each in found] == [Opened(tenant)] * len(expected)
            assert {each.log_id for each in found} == expected

    def test_a_projection_has_one_tenants_rows(self):
        made = {}
        for tenant, amount in zip(TENANTS, (5, 7), strict=True):
            be(tenant)
            made[tenant] = Payment.logs.create(Requested(amount), Captured(amount)).log_id

        for tenant in TENANTS:
            be(tenant)
            PaymentSummaries.catch_up()
        for tenant, amount in zip(TENANTS, (5, 7), strict=True):
            be(tenant)
            assert PaymentSummary.objects.get(pk=made[tenant]).captured == amount
            others = [log_id for each, log_id in made.items() if each != tenant]
            assert not PaymentSummary.objects.filter(pk__in=others).exists()

    def test_a_table_that_one_tenant_lacks_is_there_for_the_other(self, monkeypatch):
        monkeypatch.setattr("eventlogs.projections.databases._found", set())
        renames = "ALTER TABLE {} RENAME TO {}"
        be("acme")
        with connection.cursor() as cursor:
            cursor.execute(renames.format("payments_paymentsummary", "set_aside"))
        try:
            assert not has_table(PaymentSummary, "default")
            be("bolt")
            assert has_table(PaymentSummary, "default")
            be("acme")
            assert not has_table(PaymentSummary, "default")
        finally:
            be("acme")
            with connection.cursor() as cursor:
                cursor.execute(renames.format("set_aside", "payments_paymentsummary"))
        assert has_table(PaymentSummary, "default")

    @pytest.mark.parametrize("cache", ["default", pytest.param("redis", marks=pytest.mark.redis)])
    @pytest.mark.fence
    def test_a_cache_entry_of_one_tenant_is_never_used_for_another(self, settings, cache):
        """The same log id, version and position; only the digest of the last event differs."""
        settings.EVENTLOGS = {
            "CACHE": cache,
            "REFRESHER": "eventlogs.refreshers.ImmediateRefresher",
        }
        log_id = LogId.new("account")
        position = next(POSITIONS)
        for tenant in TENANTS:
            be(tenant)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT setval(pg_get_serial_sequence('eventlogs_event', 'position'), %s)",
                    [position],
                )
            state = accounts.create(Opened(tenant), log_id=log_id)
            # The last events are equal, but for their time.
            state = accounts.append(state, Deposited(1))
            assert (state.version, state.position) == (2, position + 2)

        counters.reset()
        for tenant in (*TENANTS, *TENANTS, "bolt", "acme"):
            be(tenant)
            for _ in range(2):
                assert accounts.reduce(log_id).aggregate == Account(owner=tenant, balance=1)
        # After each change of the tenant, the entry of the other one was found and refused.
        assert counters.statistics()["misses"][FOREIGN_HISTORY] == 4

    def test_threads_that_switch_tenants_never_mix_them_up(self, race):
        def work(seed: int) -> Callable[[], dict[LogId, tuple[str, int]]]:
            def run() -> dict[LogId, tuple[str, int]]:
                random, mine = Random(seed), {}
                for _ in range(20):
                    tenant = random.choice(TENANTS)
                    be(tenant)
                    log_id = accounts.create(Opened(tenant)).log_id
                    accounts.append(log_id, Deposited(1), expected_version=1)
                    mine[log_id] = (tenant, 2)
                    log_id, (tenant, version) = random.choice(list(mine.items()))
                    be(tenant)
                    with transaction.atomic():
                        accounts.append(log_id, Deposited(1), expected_version=version)
                    mine[log_id] = (tenant, version + 1)
                    assert accounts.reduce(log_id).aggregate.owner == tenant
                return mine

            return run

        answers = race(*[work(seed) for seed in range(4)])

        for mine in answers:
            assert isinstance(mine, dict), mine
            for log_id, (tenant, version) in mine.items():
                for each in TENANTS:
                    be(each)
                    assert accounts.version(log_id) == version * (each == tenant)


def test_a_log_is_erased_in_the_schema_of_the_connection_only(database, transactional_db):
    log_id = accounts.new_id()
    with default_database(NAME=database):

        def switch(tenant: str) -> None:
            with connection.cursor() as cursor:
                cursor.execute(f"SET search_path = {tenant}")

        for tenant in TENANTS:
            switch(tenant)
            accounts.create(Opened(tenant), log_id=log_id)
        for number, tenant in enumerate(TENANTS, start=1):
            switch(tenant)
            erasing.erase("default", log_id, by="grace", reason="order 7")
            left = [events_in(each, log_id) for each in TENANTS]
            assert left == [0] * number + [1] * (len(TENANTS) - number)
            with pytest.raises(LogErased):
                accounts.reduce(log_id)


def test_prepared_statements_follow_a_changed_search_path(database, transactional_db):
    """PostgreSQL plans a prepared statement again after a change of ``search_path``."""
    with default_database(NAME=database):
        made = []
        for tenant in TENANTS * 2:
            with connection.cursor() as cursor:
                cursor.execute(f"SET search_path = {tenant}")
            assert type(connections["default"]) is DatabaseWrapper
            assert direct_connection(connections["default"]) is not None
            state = accounts.create(Opened(tenant))
            state = accounts.append(state, Deposited(1))
            made.append((tenant, accounts.append(state, Deposited(1)).log_id))
        for tenant, log_id in made:
            assert {each: events_in(each, log_id) for each in TENANTS} == {
                each: 3 * (each == tenant) for each in TENANTS
            }
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM pg_prepared_statements")
            assert any(name.startswith("eventlogs_append_one") for (name,) in cursor.fetchall())
