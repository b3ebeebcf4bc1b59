"""Publishers: what is published, in which order, and what happens when it fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from django.db import transaction

from eventlogs import (
    EventRecord,
    LogId,
    ProjectionFailed,
    Publisher,
    PublishingFailed,
    Reactor,
    RegistrationError,
    Unpublishable,
    handles,
    projection,
    retired_event,
)
from eventlogs.events.codec import EncodedEvent
from eventlogs.models import Checkpoint, EventLog, ParkedEvent
from eventlogs.privacy import forget, memory
from eventlogs.projections import publications
from eventlogs.projections.base import projections
from eventlogs.projections.publisher import BaseSink
from eventlogs.projections.workers import Worker
from tests import guests
from tests.accounts import Account, Deposited, Noted, Opened, Withdrawn
from tests.guests import Guest, Joined, Paid
from tests.processes import until
from tests.projections.readmodels import Balance, Balances, declaring

pytestmark = [
    pytest.mark.usefixtures("tables"),
    pytest.mark.feed,
]


class Other:
    """The other side: it takes what it gets, and refuses or fails as a test says."""

    def __init__(self) -> None:
        self.taken: list[str] = []  # ids, repetitions included
        self.batches: list[list[EventRecord]] = []
        self.before: Callable[[Sequence[EventRecord]], object] = lambda records: None

    def take(self, records: Sequence[EventRecord]) -> None:
        self.batches.append(list(records))
        self.before(records)
        self.taken += [each.id for each in records]

    def first_times(self, log_id: LogId) -> list[int]:
        """Return the indexes of a log's events in the order in which they came first."""
        ids = [each for each in dict.fromkeys(self.taken) if each.startswith(f"{log_id}:")]
        return [int(each.rpartition(":")[2]) for each in ids]


other = Other()


class ToOther(Publisher):
    log_types = ["account"]
    backoff = 60.0  # long: tests that need an early retry shorten it
    max_attempts = 2

    def publish(self, records: Sequence[EventRecord]) -> None:
        other.take(records)


@projection("to-other")
class Everything(ToOther):
    pass


@projection("deposits-to-other")
class Deposits(ToOther):
    events = [Deposited]


@projection("guests-to-other")
class Guests(ToOther):
    log_types = ["visitor"]


@projection("plain-guests-to-other")
class PlainGuests(Guests):
    with_personal_data = True


DECLARED = {each.name: each for each in (Everything, Deposits, Guests, PlainGuests)}
for name in DECLARED:
    del projections[name]


@pytest.fixture(autouse=True)
def _declared() -> Iterator[None]:
    other.__init__()  # type: ignore[misc]
    with declaring({Everything.name: Everything, Balances.name: Balances}):
        yield


def indexes(*log_ids: LogId) -> list[list[int]]:
    return [other.first_times(each) for each in log_ids]


def position() -> int:
    return Checkpoint.objects.get(projection=Everything.name).position


def due() -> None:
    """Make held events due."""
    ParkedEvent.objects.exclude(retry_at=None).update(retry_at="2020-01-01T00:00:00Z")


def refuse(*ids: str) -> None:
    def refusing(records: Sequence[EventRecord]) -> None:
        named = [each for each in records if each.id in ids]
        if named:
            raise Unpublishable(*named)

    other.before = refusing


# What is published


def test_a_batch_is_published_at_once_and_in_order():
    ada = Account.logs.create(Opened("ada"), Deposited(1))
    bob = Account.logs.create(Opened("bob"))
    Account.logs.append(ada, Withdrawn(1))

    assert Everything.catch_up() == 4

    assert [len(each) for each in other.batches] == [4]
    assert indexes(ada.log_id, bob.log_id) == [[0, 1, 2], [0]]
    assert [each.event for each in other.batches[0]][:2] == [Opened("ada"), Deposited(1)]
    assert Everything.catch_up() == 0


def test_some_event_types_are_published():
    state = Account.logs.create(Opened("ada"), Deposited(1), Withdrawn(1), Deposited(2))

    assert Deposits.catch_up() == 2

    assert indexes(state.log_id) == [[1, 3]]


def test_batches_have_the_declared_size(monkeypatch):
    monkeypatch.setattr(Everything, "batch_size", 2)
    Account.logs.create(Opened("ada"), *[Deposited(1)] * 4)

    assert Everything.catch_up() == 5

    assert [len(each) for each in other.batches] == [2, 2, 1]


