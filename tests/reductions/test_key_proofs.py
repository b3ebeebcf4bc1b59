"""
What was made of personal data is used only while all keys that decrypted them are there.

Here apply() says which keys it has used, as decryption does: so these tests need no encryption.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest

from eventlogs import Aggregate, LogManager, Reduction
from eventlogs.caches.backends import statistics
from eventlogs.caches.counters import counters
from eventlogs.caches.entries import MAX_KEYS, EntryCodec, opened
from eventlogs.events import used_keys
from eventlogs.privacy.keys import BaseKeyStore
from eventlogs.reductions import key_proofs, reader, single_flight, snapshots
from eventlogs.reductions.snapshots import Snapshots
from eventlogs.reductions.worker import worker
from eventlogs.testing import MemoryStore, RecordingCache
from eventlogs.utils.names import dotted
from tests.accounts import Account, Deposited, Opened

IMMEDIATE = "eventlogs.refreshers.ImmediateRefresher"
ADA, EVE = UUID(int=1), UUID(int=2)
GONE = "erased"


class Keys(BaseKeyStore):
    """Keys in memory, and how often they are asked for."""

    there: ClassVar[set[UUID]] = set()
    asked: ClassVar[list[set[UUID]]] = []

    def for_subjects(self, subjects):
        raise NotImplementedError

    def secrets(self, key_ids):
        self.asked.append(set(key_ids))
        return {each: bytes(32) for each in key_ids if each in self.there}

    def find(self, subject):
        raise NotImplementedError

    def destroy(self, subject):
        raise NotImplementedError

    def rotate(self):
        raise NotImplementedError


@dataclass
class Person(Aggregate, log_type="person", events=[Opened, Deposited]):
    """Its events have personal data: the key of each owner is a number."""

    name: str = ""
    others: list[str] = field(default_factory=list)

    def apply(self, record):
        match record.event:
            case Opened(owner=owner):
                self.name = decrypted(owner, ADA)
            case Deposited(amount=amount) if amount > 1:
                self.others.append(decrypted(str(amount), UUID(int=amount)))


def decrypted(text, key_id):
    """Do what decoding does: use the key if it is there, and note that."""
    if key_id not in Keys.there:
        return GONE
    used_keys.note([key_id])
    return text


@pytest.fixture(autouse=True)
def _keys(settings):
    settings.EVENTLOGS = {"KEY_STORE": {"BACKEND": f"{__name__}.Keys"}}
    Keys.there = {ADA, EVE}
    Keys.asked = []
    counters.reset()
    yield
    assert worker.flush(5)


@pytest.fixture
def cache():
    return RecordingCache()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def people(store, cache):
    return LogManager(Person, store=store, cache=cache, refresher=IMMEDIATE)


@pytest.fixture
def state(people):
    return people.create(Opened("Ada"), Deposited(1))


def raw_entries(cache):
    return [raw for raw, _ in cache._values.values() if raw.startswith(b"EL1")]


def keys_in(cache):
    return [set(opened(raw)[0].keys) for raw in raw_entries(cache)]


def test_an_entry_of_personal_data_is_used_with_one_look_at_its_keys(people, state, cache):
    people.reduce(state.log_id)
    assert keys_in(cache) == [{ADA}]
    Keys.asked.clear()

    assert people.reduce(state.log_id).aggregate.name == "Ada"

    assert statistics()["hits"] == 1
    assert Keys.asked == [{ADA}]


def test_an_entry_without_personal_data_has_the_bytes_of_today_and_asks_for_no_key(store, cache):
    accounts = LogManager(Account, store=store, cache=cache, refresher=IMMEDIATE)
    state = accounts.create(Opened("Ada"), Deposited(1))
    for _ in range(2):
        reduction = accounts.reduce(state.log_id)

    assert Keys.asked == []
    [raw] = raw_entries(cache)
    facts = raw[7:].partition(b"\n")[0]
    fingerprint = EntryCodec(Account, "default").fingerprint
    moment = reduction.reduced_at.isoformat().replace("+00:00", "Z")
    begin = f'["{fingerprint}","in {dotted(MemoryStore)}","{state.log_id}",2,{state.position},"'
    assert facts.startswith(begin.encode())
    assert facts.endswith(f'","{moment}"]'.encode())


def test_an_entry_is_not_used_after_its_key_was_destroyed(people, state, cache):
    people.reduce(state.log_id)
    Keys.there.discard(ADA)

    assert people.reduce(state.log_id).aggregate.name == GONE
    assert b"Ada" not in raw_entries(cache)[0]

    assert keys_in(cache) == [set()]  # it was made without a key
    assert people.reduce(state.log_id).aggregate.name == GONE
    assert statistics()["hits"] == 1


def test_one_destroyed_key_of_several_is_enough(people, state, cache):
    people.append(state, Deposited(2))
    people.reduce(state.log_id)
    assert keys_in(cache) == [{ADA, EVE}]
    Keys.there.discard(EVE)

    assert people.reduce(state.log_id).aggregate == Person("Ada", [GONE])
    assert keys_in(cache) == [{ADA}]


def test_an_entry_that_is_continued_has_the_old_and_the_new_keys(people, state, cache):
    people.reduce(state.log_id)
    people.append(state, Deposited(2))

    people.reduce(state.log_id)

    assert keys_in(cache) == [{ADA, EVE}]
    Keys.there.discard(ADA)
    assert people.reduce(state.log_id).aggregate == Person(GONE, ["2"])


def test_a_broken_proof_shows_the_forgotten_name(people, state, monkeypatch):
    """This test would fail if the look at the keys were not what keeps the name away."""
    monkeypatch.setattr(key_proofs, "are_there", lambda key_ids: True)
    people.reduce(state.log_id)
    Keys.there.discard(ADA)

    assert people.reduce(state.log_id).aggregate.name == "Ada"


def test_a_reader_that_writes_its_entry_after_the_key_was_destroyed_takes_it_back(
    people, state, cache, store
):
    reading = people._reductions().read(state.log_id, store)
    Keys.there.discard(ADA)  # and forget() deletes the entries, before this one is written

    assert reading.job() is False

    assert raw_entries(cache) == []


def test_without_the_second_look_the_entry_would_stay(people, state, cache, store, monkeypatch):
    reading = people._reductions().read(state.log_id, store)
    Keys.there.discard(ADA)
    monkeypatch.setattr(key_proofs, "are_there", lambda key_ids: True)

    assert reading.job() is True
    assert b"Ada" in raw_entries(cache)[0]


def test_a_reader_that_waited_for_anothers_replay_does_not_use_it_after_the_key_is_gone(
    people, state, store, monkeypatch
):
    """Single flight: the leader has folded the name; the key goes before its waiter has it."""
    joined, folded = threading.Event(), threading.Event()
    lead = reader.ReductionReader._lead

    def slow(self, replay, miss, wait):
        reading = lead(self, replay, miss, wait)
        folded.set()
        assert joined.wait(5)
        Keys.there.discard(ADA)
        return reading

    monkeypatch.setattr(reader.ReductionReader, "_lead", slow)
    names = {}

    def reduce(who):
        names[who] = people.reduce(state.log_id).aggregate.name

    leader = threading.Thread(target=reduce, args=("leader",))
    leader.start()
    assert folded.wait(5)
    real_join = single_flight.replays.join

    def join(key):
        found = real_join(key)
        joined.set()
        return found

    monkeypatch.setattr(single_flight.replays, "join", join)
    waiter = threading.Thread(target=reduce, args=("waiter",))
    waiter.start()
    leader.join(5)
    waiter.join(5)

    assert names == {"leader": "Ada", "waiter": GONE}


def test_a_state_of_too_many_people_is_not_cached(people, cache, caplog):
    Keys.there = {ADA, *(UUID(int=n) for n in range(2, MAX_KEYS + 2))}
    state = people.create(Opened("Ada"))
    for first in range(2, MAX_KEYS + 1, 500):
        events = [Deposited(n) for n in range(first, min(first + 500, MAX_KEYS + 1))]
        state = people.append(state, *events)
    people.reduce(state.log_id)
    assert [len(keys) for keys in keys_in(cache)] == [MAX_KEYS]

    state = people.append(state, Deposited(MAX_KEYS + 1))
    cache.clear()

    assert len(people.reduce(state.log_id).aggregate.others) == MAX_KEYS
    assert raw_entries(cache) == []
    assert statistics()["errors"]["unstorable"] == 1
    assert "more than 1000 subjects" in caplog.text


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_fold_that_reduces_another_log_depends_on_that_logs_keys(store, cache, is_cached):
    people = LogManager(Person, store=store, cache=cache, refresher=IMMEDIATE)
    person = people.create(Opened("Ada"))
    Looking.people, Looking.person = people, person.log_id
    if is_cached:
        people.reduce(person.log_id)
    lookings = LogManager(Looking, store=store, cache=cache, refresher=IMMEDIATE)
    state = lookings.create(Deposited(1))

    assert lookings.reduce(state.log_id).aggregate.name == "Ada"
    Keys.there.discard(ADA)
    assert lookings.reduce(state.log_id).aggregate.name == GONE


@dataclass
class Looking(Aggregate, log_type="looking", events=[Deposited]):
    """It does what a fold should not do: it reads another log."""

    people: ClassVar[Any] = None
    person: ClassVar[Any] = None
    name: str = ""

    def apply(self, record):
        self.name = self.people.reduce(self.person).aggregate.name


@pytest.fixture
def _near(monkeypatch):
    monkeypatch.setattr(snapshots, "INTERVAL", 10)


@pytest.mark.usefixtures("_near")
def test_a_snapshot_is_not_used_after_its_key_was_destroyed(people, store, cache):
    log_id = people.create(Opened("Ada"), *(Deposited(1) for _ in range(40))).log_id
    first = Snapshots(Person, "default", store=store, cache=cache)
    _, writes = first.fold(Person.without_events(log_id), store, version=20)
    assert [write() for write in writes] == [True, True]
    later = Snapshots(Person, "default", store=store, cache=cache)
    assert later.nearest(log_id, store, upto=25).version == 20
    cache.calls.clear()

    # A snapshot that is made from another one has the keys of that one.
    start = later.nearest(log_id, store, upto=25)
    _, more = later.fold(start, store, version=35)
    assert [set(write.keys) for write in more] == [{ADA}]
    assert [write() for write in more] == [True]
    assert keys_in(cache) == [{ADA}] * 3

    Keys.there.discard(ADA)
    again = Snapshots(Person, "default", store=store, cache=cache)
    assert again.nearest(log_id, store, upto=38) is None
    state, writes = again.fold(Person.without_events(log_id), store, version=35)
    assert isinstance(state, Reduction)
    assert state.aggregate.name == GONE
    assert all(write() for write in writes)
    assert not any(b"Ada" in raw for raw in raw_entries(cache))


def test_keys_are_noted_in_the_blocks_around_and_nowhere_else():
    key = uuid4()
    used_keys.note([key])
    assert used_keys.noted() is None

    with used_keys.Noting() as outer:
        with used_keys.Noting() as inner:
            used_keys.note([key])
            assert used_keys.noted() == {key}
        assert inner == {key}
        with used_keys.Noting() as other:
            pass
    assert (outer, other) == ({key}, set())
    assert used_keys.noted() is None
