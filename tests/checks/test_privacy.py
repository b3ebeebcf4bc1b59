"""The system checks of personal data, each by its id."""

from __future__ import annotations

import pytest

from eventlogs.checks.privacy import check_personal_data
from eventlogs.checks.settings import check_settings
from eventlogs.privacy import encryption
from tests.checks.messages import found
from tests.people import Patient
from tests.privacy.conftest import NEW


def test_e051_personal_data_need_a_key(settings):
    assert Patient.event_types
    settings.EVENTLOGS = {}

    [message] = check_personal_data()

    assert message.id == "eventlogs.E051"
    assert "has no key" in message.msg


def test_e051_personal_data_need_the_package(settings, monkeypatch):
    monkeypatch.setattr("eventlogs.checks.privacy.is_installed", lambda: False)
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}

    [message] = check_personal_data()

    assert "eventlogs[privacy]" in message.hint


def test_personal_data_with_a_key_are_fine(settings):
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW], "PERSONAL_METADATA": {"ip": "user", "x": None}}

    assert found(check_personal_data) == []
    assert found(check_settings) == []
    assert encryption.is_installed()


@pytest.mark.parametrize(
    "value",
    [
        {"ENCRYPTION_KEYS": "abc"},
        {"ENCRYPTION_KEYS": ["secret-text"]},
        {"ENCRYPTION_KEYS": ["c2hvcnQ="]},
        {"ENCRYPTION_KEYS": [None]},
        {"ENCRYPTION_KEYS": [b"b" * 32]},
        {"KEY_STORE": "eventlogs.privacy.DatabaseKeyStore"},
        {"KEY_STORE": {}},
        {"KEY_STORE": {"BACKEND": "eventlogs.privacy.Nothing"}},
        {"KEY_STORE": {"BACKEND": "eventlogs.privacy.Personal"}},
        {"KEY_STORE": {"BACKEND": "eventlogs.privacy.DatabaseKeyStore", "OPTIONS": []}},
        {"KEY_STORE": {"BACKEND": "eventlogs.privacy.DatabaseKeyStore", "OTHER": 1}},
        {"PERSONAL_METADATA": ["ip"]},
        {"PERSONAL_METADATA": {"ip": 5}},
    ],
)
def test_e001_a_wrong_setting_is_found_and_no_secret_is_shown(settings, value):
    settings.EVENTLOGS = value

    [message] = check_settings()

    assert message.id == "eventlogs.E001"
    assert "secret-text" not in message.msg
    assert "c2hvcnQ=" not in message.msg
