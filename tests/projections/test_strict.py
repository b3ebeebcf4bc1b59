"""catch_up(strict=True): all events are applied, or the handler's error is raised."""

from __future__ import annotations

import traceback

import pytest
from django.db import IntegrityError, connection

from eventlogs.exceptions import (
    KeyUnavailable,
    ProjectionFailed,
    ProjectionTimedOut,
    UnknownEventType,
)
from eventlogs.models import Checkpoint, ParkedEvent
from eventlogs.privacy import memory
from eventlogs.projections import inline, workers
from eventlogs.projections.lags import NO_LAG
from eventlogs.stores.participants import registered
from eventlogs.values import EventRecord
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.privacy.conftest import NEW, OLD
from tests.projections.readmodels import (
    Balances,
    InlinedBalances,
    Letters,
    ReducedBalances,
    balances,
    behaviour,
    fail_on,
    reactions,
    reset,
)

pytestmark = [
    pytest.mark.usefixtures("tables", "declared"),
    pytest.mark.feed,
]

BOTH = pytest.mark.parametrize("projection", [Balances, Letters], ids=lambda each: each.name)


def buggy(*classes):
    """Give the handlers a bug that raises AttributeError."""

    def before(record):
        if isinstance(record.event, classes):
            record.event.amonut  # noqa: B018

    behaviour["before"] = before


def failure(projection, **options):
    with pytest.raises(ProjectionFailed) as caught:
        projection.catch_up(strict=True, **options)
    return caught.value


@BOTH
def test_a_handlers_error_is_raised_with_its_traceback(projection):
    state = Account.logs.create(Opened("ada"), Deposited(1))
    buggy(Deposited)

    error = failure(projection)

    assert (error.projection, error.log_id) == (projection.name, state.log_id)
    assert error.position == state.position
    assert type(error.__cause__) is AttributeError
    assert "amonut" in str(error.__cause__)
    last = traceback.extract_tb(error.__cause__.__traceback__)[-1]
    assert (last.name, last.line) == ("before", "record.event.amonut  # noqa: B018")


@BOTH
def test_an_event_that_failed_is_neither_held_nor_counted_and_is_tried_again(projection):
    state = Account.logs.create(Opened("ada"), Deposited(1), Deposited(2))
    buggy(Deposited)
    for _ in range(projection.max_attempts + 1):
        failure(projection)
    assert projection.waiting() == projection.parked() == []
    assert projection.lag().positions == 2

    reset()
    assert projection.catch_up(strict=True) == 2
    assert projection.wait_for(state.position, timeout=0)
    assert projection.lag() == NO_LAG


@BOTH
def test_events_before_the_failed_one_stay_applied(projection):
    first = Account.logs.create(Opened("ada"), Deposited(1))
    Account.logs.create(Opened("bob"), Withdrawn(1))
    behind = Account.logs.create(Opened("eve"), Deposited(5))
    buggy(Withdrawn)

    failure(projection)

    assert projection.wait_for(first.position, timeout=0)
    assert not projection.wait_for(behind.position, timeout=0)
    checkpoint = Checkpoint.objects.get(projection=projection.name)
    assert first.position <= checkpoint.position < behind.position
    assert checkpoint.owner == ""


@BOTH
def test_events_that_were_held_before_are_retried_at_once(projection):
    state = Account.logs.create(Opened("ada"), Deposited(1), Deposited(2))
    buggy(Deposited)
    projection.catch_up()  # nothing is raised
    [waiting] = projection.waiting()
    assert (waiting.error, waiting.attempts) == ("AttributeError", 1)

    error = failure(projection)
    assert type(error.__cause__) is AttributeError
    assert projection.waiting()[0].attempts == 2

    reset()
    assert projection.catch_up(strict=True) == 2  # long before it is due
    assert projection.waiting() == []
    assert projection.wait_for(state.position, timeout=0)


@BOTH
def test_a_parked_event_is_reported_and_not_retried(projection):
    state = Account.logs.create(Opened("ada"), Deposited(1))
    other = Account.logs.create(Deposited(1))
    fail_on(Deposited)
    projection.catch_up()
    ParkedEvent.objects.filter(log_id=state.log_id).update(retry_at=None, attempts=3)
    reset()

    error = failure(projection)

    assert (error.log_id, error.position) == (state.log_id, state.position)
    assert "parked after 3 attempts, the last one with ValueError" in str(error)
    assert error.__cause__ is None
    assert projection.wait_for(other.position, timeout=0)  # the rest is applied
    assert projection.parked()[0].attempts == 3

    projection.retry()
    projection.catch_up(strict=True)


