"""The fixtures that all tests share."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import hypothesis
import pytest
from django.core.management import call_command
from django.core.management.color import no_style
from django.core.management.sql import emit_post_migrate_signal
from django.db import connection, connections
from django.test import TransactionTestCase

from eventlogs import LogId, LogManager
from eventlogs.aggregates import aggregates
from eventlogs.events.registry import registry
from eventlogs.operations import partitioning
from eventlogs.stores import BaseStore, store_for
from eventlogs.stores.portable import PortableStore
from eventlogs.testing import MemoryStore
from tests.accounts import Account

HERE = Path(__file__).resolve().parent

STORES: dict[str, Callable[[], BaseStore]] = {
    "memory": MemoryStore,
    "portable": lambda: PortableStore("default"),
    "postgresql": lambda: store_for("default"),
}
MEMORY = pytest.param("memory", marks=pytest.mark.sqlite)
POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.postgresql)


@pytest.fixture(params=[MEMORY, "portable", POSTGRESQL])
def store(request: pytest.FixtureRequest) -> BaseStore:
    """Every store that the run's database has. Tests that write also use ``db``."""
    return STORES[request.param]()


@pytest.fixture(params=["portable", POSTGRESQL])
def database_store(request: pytest.FixtureRequest) -> BaseStore:
    """Every store that keeps its logs in the run's database."""
    return STORES[request.param]()


@pytest.fixture(autouse=True)
def _forget_chained_logs() -> Iterator[None]:
    """Which statement an append takes must not depend on the tests before."""
    yield
    postgresql = sys.modules.get("eventlogs.stores.postgresql")
    if postgresql is not None:
        postgresql.with_chained_logs.clear()


@pytest.fixture
def accounts(store: BaseStore, db: None) -> LogManager[Account]:
    """The logs of accounts, in every store; each test is rolled back."""
    return LogManager(Account, store=store)


@pytest.fixture
def database_accounts(database_store: BaseStore, transactional_db: None) -> LogManager[Account]:
    """The logs of accounts, in every store of the database; in autocommit mode."""
    return LogManager(Account, store=database_store)


@pytest.fixture
def log_id(accounts: LogManager[Account]) -> LogId:
    """An id that no log has yet."""
    return accounts.new_id()


@pytest.fixture
def race() -> Callable[..., list[Any]]:
    """A function that makes calls in threads of their own, all at once, and returns answers."""

    def run(*calls: Callable[[], Any]) -> list[Any]:
        barrier = Barrier(len(calls))

        def start(call: Callable[[], Any]) -> Any:
            try:
                barrier.wait(timeout=10)
                return call()
            except Exception as error:
                return error
            finally:
                connections.close_all()

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(start, calls))

    return run


