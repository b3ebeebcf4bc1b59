"""The unique values of stored events that have personal data of several people."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Annotated

import pytest
from django.core.management import call_command
from django.db.models import QuerySet
from msgspec import structs

from eventlogs import Aggregate, EventRecord, NameTaken, Personal, Unique, event, upcaster
from eventlogs.events.unique_values import UniqueReader, Unread
from eventlogs.exceptions import KeyUnavailable
from eventlogs.models import Event, EventLog, SubjectKey, UniqueValue
from eventlogs.operations.forgetting import forget
from eventlogs.operations.unique_values import claim
from eventlogs.privacy import memory
from eventlogs.stores import store_for
from tests.guests import SETTINGS

pytestmark = pytest.mark.django_db(transaction=True)

ADA, BOB = "contact:1", "contact:2"


@event("contact.added", version=2)
@dataclass(frozen=True, slots=True)
class Added:
    person: int
    other: int
    email: Annotated[
        str | None, Unique("contact.email"), Personal(subject="person", prefix="contact:")
    ]
    email_backup: Annotated[str | None, Personal(subject="other", prefix="contact:")] = None
    town: str = ""


@upcaster("contact.added", from_version=1)
def _with_town(data):
    return {**data, "town": "Turin"}


@dataclass
class Contact(Aggregate, log_type="contact", events=[Added]):
    def apply(self, record: EventRecord) -> None:
        pass


@pytest.fixture(autouse=True)
def _settings(settings):
    settings.EVENTLOGS = {**SETTINGS, "CACHE": None}
    memory.clear()
    yield
    memory.clear()


@pytest.fixture
def added():
    return Contact.logs.create(Added(1, 2, "ada@example.org", "bob@example.org")).log_id


def stored(log_id):
    [only] = store_for("default").stream(log_id)
    return only


def test_the_value_of_a_person_stays_claimed_when_another_one_is_forgotten(added):
    forget(BOB)

    assert Contact.logs.find("contact.email", "ada@example.org") == added
    with pytest.raises(NameTaken):
        Contact.logs.create(Added(3, 4, "ada@example.org"))


def test_the_value_of_the_person_who_is_forgotten_is_released(added):
    forget(ADA)

    assert Contact.logs.find("contact.email", "ada@example.org") is None


def test_in_an_event_of_an_older_version_a_value_is_released_with_its_own_person(added):
    old = structs.replace(stored(added), schema_version=1)
    before = UniqueReader(strict=True).read([old])
    assert before["contact.email"] is not None

    forget(BOB)
    assert UniqueReader(strict=True).read([old]) == before

    forget(ADA)
    assert UniqueReader(strict=True).read([old]) == {"contact.email": None}


def lose(subject):
    """Make a key one that this process cannot have."""
    SubjectKey.objects.filter(subject=subject).update(wrapped_by="a key of another server")


@pytest.mark.sqlite  # PostgreSQL refuses to delete events
def test_an_import_without_the_keys_stores_the_events_and_claims_nothing(added, tmp_path):
    path = tmp_path / "export.jsonl"
    call_command("eventlogs", "export", str(path), stdout=io.StringIO())
    for model in (UniqueValue, Event, EventLog):
        QuerySet(model)._raw_delete("default")
    lose(ADA)

    call_command("eventlogs", "import", str(path), stdout=io.StringIO())

    assert Event.objects.count() == 1
    assert UniqueValue.objects.count() == 0


def test_a_value_that_cannot_be_read_for_want_of_a_key_is_unread(added):
    lose(ADA)

    assert UniqueReader().read([stored(added)]) == {}
    with pytest.raises(Unread, match="a key of its personal data cannot be had"):
        UniqueReader(strict=True).read([stored(added)])


def test_logs_whose_keys_cannot_be_had_keep_their_claims_and_are_reported(added):
    lose(ADA)
    rows = UniqueValue.objects.count()

    assert claim().unread == [added]
    assert UniqueValue.objects.count() == rows == 1


def test_forgetting_raises_where_it_cannot_say_which_values_are_released(added):
    lose(ADA)

    with pytest.raises(KeyUnavailable):
        forget(BOB)
