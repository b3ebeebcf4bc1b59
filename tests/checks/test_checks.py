"""The system checks, each by its id."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from io import StringIO

import pytest
from django.contrib.contenttypes.models import ContentType
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections, models
from django.db.models.functions import Now

from eventlogs import Aggregate, LogIdField, NeverCache, Projection, event, upcaster
from eventlogs.checks import rules as checks
from eventlogs.checks.rules import check_events, check_settings, check_sqlite_transactions
from eventlogs.models import ProjectionState
from example_project.payments.projections import PaymentSummaries
from tests.accounts import Opened


def found(*checks, **kwargs):
    """Return the ids of what the checks find."""
    return [message.id for check in checks for message in check(app_configs=None, **kwargs)]


@pytest.mark.feed
@pytest.mark.django_db
def test_nothing_is_wrong_with_the_tests_themselves():
    ours = [message for message in run_checks() if message.id.startswith("eventlogs")]

    assert ours == []


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "PAGE_SIZE",
        {"MAX_EVENT_BYTES": 0},
        {"MAX_EVENT_BYTES": 2**28 + 1},
        {"MAX_EVENT_BYTES": 10.0},
        {"MAX_EVENT_BYTES": True},
        {"IDEMPOTENCY_KEY_RETENTION": 30},
        {"IDEMPOTENCY_KEY_RETENTION": timedelta()},
        {"PREPARED_STATEMENTS": 1},
        {"PAGE_SIZE": 0},
        {"PAGE_SIZE": 10_001},
        {"PAGE_SIZE": "100"},
        {"HEALTH": 60},
        {"HEALTH": {"MAX_LAG": -1}},
        {"HEALTH": {"MAX_HELD": "10"}},
        {"HEALTH": {"MAX_PARKED": True}},
        {"HEALTH": {"MAX_DEPLOY": float("nan")}},
    ],
)
def test_e001_a_setting_has_a_value_of_another_kind_or_range(settings, value):
    settings.EVENTLOGS = value

    [message] = check_settings()

    assert message.id == "eventlogs.E001"
    assert message.is_serious()
    assert message.hint.startswith("Set ")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"MAX_EVENT_BYTES": 1, "PAGE_SIZE": 1, "PREPARED_STATEMENTS": False},
        {"MAX_EVENT_BYTES": 2**28, "PAGE_SIZE": 10_000},
        {"IDEMPOTENCY_KEY_RETENTION": None},
        {"IDEMPOTENCY_KEY_RETENTION": timedelta(days=30)},
        {"HEALTH": {}},
        {"HEALTH": {"MAX_LAG": 0, "MAX_HELD": 0.5, "MAX_PARKED": float("inf"), "MAX_DEPLOY": 1}},
    ],
)
def test_a_setting_within_its_bounds_is_fine(settings, value):
    settings.EVENTLOGS = value

    assert found(check_settings) == []


def test_settings_that_are_not_there_are_fine(settings):
    if hasattr(settings, "EVENTLOGS"):
        del settings.EVENTLOGS

    assert found(check_settings) == []


def test_w002_a_setting_has_an_unknown_key(settings):
    settings.EVENTLOGS = {"PAGESIZE": 7}

    [message] = check_settings()

    assert message.id == "eventlogs.W002"
    assert not message.is_serious()
    assert "PAGE_SIZE" in message.hint


def test_a_limit_of_health_says_which_one_is_wrong_and_what_it_can_be(settings):
    settings.EVENTLOGS = {"HEALTH": {"MAX_LAG": -1}}
    [message] = check_settings()
    assert message.msg == (
        "EVENTLOGS['HEALTH']['MAX_LAG'] is -1. It must be a number of seconds, from 0 on."
    )

    settings.EVENTLOGS = {"HEALTH": {"MAX_LOG": 1}}
    [message] = check_settings()
    assert (message.id, "MAX_LAG" in message.hint) == ("eventlogs.W002", True)


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, ["eventlogs.E004"]),
        ({"transaction_mode": None}, ["eventlogs.E004"]),
        ({"transaction_mode": "DEFERRED"}, ["eventlogs.E004"]),
        ({"transaction_mode": "IMMEDIATE"}, []),
        ({"transaction_mode": "immediate"}, []),
        ({"transaction_mode": "EXCLUSIVE"}, []),
    ],
)
def test_e004_sqlite_transactions_are_not_immediate(monkeypatch, options, ids):
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)

    assert found(check_sqlite_transactions) == ids


@pytest.mark.sqlite
def test_a_database_that_holds_no_logs_is_not_checked(monkeypatch, settings):
    class Elsewhere:
        def allow_migrate(self, *args, **kwargs):
            return False

    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {})
    settings.DATABASE_ROUTERS = [Elsewhere()]

    assert found(check_sqlite_transactions) == []


def test_e005_use_tz_is_off(settings):
    settings.USE_TZ = False

    [message] = check_settings()

    assert (message.id, message.hint) == ("eventlogs.E005", "Set USE_TZ = True.")


@pytest.mark.usefixtures("scratch_registry")
def test_e006_two_classes_claim_one_name():
    event("account.deposited")(make_dataclass("Claimant", [("amount", int)]))

    [message] = check_events()

    assert message.id == "eventlogs.E006"
    assert "tests.accounts.Deposited" in message.msg


@pytest.mark.usefixtures("scratch_registry")
def test_e006_an_upcaster_is_missing():
    event("tests.reshaped", version=2)(make_dataclass("Reshaped", [("amount", int)]))

    assert found(check_events) == ["eventlogs.E006"]

    upcaster("tests.reshaped", from_version=1)(lambda data: data)

    assert found(check_events) == []


@pytest.mark.usefixtures("scratch_registry")
def test_e006_an_upcaster_is_too_many():
    upcaster("account.deposited", from_version=1)(lambda data: data)

    assert found(check_events) == ["eventlogs.E006"]


@pytest.mark.usefixtures("scratch_registry")
def test_e007_fields_cannot_be_encoded():
    @event("tests.ambiguous")
    @dataclass(frozen=True)
    class Ambiguous:
        money: Decimal | str

    [message] = check_events()

    assert message.id == "eventlogs.E007"
    assert "Ambiguous" in message.msg


@pytest.mark.django_db
@pytest.mark.usefixtures("scratch_registry")
def test_manage_py_check_stops_at_an_error():
    event("tests.reshaped", version=2)(make_dataclass("Reshaped", [("amount", int)]))

    with pytest.raises(SystemCheckError, match=r"eventlogs\.E006"):
        call_command("check")


def database_messages(alias):
    """Return what ``check --database`` finds about eventlogs."""
    messages = run_checks(databases=[alias])
    return [message for message in messages if message.id.startswith("eventlogs")]


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "tampering",
    [
        "DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event",
        "ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_refuse_truncate",
        "ALTER TABLE eventlogs_event ENABLE TRIGGER eventlogs_event_refuse_change",
    ],
)
def test_w008_a_trigger_is_missing_or_can_be_switched_off(second_database, tampering):
    assert database_messages(second_database) == []

    with connections[second_database].cursor() as cursor:
        cursor.execute(tampering)

    [message] = database_messages(second_database)
    assert message.id == "eventlogs.W008"
    assert tampering.split("eventlogs_event_")[1].split()[0] in message.msg


@pytest.mark.postgresql
def test_what_the_hint_of_w008_says_puts_the_triggers_back(second_database):
    with connections[second_database].cursor() as cursor:
        cursor.execute("DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event")

    call_command("eventlogs", "triggers", database=second_database, stdout=StringIO())

    assert database_messages(second_database) == []


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "tampering",
    [
        "DROP TRIGGER eventlogs_event_fence ON eventlogs_event",
        "ALTER TABLE eventlogs_event DISABLE TRIGGER eventlogs_event_fence",
        "ALTER TABLE eventlogs_event ENABLE TRIGGER eventlogs_event_fence",
        "ALTER TABLE eventlogs_event ENABLE REPLICA TRIGGER eventlogs_event_fence",
    ],
)
def test_w011_the_fence_is_missing_or_can_be_switched_off(second_database, tampering):
    with connections[second_database].cursor() as cursor:
        cursor.execute(tampering)

    [message] = database_messages(second_database)
    assert message.id == "eventlogs.W011"
    assert "eventlogs_event_fence" in message.msg

    call_command("eventlogs", "triggers", database=second_database, stdout=StringIO())
    assert database_messages(second_database) == []


@pytest.mark.postgresql
def test_w012_the_sequence_gives_positions_out_in_blocks(second_database):
    with connections[second_database].cursor() as cursor:
        cursor.execute("ALTER TABLE eventlogs_event ALTER position SET CACHE 20")

    [message] = database_messages(second_database)
    assert message.id == "eventlogs.W012"
    assert "CACHE 20" in message.msg

    with connections[second_database].cursor() as cursor:
        cursor.execute("ALTER TABLE eventlogs_event ALTER position SET CACHE 1")
    assert database_messages(second_database) == []


@pytest.mark.postgresql
def test_w012_the_sequence_runs_backwards_or_is_missing(second_database):
    for change, said in (
        ("SET INCREMENT -1 SET MINVALUE 1", "INCREMENT -1"),
        ("SET INCREMENT 1 SET CYCLE", "CYCLE"),
        ("DROP IDENTITY", "is missing"),
    ):
        with connections[second_database].cursor() as cursor:
            cursor.execute(f"ALTER TABLE eventlogs_event ALTER position {change}")

        [message] = database_messages(second_database)
        assert message.id == "eventlogs.W012"
        assert said in message.msg


@pytest.mark.postgresql
def test_w013_the_events_are_distributed(second_database):
    with connections[second_database].cursor() as cursor:
        cursor.execute(
            "CREATE TABLE pg_dist_partition AS SELECT 'eventlogs_event'::regclass AS logicalrelid"
        )

    [message] = database_messages(second_database)

    assert message.id == "eventlogs.W013"


@pytest.mark.postgresql
def test_in_a_database_that_django_made_for_tests_there_is_nothing_to_say(db):
    assert database_messages("default") == []


@pytest.mark.postgresql
def test_w008_in_a_test_database_only_the_trigger_on_truncate_may_be_missing(db):
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER eventlogs_event_refuse_change ON eventlogs_event")

    [message] = database_messages("default")

    assert message.id == "eventlogs.W008"
    assert "truncate" not in message.msg


@pytest.mark.postgresql
def test_a_database_without_the_tables_is_not_checked(second_database):
    call_command("migrate", "eventlogs", "zero", database=second_database, verbosity=0)

    assert database_messages(second_database) == []


@pytest.mark.sqlite
def test_sqlite_has_no_triggers_to_check(second_database):
    assert database_messages(second_database) == []


REDIS = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1"}
TIMEOUTS = {"OPTIONS": {"socket_timeout": 1, "socket_connect_timeout": 1}}
LOCAL = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}


def test_e003_a_cache_that_is_not_there(settings):
    settings.EVENTLOGS = {"CACHE": "reductions"}

    [message] = checks.check_reduction_cache()

    assert message.id == "eventlogs.E003"
    assert "default" in message.hint


@pytest.mark.parametrize(
    "backend",
    [
        {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "x"},
        {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "x"},
    ],
)
def test_e009_a_cache_that_pickles(settings, backend):
    settings.CACHES = {"default": backend}

    [message] = checks.check_reduction_cache()

    assert message.id == "eventlogs.E009"
    assert backend["BACKEND"] in message.msg


def test_w021_redis_without_time_outs(settings):
    pytest.importorskip("redis")
    settings.CACHES = {"default": REDIS}
    assert found(checks.check_reduction_cache) == ["eventlogs.W021"]

    settings.CACHES = {"default": {**REDIS, **TIMEOUTS}}
    assert found(checks.check_reduction_cache) == []


@pytest.mark.redis
def test_w021_time_outs_of_django_redis(settings):
    redis = settings.CACHES["redis"]
    settings.EVENTLOGS = {"CACHE": "redis"}
    assert found(checks.check_reduction_cache) == []

    settings.CACHES = {"default": LOCAL, "redis": {**redis, "OPTIONS": {"SOCKET_TIMEOUT": 1}}}
    assert found(checks.check_reduction_cache) == ["eventlogs.W021"]

    pool = {"socket_timeout": 1, "socket_connect_timeout": 1}
    settings.CACHES["redis"] = {**redis, "OPTIONS": {"CONNECTION_POOL_KWARGS": pool}}
    settings.CACHES = dict(settings.CACHES)
    assert found(checks.check_reduction_cache) == []


@pytest.mark.parametrize("cache", [LOCAL, {"BACKEND": "nowhere.Cache"}])
def test_a_cache_that_is_local_or_not_to_be_had_is_no_error_of_ours(settings, cache):
    settings.CACHES = {"default": cache}

    assert found(checks.check_reduction_cache) == []


def test_without_a_cache_nothing_is_wrong_with_it(settings):
    settings.EVENTLOGS = {"CACHE": None}
    settings.CACHES = {"default": {"BACKEND": "nowhere.Cache"}}

    for check in (
        checks.check_reduction_cache,
        checks.check_processes,
        checks.check_refresher,
        checks.check_aggregates,
    ):
        assert found(check) == []


def test_w010_the_memory_of_one_process(settings):
    settings.CACHES = {"default": LOCAL}
    assert found(checks.check_processes) == ["eventlogs.W010"]

    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert found(checks.check_processes) == []


def test_w010_is_for_deployments_only():
    ours = {message.id for message in run_checks(tags=["caches"])}
    deployed = {
        message.id for message in run_checks(tags=["caches"], include_deployment_checks=True)
    }

    assert "eventlogs.W010" in deployed - ours


def test_w020_a_worker_that_writes_where_nobody_looks(settings):
    pytest.importorskip("celery")
    settings.CACHES = {"default": LOCAL}
    settings.EVENTLOGS = {"REFRESHER": "eventlogs.tasks.CeleryRefresher"}
    assert found(checks.check_refresher) == ["eventlogs.W020"]

    settings.EVENTLOGS = {}
    assert found(checks.check_refresher) == []


def test_w022_an_aggregate_that_cannot_be_cached(scratch_registry):
    class Plain(Aggregate, log_type="plain", events=[Opened]):
        pass

    [message] = checks.check_aggregates()

    assert message.id == "eventlogs.W022"
    assert "Plain" in message.msg
    assert "dataclass" in message.msg


def test_w023_an_aggregate_whose_code_cannot_be_known(scratch_registry):
    @dataclass
    class Local(Aggregate, log_type="local", events=[Opened]):
        n: int = 0

    [message] = checks.check_aggregates()

    assert message.id == "eventlogs.W023"
    assert "Local" in message.msg
    assert "inside of a function" in message.msg


def test_w023_an_event_that_no_aggregate_names_in_a_module_that_is_not_imported(scratch_registry):
    @event("account.legacy")
    @dataclass(frozen=True)
    class Legacy:
        n: int

    @event("nobodys.legacy")
    @dataclass(frozen=True)
    class Nobodys:
        n: int

    [message] = checks.check_aggregates()

    assert message.id == "eventlogs.W023"
    assert "'account.legacy'" in message.msg
    assert "Import tests.checks.test_checks" in message.hint


@pytest.mark.parametrize(
    "value",
    [
        {"CACHE": 3},
        {"CACHE_TIMEOUT": 0},
        {"CACHE_TIMEOUT": True},
        {"CACHE_TIMEOUT": "60"},
        {"CACHING_POLICY": "nowhere.Policy"},
        {"CACHING_POLICY": 3},
        {"REFRESHER": "nowhere.Refresher"},
        {"REFRESHER": None},
        {"REFRESH_ON_APPEND": 1},
    ],
)
def test_e001_values_of_the_cache_that_cannot_be(settings, value):
    settings.EVENTLOGS = value

    assert found(checks.check_settings) == ["eventlogs.E001"]


@pytest.mark.parametrize(
    "value",
    [
        {"CACHE": None, "CACHE_TIMEOUT": None},
        {"CACHE_TIMEOUT": 0.5},
        {"CACHING_POLICY": NeverCache},
        {"CACHING_POLICY": NeverCache()},
        {"REFRESHER": "eventlogs.refreshers.ImmediateRefresher", "REFRESH_ON_APPEND": True},
    ],
)
def test_values_of_the_cache_that_can_be(settings, value):
    settings.EVENTLOGS = value

    assert found(checks.check_settings) == []


@pytest.mark.feed
@pytest.mark.django_db
def test_w030_rows_of_another_version():
    check = partial(checks.check_rebuilds, databases=["default"])
    assert found(check) == []
    PaymentSummaries.catch_up()
    assert found(check) == []

    ProjectionState.objects.update(version=0)
    assert found(check) == ["eventlogs.W030"]
    assert found(checks.check_rebuilds) == []  # the database is not to be asked

    PaymentSummaries.rebuild()
    assert found(check) == []


@pytest.mark.feed
def test_e031_rows_that_no_log_finds(monkeypatch):
    monkeypatch.setattr(PaymentSummaries, "model", ContentType)
    assert found(checks.check_projections) == ["eventlogs.E031"]

    monkeypatch.setattr(PaymentSummaries, "key", lambda self, record: 1)
    assert found(checks.check_projections) == []


@pytest.mark.feed
def test_e032_rows_in_another_database(settings):
    class Elsewhere:
        def db_for_write(self, model, **hints):
            return "other" if model is PaymentSummaries.model else None

    settings.DATABASE_ROUTERS = [Elsewhere()]

    assert found(checks.check_projections) == ["eventlogs.E032"]


def test_e033_a_database_without_a_feed(monkeypatch):
    monkeypatch.setattr(checks, "FEEDS", frozenset())

    assert set(found(checks.check_projections)) == {"eventlogs.E033"}


def test_e033_is_not_about_projections_that_are_inline(monkeypatch):
    monkeypatch.setattr(checks, "FEEDS", frozenset())
    monkeypatch.setattr(checks, "projections", {"payment-summary": PaymentSummaries})
    monkeypatch.setattr(PaymentSummaries, "mode", "inline")

    assert found(checks.check_projections) == []


@pytest.fixture
def declare(monkeypatch):
    """A function that declares projections, and no others, each with a model."""

    def only(**models):
        found = {
            name: type(name, (Projection,), {"model": model, "name": name})
            for name, model in models.items()
        }
        monkeypatch.setattr(checks, "projections", found)

    return only


class ReadModel(models.Model):
    log_id = LogIdField(primary_key=True)

    class Meta:
        app_label = "tests_of_checks"

    def __str__(self):
        return str(self.log_id)


class Proxy(ReadModel):
    class Meta:
        app_label = "tests_of_checks"
        proxy = True


class Inherited(ReadModel):
    class Meta:
        app_label = "tests_of_checks"


class Clocked(models.Model):
    log_id = LogIdField(primary_key=True)
    at = models.DateTimeField(db_default=Now())
    state = models.CharField(max_length=9, db_default="new")

    class Meta:
        app_label = "tests_of_checks"

    def __str__(self):
        return self.state


def test_e037_a_default_of_the_database_that_is_another_one_each_time(declare):
    declare(clocked=Clocked)

    [message] = checks.check_read_models(app_configs=None)

    assert message.id == "eventlogs.E037"
    assert "Clocked.at" in message.msg


@pytest.mark.parametrize("other", [ReadModel, Proxy])
def test_e038_two_projections_of_one_table(declare, other):
    declare(one=ReadModel, two=other)

    [message] = checks.check_read_models(app_configs=None)

    assert message.id == "eventlogs.E038"
    assert "'one' and 'two'" in message.msg


def test_e039_a_read_model_of_two_tables_whose_one_is_that_of_another(declare):
    declare(one=ReadModel, two=Inherited)

    assert found(checks.check_read_models) == ["eventlogs.E038", "eventlogs.E039"]


def test_read_models_with_tables_of_their_own_are_right(declare):
    declare(one=Proxy, two=PaymentSummaries.model)

    assert found(checks.check_read_models) == []
