"""The settings: their defaults, and that they are read on every call."""

from __future__ import annotations

from datetime import timedelta

import pytest

from eventlogs import NeverCache, conf

READERS = [
    (conf.cache, "CACHE", "default", None),
    (conf.cache_timeout, "CACHE_TIMEOUT", 604_800, 1.5),
    (conf.caching_policy, "CACHING_POLICY", "eventlogs.policies.AlwaysCache", NeverCache),
    (conf.refresher, "REFRESHER", "eventlogs.refreshers.ThreadRefresher", "my.Refresher"),
    (conf.refresh_on_append, "REFRESH_ON_APPEND", False, True),
    (conf.max_event_bytes, "MAX_EVENT_BYTES", 262_144, 10),
    (conf.idempotency_key_retention, "IDEMPOTENCY_KEY_RETENTION", None, timedelta(days=1)),
    (conf.prepared_statements, "PREPARED_STATEMENTS", True, False),
    (conf.chain, "CHAIN", False, True),
    (conf.group_commit, "GROUP_COMMIT", "connection", False),
    (conf.page_size, "PAGE_SIZE", 100, 7),
    (conf.archive_storage, "ARCHIVE_STORAGE", None, "archives"),
    (conf.archive_grace, "ARCHIVE_GRACE", timedelta(days=7), timedelta(0)),
    (conf.retention, "RETENTION", (), ["payments.retention.payments"]),
    (conf.encryption_keys, "ENCRYPTION_KEYS", [], ["bmV3"]),
    (conf.key_store, "KEY_STORE", conf.DEFAULTS["KEY_STORE"], {"BACKEND": "my.KeyStore"}),
    (conf.personal_metadata, "PERSONAL_METADATA", {}, {"ip": "user"}),
    (conf.context, "CONTEXT", conf.CONTEXT, dict.fromkeys(conf.CONTEXT, "my.function")),
    (conf.seal_key, "SEAL_KEY", None, "AAAA"),
    (conf.seal_public_keys, "SEAL_PUBLIC_KEYS", (), ("AAAA",)),
    (conf.health, "HEALTH", conf.HEALTH, dict.fromkeys(conf.HEALTH, 7)),
]


@pytest.mark.parametrize(("read", "name", "default", "other"), READERS)
def test_a_setting_that_is_not_set_has_its_default(settings, read, name, default, other):
    del settings.EVENTLOGS

    assert read() == default

    settings.EVENTLOGS = {}

    assert read() == default


@pytest.mark.parametrize(("read", "name", "default", "other"), READERS)
def test_a_setting_is_read_on_every_call(settings, read, name, default, other):
    settings.EVENTLOGS = {name: other}
    assert read() == other

    settings.EVENTLOGS = {name: default}

    assert read() == default


def test_every_setting_has_a_reader():
    assert {*(name for _, name, _, _ in READERS), "LAYOUT"} == set(conf.DEFAULTS)


@pytest.mark.parametrize("layout", ["fence", "buckets"])
def test_the_layout_is_read_on_every_call(settings, layout):
    settings.EVENTLOGS = {"LAYOUT": layout}

    assert conf.has_buckets() == (layout == "buckets")


def test_limits_of_health_that_are_left_out_have_their_defaults(settings):
    settings.EVENTLOGS = {"HEALTH": {"MAX_LAG": 5}}

    assert conf.health() == {**conf.HEALTH, "MAX_LAG": 5}


def test_functions_of_the_context_are_added_replaced_and_removed(settings):
    settings.EVENTLOGS = {"CONTEXT": {"till": "my.till", "user": "my.user", "traceparent": None}}

    assert {**conf.context()} == {
        "user": "my.user",
        "request_id": conf.CONTEXT["request_id"],
        "correlation_id": conf.CONTEXT["correlation_id"],
        "till": "my.till",
    }


def test_the_secret_key_comes_before_its_fallbacks(settings):
    settings.SECRET_KEY = "new"
    settings.SECRET_KEY_FALLBACKS = ["old", "older"]

    assert conf.secret_keys() == [b"new", b"old", b"older"]


def test_a_missing_setting_is_created_by_prepare(settings):
    del settings.EVENTLOGS

    conf.prepare()
    assert settings.EVENTLOGS == {}

    settings.EVENTLOGS = {"PAGE_SIZE": 7}
    conf.prepare()
    assert conf.page_size() == 7