@pytest.fixture
def elsewhere() -> Callable[[Callable[[], Any]], Any]:
    """A function that makes a call over another connection, and waits for its answer."""

    def run(call: Callable[[], Any]) -> Any:
        def start() -> Any:
            try:
                return call()
            finally:
                connections.close_all()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(start).result(timeout=20)

    return run


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the classes that the test registers."""
    for owner in (registry, aggregates):
        for name, known in vars(owner).items():
            copy = {
                key: list(value) if isinstance(value, list) else value
                for key, value in known.items()
            }
            monkeypatch.setattr(owner, name, copy)


# With this many, the tests run on a table of events that is partitioned (PostgreSQL).
PARTITIONS = int(os.environ.get("EVENTLOGS_TEST_PARTITIONS", "0"))

# With this, they run in a distributed schema on the cluster that it names.
CITUS_URL = os.environ.get("CITUS_URL")


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """The test database, partitioned or spread over a cluster if the run asks for it."""
    if PARTITIONS:
        with django_db_blocker.unblock():
            if connection.introspection.table_names():  # not if no test needs them
                partitioning.partition(PARTITIONS)
    if CITUS_URL:
        from tests import citus

        with django_db_blocker.unblock():
            name = connection.settings_dict["NAME"]
            connection.close()
            with citus.distributed(CITUS_URL, name):
                yield
            connection.close()
        return
    yield


@pytest.fixture
def citus_url(transactional_db: None) -> str:
    """The URL of the cluster that the tests run on."""
    assert CITUS_URL is not None
    return CITUS_URL


@pytest.fixture(scope="session")
def migrated_database(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str | None]:
    """The name of a migrated database to copy (migrations take long), or None."""
    if connection.vendor == "mysql":
        yield None
        return
    name = _name_of("copied", tmp_path_factory.mktemp("databases"))
    with django_db_blocker.unblock():
        _create(name)
        try:
            with _known("copied", name):
                call_command("migrate", "eventlogs", database="copied", verbosity=0)
                if PARTITIONS:
                    partitioning.partition(PARTITIONS, using="copied")
            yield name
        finally:
            _drop(name)


@pytest.fixture
def second_database(
    migrated_database: str | None, django_db_setup: None, django_db_blocker: Any, tmp_path: Path
) -> Iterator[str]:
    """
    The alias of a migrated database that Django did not make for tests.

    Tests with the mark ``django_db`` cannot have it: they may only use databases that Django
    knew before. Both databases are in autocommit mode, and emptied in the end.
    """
    alias = f"second_{uuid4().hex[:8]}"
    name = _name_of(alias, tmp_path)
    with django_db_blocker.unblock():
        _create(name, migrated_database)
        try:
            with _known(alias, name):
                if migrated_database is None:
                    call_command("migrate", "eventlogs", database=alias, verbosity=0)
                yield alias
        finally:
            store_for.cache_clear()
            _empty("default")
            _drop(name)


# After each test that commits, Django empties all tables and makes all permissions anew. That took
# a seventh of all tests' time. Tests do not change permissions and content types.
PERMANENT = {"auth_permission", "django_content_type"}
COUNTERS = {"eventlogs_bucket"}  # they are there, or not, for as long as the tables


def _empty_tables(case: TransactionTestCase) -> None:
    """Empty the tables that have rows, in the databases of a test."""
    for alias in case._databases_names(include_mirrors=False):  # type: ignore[attr-defined]
        _empty(alias)


def _empty(alias: str) -> None:
    database = connections[alias]
    tables = set(database.introspection.django_table_names(only_existing=True, include_views=False))
    if not tables:  # no test of this run has needed them
        return
    quote = database.ops.quote_name
    questions = " UNION ALL ".join(
        f"SELECT '{table}' AS name FROM (SELECT 1 AS one) AS one"
        f" WHERE EXISTS (SELECT 1 FROM {quote(table)})"
        for table in sorted(tables)
    )
    with database.cursor() as cursor:
        cursor.execute(questions)
        filled = {name for (name,) in cursor.fetchall()}
    if emptied := sorted(filled - PERMANENT - COUNTERS):
        database.ops.execute_sql_flush(
            database.ops.sql_flush(no_style(), emptied, allow_cascade=True)
        )
    if (tables & PERMANENT) - filled:  # a test has emptied all tables itself
        emit_post_migrate_signal(verbosity=0, interactive=False, db=alias)


# TestCase, whose tests are rolled back, has a method of its own.
TransactionTestCase._fixture_teardown = _empty_tables  # type: ignore[attr-defined]


def _name_of(alias: str, folder: Path) -> str:
    name = f"eventlogs_{alias}_{os.getpid()}"
    return str(folder / name) if connection.vendor == "sqlite" else name


def _create(name: str, copied: str | None = None) -> None:
    if connection.vendor != "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {copied}" if copied else ""))
    elif copied:
        shutil.copy(copied, name)


def _drop(name: str) -> None:
    if connection.vendor != "sqlite":
        force = " WITH (FORCE)" if connection.vendor == "postgresql" else ""
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}{force}")


@contextmanager
def _known(alias: str, name: str) -> Iterator[None]:
    """Let Django know a database by an alias."""
    connections.databases[alias] = {
        **connection.settings_dict,
        "NAME": name,
        "TEST": {**connection.settings_dict["TEST"], "NAME": None},
    }
    try:
        yield
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.databases[alias]


# Tests that `make quick` leaves out: those that start processes or have very many cases. They
# take most of the time.
SLOW = (
    "test_apps.py",
    "test_docs.py",
    "test_log_against_a_list.py",
    "test_logs.py::test_a_stream_crosses_the_borders_of_its_pages",
    "test_logs.py::test_an_append_takes_ten_thousand_events",
    "test_logs_async.py::test_a_long_log_is_streamed_in_async_code",
    "test_middleware.py::test_async_views",
    "test_middleware.py::test_concurrent",
    "test_migrations.py",
    "test_servers.py",
    "test_tutorial.py",
    "admin/test_projections.py::test_held_events_of_one_cause_are_paged",
    "attacks/test_restored_backups.py",
    "caches/test_cache_histories.py",
    "contrib/http/test_streams.py",
    "caches/test_fingerprints.py",
    "contracts/test_broken_versions.py",
    "contrib/opentelemetry/test_processes.py",
    "contrib/sinks/test_nats.py",
    "contrib/sinks/test_rabbitmq.py",
    "contrib/prometheus/test_views.py",
    "events/test_validation.py::test_a_bad_event_is_refused",
    "example/test_demo.py",
    "example/test_fines.py::test_a_database_without_tables",
    "example/test_fines.py::test_an_import_that",
    "example/test_payments_api.py::test_racing_requests",
    "example/test_settings.py",
    "feed/test_reader.py::test_pages_of_any_size_add_up",
    "feed/test_replicas.py",
    "management/test_eventlogs.py",
    "management/test_export.py::test_interrupted",
    "management/test_import.py::test_a_corrupt_line_is_named",
    "management/test_import.py::test_an_import",
    "management/test_project.py",
    "management/test_tail.py",
    "management/test_terminal.py",
    "management/test_verify.py::test_findings_are_lines_of_json",
    "operations/adoption/test_running.py::test_a_broken_version",
    "operations/adoption/test_running.py::test_adoptions_side_by_side",
    "operations/adoption/test_running.py::test_an_adoption_that_is_killed",
    "operations/adoption/test_running.py::test_no_change_of_a_row",
    "operations/health/test_read_models.py::test_a_worker_of_an_old_release",
    "operations/test_erasure.py",
    "operations/moving/test_kills.py",
    "operations/partitioning/test_kills.py",
    "projections/test_batches.py",
    "projections/test_histories.py",
    "projections/test_inline_bulk.py",
    "projections/test_lost_connections.py",
    "projections/test_rebuild.py",
    "projections/test_rebuild_statements.py",
    "projections/test_releases.py",
    "projections/test_rows.py::test_a_decimal_that_its_column_rounds",
    "projections/test_verify.py",
    "projections/test_workers.py",
    "races/",
    "reliability/",
    "stores/test_seen_statements.py",
    "testing/test_plugin.py::test_without_django",
)


# Tests that do not depend on the database: CI runs them once with the oldest versions and once with
# the newest, and `make test-all` on each database. Those that are marked for one are not meant.
ONCE = (
    "test_aggregates.py",
    "test_apps.py",
    "test_architecture.py",
    "test_conf.py",
    "test_deciders.py",
    "test_docs.py",
    "test_eventlogs_times.py",
    "test_exceptions.py",
    "test_ids.py",
    "test_middleware.py",
    "test_observers.py",
    "test_pages.py",
    "test_policies.py",
    "test_public_names.py",
    "test_refreshers.py",
    "test_signatures.py",
    "test_tests.py",
    "admin/test_downloads.py",
    "admin/test_events.py",
    "admin/test_json_markup.py",
    "admin/test_mixins.py",
    "admin/test_personal_values.py",
    "admin/test_projection_status.py",
    "admin/test_seals.py",
    "admin/test_users.py",
    "benchmarks/",
    "caches/test_entries.py",
    "caches/test_fingerprints.py",
    "checks/",
    "contracts/test_broken_versions.py",
    "contracts/test_caches.py",
    "contracts/test_refreshers.py",
    "contrib/http/test_problems.py",
    "contrib/opentelemetry/",
    "contrib/prometheus/",
    "contrib/test_ninja.py",
    "contrib/test_rest_framework.py",
    "events/test_chain.py",
    "events/test_codec.py",
    "events/test_personal.py",
    "events/test_registry.py",
    "events/test_schemas.py",
    "events/test_validation.py",
    "example/test_demo.py",
    "example/test_hsm_keys.py",
    "example/test_settings.py",
    "management/test_eventlogs.py",
    "management/test_makeevents.py",
    "management/test_output.py",
    "management/test_terminal.py",
    "operations/event_locks/",
    "operations/test_catalogue.py",
    "operations/test_commands.py",
    "operations/test_pasted_ids.py",
    "operations/test_xes.py",
    "projections/test_deadlines.py",
    "projections/test_declarations.py",
    "projections/test_defaults.py",
    "projections/test_error_text.py",
    "seals/test_checking.py",
    "seals/test_documents.py",
    "seals/test_files.py",
    "seals/test_keys.py",
    "seals/test_leaves.py",
    "seals/test_merkle.py",
    "seals/test_proofs.py",
    "seals/test_signing.py",
    "testing/test_aggregate_checks.py",
    "testing/test_effects.py",
    "testing/test_memory.py",
    "testing/test_plugin.py",
    "testing/test_stories.py",
    "testing/test_strategies.py",
    "testing/test_texts.py",
    "utils/",
)

# Slow tests whose locks and transactions are those of PostgreSQL, or that are about versions of
# code: CI runs them there, and `make test-all` on SQLite, too.
RARELY_ON_SQLITE = (
    "test_log_against_a_list.py",
    "contrib/http/test_streams.py",
    "example/test_fines.py::test_an_import_that",
    "management/test_import.py::test_a_corrupt_line_is_named",
    "management/test_import.py::test_an_import",
    "management/test_project.py",
    "operations/adoption/test_running.py::test_a_broken_version",
    "operations/adoption/test_running.py::test_adoptions_side_by_side",
    "operations/adoption/test_running.py::test_an_adoption_that_is_killed",
    "operations/adoption/test_running.py::test_no_change_of_a_row",
    "projections/test_batches.py",
    "projections/test_histories.py",
    "projections/test_releases.py",
    "projections/test_verify.py",
    "projections/test_workers.py",
    "reliability/test_forgetting_kills.py",
    "reliability/test_projection_changing_workers.py",
    "reliability/test_projection_harmful_events.py",
    "reliability/test_retries_across_releases.py",
)


# Tests that take a minute or more. They begin first, so that the other processes have work
# meanwhile. By itself, pytest-django has tests last that need no database of their own.
FIRST = (
    "test_tutorial.py",
    "reliability/test_projection_swaps.py::test_a_rebuild_that_is_killed_anywhere",
)


def pytest_configure(config: pytest.Config) -> None:
    if "not slow" in config.option.markexpr:
        hypothesis.settings.register_profile("quick", max_examples=20)
        hypothesis.settings.load_profile("quick")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import a module without a wanted test: all of them take seconds, in each process."""
    wanted: str = config.option.markexpr
    name = collection_path.relative_to(HERE).as_posix() if HERE in collection_path.parents else ""
    if not name.endswith(".py"):
        return None
    is_slow = name.startswith(tuple(each for each in SLOW if "::" not in each))
    has_slow = is_slow or any(each.startswith(f"{name}::") for each in SLOW)
    is_left_out = ("not slow" in wanted and is_slow) or (
        wanted.startswith("slow and ") and not has_slow
    )
    return is_left_out or None