@pytest.mark.fence
def test_an_event_that_waits_for_a_release_is_reported():
    state = Account.logs.create(Opened("ada"), Deposited(1))
    Balances.catch_up()
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO eventlogs_event
                (log_type, log_id, "index", type, schema_version, data, metadata, recorded_at)
            SELECT log_type, log_id, "index" + 1, 'account.new', 1, data, metadata, recorded_at
            FROM eventlogs_event WHERE position = %s
            """,
            [state.position],
        )

    error = failure(Balances)
    assert isinstance(error.__cause__, UnknownEventType)

    Balances.catch_up()
    assert Balances.waiting()[0].awaits_release
    assert "waits for a release that can apply account.new" in str(failure(Balances))


def test_every_partition_is_checked(monkeypatch):
    monkeypatch.setattr(Balances, "partitions", 4)
    states = [Account.logs.create(Opened("ada")) for _ in range(12)]
    broken = Account.logs.create(Opened("bob"), Withdrawn(1))
    buggy(Withdrawn)

    error = failure(Balances)
    assert error.log_id == broken.log_id

    reset()
    Balances.catch_up(strict=True)
    assert set(balances()) == {each.log_id for each in (*states, broken)}


def test_a_fold_that_fails_is_raised(monkeypatch):
    Account.logs.create(Opened("ada"))

    def to_row(self, reduction):
        return {"owner": reduction.aggregate.nobody}

    monkeypatch.setattr(ReducedBalances, "to_row", to_row)
    assert type(failure(ReducedBalances).__cause__) is AttributeError


def spin(record: EventRecord) -> None:
    while True:
        pass


def test_a_handler_that_does_not_end_is_raised(monkeypatch):
    monkeypatch.setattr(Balances, "timeout", 0.2)
    Account.logs.create(Opened("ada"))
    behaviour["before"] = spin

    assert isinstance(failure(Balances).__cause__, ProjectionTimedOut)
    assert not ParkedEvent.objects.exists()


def test_a_constraint_that_a_reactor_violates_is_raised():
    Account.logs.create(Deposited(1))

    def before(record):
        for _ in range(2):
            Checkpoint.objects.create(projection="mine", partition=0, partitions=1)

    behaviour["before"] = before
    assert isinstance(failure(Letters).__cause__, IntegrityError)


@pytest.mark.fence
def test_an_inline_projection_that_lacks_events_is_strict_as_well(monkeypatch):
    monkeypatch.setitem(registered, InlinedBalances.name, None)
    del registered[InlinedBalances.name]
    first = Account.logs.create(Deposited(1))
    state = Account.logs.create(Deposited(1), Withdrawn(1), Deposited(1))
    buggy(Withdrawn)

    error = failure(InlinedBalances)
    assert (error.log_id, error.position) == (state.log_id, state.position - 1)
    assert type(error.__cause__) is AttributeError
    assert InlinedBalances.wait_for(first.position, timeout=0)
    assert not ParkedEvent.objects.exists()

    reset()
    InlinedBalances.catch_up(strict=True)
    assert InlinedBalances.lag() == NO_LAG


def test_all_projections_at_once_are_strict():
    Account.logs.create(Opened("ada"), Deposited(1))
    buggy(Deposited)

    with pytest.raises(ExceptionGroup) as caught:
        workers.run(strict=True)

    names = {getattr(error, "projection", None) for error in caught.value.exceptions}
    assert {Balances.name, Letters.name} <= names
    reset()
    assert workers.run(strict=True)[Letters.name] == 1
    assert len(reactions) == 1


def test_without_strict_no_error_is_raised_and_held_events_can_be_listed():
    state = Account.logs.create(Opened("ada"), Deposited(1))
    buggy(Deposited)

    assert Letters.catch_up() == 0
    [waiting] = Letters.waiting()
    assert (waiting.log_id, waiting.error) == (state.log_id, "AttributeError")
    assert not waiting.is_parked
    assert Letters.lag().held == 1


@BOTH
def test_a_key_that_the_settings_lack_is_no_events_fault(projection, settings):
    """Personal metadata, which this process cannot read: nothing is held or counted."""
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [OLD], "PERSONAL_METADATA": {"ip": None}}
    memory.clear()
    Account.logs.create(Opened("ada"), Deposited(1), metadata={"ip": "10.9.8.7"})
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}

    with pytest.raises(KeyUnavailable):
        projection.catch_up()
    with pytest.raises(KeyUnavailable):
        projection.catch_up()

    assert not ParkedEvent.objects.exists()
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW, OLD]}
    assert projection.catch_up() > 0


@pytest.fixture
def lost(settings):
    """A log whose first events have personal metadata that this process cannot read."""
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [OLD], "PERSONAL_METADATA": {"ip": None}}
    memory.clear()
    state = Account.logs.create(Opened("ada"), Deposited(1), metadata={"ip": "10.9.8.7"})
    Balances.catch_up()
    ReducedBalances.catch_up()
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}
    return state


def test_nor_is_it_of_an_event_whose_log_has_such_data_before_it(lost):
    """The new event can be read; the aggregate's row needs the earlier ones too."""
    Account.logs.append(lost, Deposited(2))

    with pytest.raises(KeyUnavailable):
        ReducedBalances.catch_up()

    assert not ParkedEvent.objects.exists()


def test_nor_is_it_of_an_event_whose_handler_reads_such_data(lost):
    Account.logs.create(Deposited(2))

    def read_another(record):
        Account.logs.load(lost.log_id)

    behaviour["before"] = read_another

    with pytest.raises(KeyUnavailable):
        Balances.catch_up()

    assert not ParkedEvent.objects.exists()


def test_an_append_says_that_its_inline_row_needs_such_data(settings, monkeypatch):
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [OLD], "PERSONAL_METADATA": {"ip": None}}
    memory.clear()
    monkeypatch.setitem(registered, InlinedBalances.name, None)
    del registered[InlinedBalances.name]
    state = Account.logs.create(Deposited(1), metadata={"ip": "10.9.8.7"})
    registered[InlinedBalances.name] = inline.participant(InlinedBalances)
    settings.EVENTLOGS = {"ENCRYPTION_KEYS": [NEW]}

    with pytest.raises(KeyUnavailable):
        Account.logs.append(state, Deposited(2))

    assert Account.logs.version(state.log_id) == 1
    with pytest.raises(KeyUnavailable):
        InlinedBalances.catch_up()
    assert not ParkedEvent.objects.exists()