@pytest.mark.usefixtures("scratch_registry")
def test_retired_events_are_published_with_their_data():
    state = Account.logs.create(Opened("ada"))
    lost = EncodedEvent("account.lost", 1, '{"why":"fire"}')
    EventLog.objects.append(state.log_id, [lost], expected_version=1)
    assert Everything.catch_up() == 1  # it is held: no class here

    retired_event("account.lost")
    Everything.retry()
    assert Everything.catch_up() == 1

    told = other.batches[-1][0].as_cloudevent()
    assert (told["type"], told["data"]) == ("account.lost", {"why": "fire"})


# Failures of the other side


def test_a_failed_batch_moves_nothing_and_is_published_again():
    state = Account.logs.create(Opened("ada"), Deposited(1))

    def fail(records):
        other.taken.append(records[0].id)  # it came through, and then the connection broke
        raise ConnectionError

    other.before = fail
    for _ in range(Everything.max_attempts + 3):
        with pytest.raises(PublishingFailed) as caught:
            Everything.catch_up()
    assert type(caught.value.__cause__) is ConnectionError
    assert (caught.value.projection, caught.value.events) == ("to-other", 2)
    assert position() == 0
    assert Everything.waiting() == Everything.parked() == []

    other.before = lambda records: None
    assert Everything.catch_up() == 2
    assert indexes(state.log_id) == [[0, 1]]


def test_batches_get_smaller_while_the_other_side_fails(monkeypatch):
    Account.logs.create(Opened("ada"), *[Deposited(1)] * 7)
    monkeypatch.setattr(Everything, "batch_size", 4)
    advancer = advancer_of(Everything)

    def slow(records):
        if len(records) > 1:
            raise TimeoutError

    other.before = slow
    for _ in range(2):
        with pytest.raises(PublishingFailed):
            advancer.step()
    other.before = lambda records: None
    while advancer.step():
        pass

    assert [len(each) for each in other.batches] == [4, 2, 1, 2, 4, 1]


def test_a_publish_that_takes_too_long_is_interrupted(monkeypatch):
    monkeypatch.setattr(Everything, "timeout", 0.1)
    Account.logs.create(Opened("ada"))
    other.before = lambda records: threading.Event().wait(60)

    with pytest.raises(PublishingFailed) as caught:
        Everything.catch_up()

    assert str(caught.value.__cause__) == (
        "A handler of projection 'to-other' did not end within 0.1 seconds. Correct it, or raise "
        "the projection's timeout."
    )
    assert Everything.parked() == []


# Records that cannot be published


def test_a_refused_record_holds_its_log_and_no_other():
    ada = Account.logs.create(Opened("ada"), Deposited(1), Deposited(2))
    bob = Account.logs.create(Opened("bob"), Deposited(1))
    refuse(f"{ada.log_id}:1")

    assert Everything.catch_up() == 3

    assert indexes(ada.log_id, bob.log_id) == [[0], [0, 1]]
    [waiting] = Everything.waiting()
    assert (waiting.log_id, waiting.index, waiting.attempts) == (ada.log_id, 1, 1)
    assert waiting.error == "Unpublishable"

    due()
    Everything.catch_up()
    [parked] = Everything.parked()
    assert (parked.log_id, parked.attempts) == (ada.log_id, Everything.max_attempts)

    later = Account.logs.append(ada, Deposited(3))
    Account.logs.append(bob, Deposited(2))
    assert Everything.catch_up() == 1
    assert indexes(ada.log_id, bob.log_id) == [[0], [0, 1, 2]]

    other.before = lambda records: None
    assert Everything.retry(ada.log_id) == 1
    assert Everything.catch_up() == 3
    assert indexes(ada.log_id) == [[0, 1, 2, 3]]
    assert Everything.wait_for(later.position, timeout=0)


def test_many_refused_records_are_named_at_once():
    states = [Account.logs.create(Opened("ada"), Deposited(1)) for _ in range(4)]
    refuse(*(f"{each.log_id}:1" for each in states[1:3]))

    assert Everything.catch_up() == 6

    assert [len(each) for each in other.batches] == [8, 6]
    assert indexes(*(each.log_id for each in states)) == [[0, 1], [0], [0], [0, 1]]
    assert len(Everything.waiting()) == 2


