from __future__ import annotations

import json
from uuid import uuid4

import pytest
from django.core.management import CommandError

from eventlogs.models import SubjectKey
from eventlogs.privacy import key_store
from tests.privacy.conftest import NEW, OLD

pytestmark = pytest.mark.django_db


@pytest.fixture
def keys(settings):
    """Two subjects, and a new encryption key."""
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [OLD]}
    keys = key_store().for_subjects(["a", "b"])
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW, OLD]}
    return keys


def test_all_keys_are_wrapped_by_the_newest_encryption_key(keys, run, settings):
    before = set(SubjectKey.objects.values_list("wrapped_by", flat=True))

    assert "2 keys wrapped anew" in run("rotate-keys")
    assert "All keys are wrapped by the newest" in run("rotate-keys")

    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}
    assert key_store().for_subjects(["a", "b"]) == keys
    assert not before & set(SubjectKey.objects.values_list("wrapped_by", flat=True))


def test_the_number_is_available_as_json(keys, run):
    assert json.loads(run("rotate-keys", "--json")) == {"keys": 2}


def test_a_missing_key_is_a_mistake(keys, run, settings):
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}

    with pytest.raises(CommandError, match="lacks the key"):
        run("rotate-keys")


def test_settings_without_keys_are_a_mistake(run, settings):
    settings.EVENTLOGS = {}

    with pytest.raises(CommandError, match="has no key"):
        run("rotate-keys")


def test_a_lost_key_is_given_up(keys, run):
    lost = uuid4()

    assert f"The key {lost} is given up" in run("rotate-keys", "--lost-key", str(lost))

    assert key_store().secrets([lost]) == {}
    with pytest.raises(CommandError, match="it is not lost"):
        run("rotate-keys", "--lost-key", str(keys["a"].id))


def test_a_key_that_is_given_up_is_available_as_json(run):
    lost = uuid4()

    assert json.loads(run("rotate-keys", "--lost-key", str(lost), "--json")) == {
        "lost_key": str(lost)
    }
