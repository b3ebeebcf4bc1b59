"""The system checks of the settings, each by its id."""

from __future__ import annotations

from datetime import timedelta

import pytest

from eventlogs import NeverCache
from eventlogs.checks.settings import check_settings
from tests.checks.messages import found


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
        {"CHAIN": 1},
        {"GROUP_COMMIT": True},
        {"GROUP_COMMIT": "always"},
        {"PAGE_SIZE": 0},
        {"PAGE_SIZE": 10_001},
        {"PAGE_SIZE": "100"},
        {"CONTEXT": []},
        {"CONTEXT": {"till": "nowhere.at_all"}},
        {"CONTEXT": {"till": "nothing"}},
        {"CONTEXT": {"till": "eventlogs.middleware.ID"}},
        {"CONTEXT": {"till": "eventlogs.context.look_up"}},
        {"CONTEXT": {"till": 7}},
        {"CONTEXT": {"a b": None}},
        {"CONTEXT": {7: None}},
        {"SEAL_KEY": "AAAA"},
        {"SEAL_KEY": b"A" * 32},
        {"SEAL_KEY": "?" * 44},
        {"SEAL_PUBLIC_KEYS": "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="},
        {"SEAL_PUBLIC_KEYS": ["AAAA"]},
        {"ARCHIVE_STORAGE": "nowhere"},
        {"ARCHIVE_STORAGE": 7},
        {"ARCHIVE_GRACE": 7},
        {"ARCHIVE_GRACE": None},
        {"ARCHIVE_GRACE": timedelta(days=-1)},
        {"RETENTION": "tests.operations.archiving.closed.closed_accounts"},
        {"RETENTION": ["tests.operations.archiving.closed.is_closed"]},
        {"RETENTION": ["tests.no_such_module.rule"]},
        {"HEALTH": 60},
        {"HEALTH": {"MAX_LAG": -1}},
        {"HEALTH": {"MAX_HELD": "10"}},
        {"HEALTH": {"MAX_PARKED": True}},
        {"HEALTH": {"MAX_DEPLOY": float("nan")}},
    ],
)
def test_e001_a_setting_has_the_wrong_type_or_is_out_of_range(settings, value):
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
        {"GROUP_COMMIT": False},
        {"GROUP_COMMIT": "connection"},
        {"GROUP_COMMIT": "process"},
        {"MAX_EVENT_BYTES": 2**28, "PAGE_SIZE": 10_000},
        {"IDEMPOTENCY_KEY_RETENTION": None},
        {"IDEMPOTENCY_KEY_RETENTION": timedelta(days=30)},
        {"CONTEXT": {}},
        {"CONTEXT": {"user": None, "till": str, "request_id": "eventlogs.middleware.user"}},
        {"HEALTH": {}},
        {"HEALTH": {"MAX_LAG": 0, "MAX_HELD": 0.5, "MAX_PARKED": float("inf"), "MAX_DEPLOY": 1}},
    ],
)
def test_a_setting_within_its_bounds_is_fine(settings, value):
    settings.EVENTLOGS = value

    assert found(check_settings) == []


def test_missing_settings_are_fine(settings):
    if hasattr(settings, "EVENTLOGS"):
        del settings.EVENTLOGS

    assert found(check_settings) == []


def test_e001_names_the_value_and_the_allowed_range(settings):
    settings.EVENTLOGS = {"PAGE_SIZE": -1}

    [message] = check_settings()

    assert message.msg == "EVENTLOGS['PAGE_SIZE'] is -1. It must be an int from 1 to 10,000."
    assert message.hint == (
        "Set EVENTLOGS['PAGE_SIZE'] = 100, which is the default, or another allowed value."
    )


def test_w002_a_setting_has_an_unknown_key(settings):
    settings.EVENTLOGS = {"PAGESIZE": 7}

    [message] = check_settings()

    assert message.id == "eventlogs.W002"
    assert not message.is_serious()
    assert "PAGE_SIZE" in message.hint


def test_e001_names_the_wrong_limit_of_health_and_its_allowed_range(settings):
    settings.EVENTLOGS = {"HEALTH": {"MAX_LAG": -1}}
    [message] = check_settings()
    assert message.msg == (
        "EVENTLOGS['HEALTH']['MAX_LAG'] is -1. It must be a number of seconds, 0 or more."
    )

    settings.EVENTLOGS = {"HEALTH": {"MAX_LOG": 1}}
    [message] = check_settings()
    assert (message.id, "MAX_LAG" in message.hint) == ("eventlogs.W002", True)


def test_e005_use_tz_is_off(settings):
    settings.USE_TZ = False

    [message] = check_settings()

    assert (message.id, message.hint) == ("eventlogs.E005", "Set USE_TZ = True.")


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
        {"REFRESHER": {"OPTIONS": {}}},
        {"REFRESHER": {"BACKEND": "nowhere.Refresher"}},
        {"REFRESH_ON_APPEND": 1},
    ],
)
def test_e001_invalid_settings_of_the_cache(settings, value):
    settings.EVENTLOGS = value

    assert found(check_settings) == ["eventlogs.E001"]


@pytest.mark.parametrize(
    "value",
    [
        {"CACHE": None, "CACHE_TIMEOUT": None},
        {"CACHE_TIMEOUT": 0.5},
        {"CACHING_POLICY": NeverCache},
        {"CACHING_POLICY": NeverCache()},
        {"REFRESHER": "eventlogs.refreshers.ImmediateRefresher", "REFRESH_ON_APPEND": True},
        {"REFRESHER": {"BACKEND": "eventlogs.refreshers.ImmediateRefresher"}},
    ],
)
def test_valid_settings_of_the_cache_are_fine(settings, value):
    settings.EVENTLOGS = value

    assert found(check_settings) == []