DATABASES = ("postgresql", "redis", "sqlite", "mariadb", "locks")  # marks


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        if name.startswith(SLOW):
            item.add_marker("slow")
        if name.startswith("races/") and config.option.markexpr == "long":
            item.add_marker("long")  # with all processes: tests/races/conftest.py
        if name.startswith(ONCE) and not any(map(item.get_closest_marker, DATABASES)):
            item.add_marker("once")
        if name.startswith(RARELY_ON_SQLITE):
            item.add_marker("rarely_on_sqlite")
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(FIRST))


# Without psycopg, the modules that are about it cannot be imported.
collect_ignore = (
    []
    if find_spec("psycopg")
    else [
        "feed/test_prepared_looks.py",
        "feed/test_replicas.py",
        "operations/partitioning/test_poolers.py",
        "races/test_citus.py",
        "stores/test_citus.py",
        "stores/test_postgresql.py",
        "stores/test_statements.py",
        "stores/test_psycopg_connections.py",
        "projections/test_plain_rows.py",
        "reliability/test_group_commit.py",
        "stores/test_group_commit.py",
        "stores/test_joined.py",
        "test_observed_appends.py",
        "stores/test_prepared_in_transactions.py",
        "stores/test_tenants.py",
        "stores/test_interruptions.py",
        "stores/test_poolers.py",
        "stores/test_forks.py",
        "reliability/test_crashes.py",
        "reliability/test_cache_stampedes.py",
        "reliability/test_feed_servers.py",
        "reliability/replicas.py",
        "reliability/test_feed_failovers.py",
        "reliability/test_feed_replicas.py",
        "races/feeds_postgresql.py",
        "races/test_feed_interleavings.py",
        "benchmarks/test_contests.py",
    ]
)
if not find_spec("celery"):
    collect_ignore.append("contrib/test_celery.py")


@pytest.fixture(scope="session")
def django_db_modify_db_settings_xdist_suffix() -> None:
    """Leave the name of the test database alone: each process of pytest has its own already."""