def test_a_skipped_record_lets_its_log_go_on():
    ada = Account.logs.create(Opened("ada"), Deposited(1), Deposited(2))
    refuse(f"{ada.log_id}:1")
    Everything.catch_up()

    Everything.skip(ada.log_id)
    assert Everything.catch_up() == 1

    assert indexes(ada.log_id) == [[0, 2]]


def test_a_log_that_is_skipped_while_others_are_published_loses_no_event():
    ada = Account.logs.create(Opened("ada"), Deposited(1))
    refuse(f"{ada.log_id}:1")
    Everything.catch_up()
    bob = Account.logs.create(Opened("bob"))
    Account.logs.append(ada, Deposited(2))
    skipped: list[Any] = []

    def skip(records):
        if not skipped:
            skipped.append(Everything.skip(ada.log_id))

    other.before = skip

    assert Everything.catch_up() == 2
    assert indexes(ada.log_id, bob.log_id) == [[0, 2], [0]]
    assert Everything.waiting() == Everything.parked() == []


def test_a_log_that_is_skipped_between_the_parts_of_a_batch_loses_no_event(monkeypatch):
    ada = Account.logs.create(Opened("ada"), Deposited(1))
    bob = Account.logs.create(Opened("bob"))
    Account.logs.append(ada, Deposited(2))
    refuse(f"{ada.log_id}:1")
    original = publications.Publications._commit
    commits: list[int] = []

    def commit(self, *arguments):
        if len(commits) == 1:
            Everything.skip(ada.log_id)
        commits.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(publications.Publications, "_commit", commit)

    Everything.catch_up()
    assert indexes(ada.log_id, bob.log_id) == [[0, 2], [0]]


def test_the_other_side_failing_counts_no_attempt_at_a_held_record():
    ada = Account.logs.create(Opened("ada"), Deposited(1))
    refuse(f"{ada.log_id}:1")
    Everything.catch_up()

    def fail(records):
        raise ConnectionError

    other.before = fail
    for _ in range(Everything.max_attempts + 2):
        due()
        with pytest.raises(PublishingFailed):
            Everything.catch_up()

    [waiting] = Everything.waiting()
    assert waiting.attempts == 1


def test_a_record_that_is_not_of_the_batch_is_an_error_of_the_other_side():
    ada = Account.logs.create(Opened("ada"))
    [foreign] = Account.logs.load(Account.logs.create(Opened("eve")).log_id)

    def refusing(records):
        raise Unpublishable(foreign)

    other.before = refusing
    Everything.batch_size, before = 1, Everything.batch_size
    try:
        with pytest.raises(PublishingFailed):
            Everything.catch_up()
    finally:
        Everything.batch_size = before
    assert position() == 0
    assert indexes(ada.log_id) == [[]]


def test_an_event_that_cannot_be_decoded_holds_its_log():
    ada = Account.logs.create(Opened("ada"))
    broken = EncodedEvent("account.deposited", 1, '{"amount":"much"}')
    EventLog.objects.append(ada.log_id, [broken], expected_version=1)
    bob = Account.logs.create(Opened("bob"))

    assert Everything.catch_up() == 2

    assert indexes(ada.log_id, bob.log_id) == [[0], [0]]
    assert [each.error for each in Everything.waiting()] == ["UndecodableEvent"]


def test_strict_raises_for_a_refused_record_and_holds_nothing():
    ada = Account.logs.create(Opened("ada"))
    bob = Account.logs.create(Opened("bob"), Deposited(1), Deposited(2))
    refuse(f"{bob.log_id}:1")

    with pytest.raises(ProjectionFailed) as caught:
        Everything.catch_up(strict=True)

    assert (caught.value.log_id, type(caught.value.__cause__)) == (bob.log_id, Unpublishable)
    assert Everything.waiting() == []
    other.before = lambda records: None
    assert Everything.catch_up(strict=True) == 2
    assert indexes(ada.log_id, bob.log_id) == [[0], [0, 1, 2]]


# After a crash


def advancer_of(publisher: Any) -> Any:
    from eventlogs.feed.reader import Feed
    from eventlogs.projections import leases
    from eventlogs.projections.batches import Advancer
    from eventlogs.projections.starting import begin, lease_partition

    begin(publisher, "default")
    taken = lease_partition(publisher, 0, using="default", owner=leases.new_owner())
    assert taken is not None
    return Advancer(publisher(), taken, Feed())


