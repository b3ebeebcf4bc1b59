"""The system checks of the cache of reductions, each by its id."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from django.core.checks import run_checks

from eventlogs import Aggregate, event
from eventlogs.checks import reductions
from tests.accounts import Opened
from tests.checks.messages import found

REDIS = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1"}


TIMEOUTS = {"OPTIONS": {"socket_timeout": 1, "socket_connect_timeout": 1}}


LOCAL = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}


def test_e003_an_unknown_cache_alias(settings):
    settings.EVENTLOGS = {"CACHE": "reductions"}

    [message] = reductions.check_reduction_cache()

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

    [message] = reductions.check_reduction_cache()

    assert message.id == "eventlogs.E009"
    assert backend["BACKEND"] in message.msg


def test_w021_redis_without_time_outs(settings):
    pytest.importorskip("redis")
    settings.CACHES = {"default": REDIS}
    assert found(reductions.check_reduction_cache) == ["eventlogs.W021"]

    settings.CACHES = {"default": {**REDIS, **TIMEOUTS}}
    assert found(reductions.check_reduction_cache) == []


@pytest.mark.redis
def test_w021_time_outs_of_django_redis(settings):
    redis = settings.CACHES["redis"]
    settings.EVENTLOGS = {"CACHE": "redis"}
    assert found(reductions.check_reduction_cache) == []

    settings.CACHES = {"default": LOCAL, "redis": {**redis, "OPTIONS": {"SOCKET_TIMEOUT": 1}}}
    assert found(reductions.check_reduction_cache) == ["eventlogs.W021"]

    pool = {"socket_timeout": 1, "socket_connect_timeout": 1}
    settings.CACHES["redis"] = {**redis, "OPTIONS": {"CONNECTION_POOL_KWARGS": pool}}
    settings.CACHES = dict(settings.CACHES)
    assert found(reductions.check_reduction_cache) == []


@pytest.mark.parametrize("cache", [LOCAL, {"BACKEND": "nowhere.Cache"}])
def test_a_local_or_unavailable_cache_has_no_finding(settings, cache):
    settings.CACHES = {"default": cache}

    assert found(reductions.check_reduction_cache) == []


def test_without_a_cache_there_is_no_finding(settings):
    settings.EVENTLOGS = {"CACHE": None}
    settings.CACHES = {"default": {"BACKEND": "nowhere.Cache"}}

    for check in (
        reductions.check_reduction_cache,
        reductions.check_processes,
        reductions.check_refresher,
        reductions.check_aggregates,
    ):
        assert found(check) == []


def test_w010_the_memory_of_one_process(settings):
    settings.CACHES = {"default": LOCAL}
    assert found(reductions.check_processes) == ["eventlogs.W010"]

    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert found(reductions.check_processes) == []


def test_w010_is_for_deployments_only():
    ours = {message.id for message in run_checks(tags=["caches"])}
    deployed = {
        message.id for message in run_checks(tags=["caches"], include_deployment_checks=True)
    }

    assert "eventlogs.W010" in deployed - ours


def test_w020_a_worker_that_writes_to_the_memory_of_its_own_process(settings):
    pytest.importorskip("celery")
    settings.CACHES = {"default": LOCAL}
    settings.EVENTLOGS = {"REFRESHER": "eventlogs.tasks.CeleryRefresher"}
    assert found(reductions.check_refresher) == ["eventlogs.W020"]

    settings.EVENTLOGS = {}
    assert found(reductions.check_refresher) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"queue": "reductions"},
            "EVENTLOGS['REFRESHER'] cannot be used. eventlogs.refreshers.ThreadRefresher has no "
            "option 'queue'. Its options: 'capacity', 'delay'.",
        ),
        (
            {"capacity": 0},
            "EVENTLOGS['REFRESHER'] cannot be used. The refresher's option 'capacity' is 0. It "
            "must be an int from 1 to 1,000,000.",
        ),
    ],
)
def test_e047_a_refresher_does_not_take_its_options(settings, options, text):
    path = "eventlogs.refreshers.ThreadRefresher"
    settings.EVENTLOGS = {"REFRESHER": {"BACKEND": path, "OPTIONS": options}}

    [message] = reductions.check_refresher()

    assert (message.id, message.msg) == ("eventlogs.E047", text)
    assert f'Set EVENTLOGS["REFRESHER"] = "{path}"' in message.hint


def test_a_refresher_with_its_options_is_fine(settings):
    path = "eventlogs.refreshers.ThreadRefresher"
    settings.EVENTLOGS = {"REFRESHER": {"BACKEND": path, "OPTIONS": {"capacity": 10}}}

    assert found(reductions.check_refresher) == []


def test_w022_an_aggregate_that_cannot_be_cached(scratch_registry):
    class Plain(Aggregate, log_type="plain", events=[Opened]):
        pass

    [message] = reductions.check_aggregates()

    assert message.id == "eventlogs.W022"
    assert "Plain" in message.msg
    assert "dataclass" in message.msg


def test_w023_an_aggregate_whose_code_has_no_fingerprint(scratch_registry):
    @dataclass
    class Local(Aggregate, log_type="local", events=[Opened]):
        n: int = 0

    [message] = reductions.check_aggregates()

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

    [message] = reductions.check_aggregates()

    assert message.id == "eventlogs.W023"
    assert "'account.legacy'" in message.msg
    assert "Import tests.checks.test_reductions" in message.hint