def test_after_a_crash_an_event_that_kills_its_worker_is_parked():
    ada = Account.logs.create(Opened("ada"), Deposited(1))
    bob = Account.logs.create(Opened("bob"))

    class Killed(BaseException):
        pass

    def kill(records):
        if any(each.id == f"{ada.log_id}:1" for each in records):
            raise Killed

    other.before = kill
    for _ in range(Everything.max_attempts + 2):
        due()
        advancer = advancer_of(Everything)
        try:
            advancer.settle()
            advancer.close()
        except Killed:
            advancer.abandon()

    [parked] = Everything.parked()
    assert (parked.log_id, parked.index) == (ada.log_id, 1)
    assert indexes(ada.log_id, bob.log_id) == [[0], [0]]


def test_a_worker_that_has_lost_its_lease_moves_no_checkpoint():
    state = Account.logs.create(Opened("ada"), Deposited(1))
    late = advancer_of(Everything)
    again: list[int] = []

    def take_over(records):
        if not again:
            again.append(1)
            Checkpoint.objects.update(leased_until=None)
            again.append(Everything.catch_up())

    other.before = take_over

    with pytest.raises(Exception) as caught:  # noqa: PT011 (it is no public class)
        late.step()

    assert type(caught.value).__name__ == "LeaseLost"
    assert again == [1, 2]
    assert indexes(state.log_id) == [[0, 1]]
    assert len(other.taken) == 4


# Personal data


@pytest.fixture
def visitors(settings):
    settings.EVENTLOGS = {**settings.EVENTLOGS, **guests.SETTINGS}
    memory.clear()
    with declaring({each.name: each for each in (Guests, PlainGuests)}):
        yield Guest.logs
    memory.clear()


def test_personal_data_stay_here_by_default(visitors, settings):
    state = visitors.create(
        Joined("person:1", "Ada", friend="person:2", friend_name="Bob"),
        Paid(7),
        metadata={"ip": "192.0.2.1", "person": "person:1", "till": 7},
    )
    settings.EVENTLOGS = {**settings.EVENTLOGS, "ENCRYPTION_KEYS": []}  # none is needed
    memory.clear()

    assert Guests.catch_up() == 2

    [joined, paid] = other.batches[0]
    assert joined.event == Joined("person:1", "erased", friend="person:2", friend_name=None)
    assert (joined.is_erased, paid.event) == (True, Paid(7))
    assert joined.metadata == {"ip": None, "person": "person:1", "till": 7}
    assert "Ada" not in str(joined.as_cloudevent())
    assert state.version == 2


def test_personal_data_are_published_where_that_is_asked_for(visitors):
    visitors.create(Joined("person:1", "Ada"))

    assert PlainGuests.catch_up() == 1

    [[joined]] = other.batches
    assert joined.event == Joined("person:1", "Ada")
    assert not joined.is_erased


def test_a_forgotten_person_is_published_with_the_stand_in(visitors):
    visitors.create(Joined("person:1", "Ada"))
    forget("person:1", by="grace")

    PlainGuests.log_types, before = ["visitor"], PlainGuests.log_types
    assert PlainGuests.catch_up() == 1
    PlainGuests.log_types = before

    assert other.batches[0][0].event == Joined("person:1", "erased")


def test_values_from_before_the_declaration_stay_here_too(visitors):
    log_id = visitors.new_id()
    plain = EncodedEvent("visitor.joined", 1, '{"person":"person:1","name":"Ada"}')
    EventLog.objects.append(log_id, [plain], expected_version=0)

    assert Guests.catch_up() == 1

    assert other.batches[0][0].event == Joined("person:1", "erased")
    assert other.batches[0][0].is_erased


# In a worker


@pytest.fixture
def run() -> Iterator[Callable[..., Worker]]:
    """A function that starts a worker in a thread; all are stopped in the end."""
    started: list[tuple[threading.Event, threading.Thread]] = []

    def start(*names: str) -> Worker:
        from django.db import connections

        stop = threading.Event()
        worker = Worker(list(names), stop=stop)

        def work() -> None:
            worker.run()
            connections.close_all()

        thread = threading.Thread(target=work)
        thread.start()
        started.append((stop, thread))
        return worker

    yield start
    for stop, _ in started:
        stop.set()
    for _, thread in started:
        thread.join(20)
        assert not thread.is_alive()


def test_a_worker_publishes(run):
    run(Everything.name)
    state = Account.logs.create(Opened("ada"), Deposited(1))

    assert Everything.wait_for(state.position, timeout=20)

    assert indexes(state.log_id) == [[0, 1]]


def test_a_publisher_that_hangs_holds_no_other_projection(run):
    hangs, stuck = threading.Event(), threading.Event()

    def hang(records):
        stuck.set()
        hangs.wait(60)

    other.before = hang
    state = Account.logs.create(Opened("ada"), Deposited(5))
    run(Everything.name, Balances.name)
    try:
        assert stuck.wait(20)
        state = Account.logs.append(state, Deposited(1))
        assert Balances.wait_for(state.position, timeout=20)
        assert Balance.objects.get(log_id=state.log_id).balance == 6
        assert not Everything.wait_for(state.position, timeout=0)
    finally:
        hangs.set()
    assert Everything.wait_for(state.position, timeout=20)


def test_a_worker_publishes_again_when_the_other_side_is_back(run, caplog, monkeypatch):
    monkeypatch.setattr(Everything, "backoff", 0.01)
    secret = "-".join(["4111"] * 2)

    def fail(records):
        raise ConnectionError(secret)

    other.before = fail
    state = Account.logs.create(Opened("ada"), Deposited(5))
    run(Everything.name)
    until(lambda: len(other.batches) >= 3)
    assert position() == 0

    other.before = lambda records: None
    assert Everything.wait_for(state.position, timeout=20)

    assert "Publisher to-other could not publish 2 events, and tries again" in caplog.text
    assert secret not in caplog.text
    assert indexes(state.log_id) == [[0, 1]]


def test_a_worker_that_stops_gives_its_lease_back(run):
    worker = run(Everything.name)
    state = Account.logs.create(Opened("ada"))
    assert Everything.wait_for(state.position, timeout=20)

    worker._stop.set()

    until(lambda: not Checkpoint.objects.exclude(owner="").exists())


# Declarations


def declared(**members: Any) -> str:
    with pytest.raises(RegistrationError) as caught:
        projection("wrong")(type("Wrong", (Publisher,), members))
    return str(caught.value)


class Nowhere(BaseSink):
    timeout = 1.0

    def send(self, records, encode):
        pass


def test_a_publisher_needs_a_place_to_publish_to():
    assert declared() == ("Wrong publishes nowhere. Set sink = …, or write publish(self, records).")


def test_a_publisher_has_no_handlers():
    @handles(Noted)
    def noted(self, record): ...

    assert declared(sink=Nowhere(), noted=noted) == (
        "Wrong is a Publisher, which has no @handles. Name the classes in events = […], and "
        "publish them in publish(self, records)."
    )


def test_replicas_are_named_by_their_primaries():
    assert declared(sink=Nowhere(), reads_from="replica") == (
        "Wrong: reads_from is 'replica'. It must be a dict of aliases, such as "
        "{'default': 'replica'}."
    )


def test_only_a_publisher_reads_from_a_replica():
    with pytest.raises(RegistrationError, match="is no Publisher, so it has no reads_from"):

        @projection("wrong")
        class Wrong(Reactor):
            reads_from = {"default": "replica"}


def test_a_sink_is_an_instance():
    assert declared(sink="nats") == (
        "Wrong: sink is 'nats'. It must be an instance of a sink, such as "
        "JetStreamSink('nats://…')."
    )


def test_a_sink_ends_before_its_publisher():
    assert declared(sink=Nowhere(), timeout=1.0) == (
        "Wrong: the sink may take 1 seconds for a batch, and the publisher's timeout is 1. Raise "
        "timeout, or lower that of the sink."
    )


def test_events_are_event_classes():
    assert declared(sink=Nowhere(), events=[int]) == (
        "Wrong publishes <class 'int'>, which is no event: put @event('…') above its @dataclass."
    )


def test_a_publisher_is_a_reactor():
    assert issubclass(Publisher, Reactor)


def test_in_a_transaction_nothing_is_published_before_the_commit():
    with transaction.atomic():
        Account.logs.create(Opened("ada"))
        other.before = lambda records: None
    assert Everything.catch_up() == 1
