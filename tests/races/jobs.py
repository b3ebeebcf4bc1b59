"""
The jobs of the processes in a race.

Each function runs in every process of a crew, with that process's place in the race, and
answers the outcomes of its calls. ``store`` names the store, see ``stores.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta

from django.core.management import call_command
from django.db import Error, OperationalError, connection, transaction

from eventlogs import ANY, EventLogError, LogId, LogManager, LogState, TransactionMustRetry
from eventlogs.models import IdempotencyKey
from eventlogs.stores.retries import must_retry
from tests.processes import Place
from tests.races.events import Noted, Race, batch
from tests.races.history import Outcome
from tests.races.stores import races
from tests.turns import take_turns_on

PATIENCE = 60  # seconds until a loop that does not converge fails


class ChangedMind(Exception):
    """The caller's own reason to roll its transaction back."""


def call(
    manager: LogManager[Race],
    log_id: LogId,
    marker: str,
    of: int,
    expected: int | None,
    key: str | None = None,
) -> Outcome:
    """Create (where version 0 is expected) or append; return it with its answer or error."""
    events = batch(marker, of)
    answer: LogState | Exception
    try:
        if expected == 0:
            answer = manager.create(*events, log_id=log_id, idempotency_key=key)
        else:
            version = ANY if expected is None else expected
            answer = manager.append(log_id, *events, expected_version=version, idempotency_key=key)
    except (EventLogError, Error) as error:
        error.__cause__ = None  # the error cannot be pickled
        answer = error
    return Outcome(log_id, marker, of, expected, answer)


def append_at_one_version(
    place: Place, store: str, log_id: LogId, rounds: int, batches: bool
) -> Iterator[Outcome]:
    """In each round all expect the same version. The log is at version 1 at first."""
    manager = races(store, place.number)
    version = 1
    for number in range(rounds):
        of = 1 + (number % 7) if batches else 1
        marker = f"{number}-{place.number}"
        place.together()
        yield call(manager, log_id, marker, of, version)
        version += of


def create_one_log(
    place: Place, store: str, log_ids: Sequence[LogId], keyed: bool, in_atomic: bool
) -> Iterator[Outcome]:
    """All create the same log, with the round's id; with ``keyed``, each has its own key."""
    manager = races(store, place.number)
    for number, log_id in enumerate(log_ids):
        marker = f"{number}-{place.number}"
        key = marker if keyed else None
        place.together()
        if not in_atomic:
            yield call(manager, log_id, marker, 2, 0, key)
            continue
        with transaction.atomic():
            outcome = call(manager, log_id, marker, 2, 0, key)
            # The transaction is usable: append to another log in it.
            manager.create(*batch(f"after {marker}"))
        yield outcome


def create_own_logs(place: Place, store: str, rounds: int) -> Iterator[Outcome]:
    """Each creates logs of its own, with keys of its own, two in a transaction."""
    manager = races(store, place.number)
    for number in range(rounds):
        place.together()
        with transaction.atomic():
            outcomes = [
                call(manager, manager.new_id(), marker, 2, 0, key=marker)
                for marker in (f"{number}-{place.number}", f"{number}-{place.number} too")
            ]
        yield from outcomes


def create_with_one_key(
    place: Place, store: str, rounds: int, one_id: Sequence[LogId]
) -> Iterator[Outcome]:
    """All make the same request to create, each with a new id (or with the round's id)."""
    manager = races(store, place.number)
    for number in range(rounds):
        marker = f"create {number}"
        log_id = one_id[number] if one_id else manager.new_id()
        place.together()
        yield call(manager, log_id, marker, 2, 0, key=marker)


def append_with_one_key(
    place: Place, store: str, log_ids: Sequence[LogId], expectations: str, bodies: str
) -> Iterator[Outcome]:
    """
    All append with the round's key, to the round's log, which is at version 3.

    ``expectations``: "current" is version 3, "any" is ANY for every other process, "stale" is
    version 2 for every other one. ``bodies``: "same" events, or "different" ones.
    """
    manager = races(store, place.number)
    for number, log_id in enumerate(log_ids):
        odd = place.number % 4 > 1  # not in step with "mixed" stores
        expected: int | None = 3
        if odd:
            expected = {"current": 3, "any": None, "stale": 2}[expectations]
        key = f"append {number}"
        marker = key if bodies == "same" else f"{key} by {place.number}"
        of = 1 + number % 3
        place.together()
        yield call(manager, log_id, marker, of, expected, key)


def append_to_own_log_with_one_key(
    place: Place, store: str, log_ids: Sequence[LogId], rounds: int
) -> Iterator[Outcome]:
    """All append with the round's key, each to another log."""
    manager = races(store, place.number)
    for number in range(rounds):
        log_id = log_ids[number * place.size + place.number]
        key = f"append {number}"
        marker = f"{key} by {place.number}"
        place.together()
        yield call(manager, log_id, marker, 1, 3, key)


def append_on_a_snapshot(
    place: Place, store: str, log_ids: Sequence[LogId], isolation: str
) -> Iterator[Outcome]:
    """All append with the round's key, on snapshots that are older than any of these appends."""
    manager = races(store, place.number)
    for number, log_id in enumerate(log_ids):
        marker = f"append {number}"
        in_step = True
        while True:
            try:
                with transaction.atomic():
                    set_isolation(isolation)
                    manager.version(log_id)  # takes the snapshot
                    if in_step:
                        place.together()
                    in_step = False
                    outcome = call(manager, log_id, marker, 1, None, marker)
            except OperationalError as error:
                if not must_retry(error):
                    raise
                continue
            yield outcome
            if not isinstance(outcome.answer, TransactionMustRetry):
                break


def append_anywhere(
    place: Place, store: str, log_ids: Sequence[LogId], count: int
) -> Iterator[Outcome]:
    """Append batches of any size, with and without a key and an expectation."""
    manager = races(store, place.number)
    for number in range(count):
        log_id = place.random.choice(log_ids)
        marker = f"{number}-{place.number}"
        of = place.random.choice((1, 1, 2, 7, 40))
        key = place.random.choice((None, marker))
        expected = place.random.choice((None, manager.version(log_id)))
        yield call(manager, log_id, marker, of, expected, key)


def append_in_transactions(
    place: Place, store: str, log_ids: Sequence[LogId], count: int, isolation: str
) -> Iterator[Outcome]:
    """
    Append in transactions of several appends, on several logs, that roll back at random.

    A transaction that the database aborts is run again, as TransactionMustRetry asks; each such
    loss is an outcome of the marker "retry". Outcomes of a transaction count once it committed.
    """
    for number in range(count):
        chosen = [place.random.choice(log_ids) for _ in range(place.random.randint(1, 4))]
        fate = place.random.random()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            outcomes: list[Outcome] = []
            try:
                with transaction.atomic():
                    if isolation:
                        set_isolation(isolation)
                    _append_to_each(place, store, f"{number}-{place.number}", chosen, outcomes)
                    if fate < 0.3:
                        raise ChangedMind
            except ChangedMind:
                break
            except TransactionMustRetry as error:
                error.__cause__ = None
                yield Outcome(chosen[0], "retry", 0, None, error)
                time.sleep(place.random.uniform(0, 0.05))
            except OperationalError as error:
                # At the commit of a serializable transaction, which is the caller's own.
                if not must_retry(error):
                    raise
            else:
                yield from outcomes
                break
        else:
            raise AssertionError(f"transaction {number} did not come to an end")


def _append_to_each(
    place: Place, store: str, name: str, log_ids: list[LogId], outcomes: list[Outcome]
) -> None:
    manager = races(store, place.number)
    for step, log_id in enumerate(log_ids):
        marker = f"{name}-{step}"
        key = place.random.choice((None, marker))
        expected = place.random.choice((None, manager.version(log_id)))
        of = place.random.choice((1, 3))
        if place.random.random() < 0.3:
            with suppress(ChangedMind), transaction.atomic():
                _sound(call(manager, log_id, f"undone {marker}", of, expected, key))
                raise ChangedMind
        outcomes.append(_sound(call(manager, log_id, marker, of, expected, key)))


def _sound(outcome: Outcome) -> Outcome:
    """Return the outcome, unless the transaction is not usable after it."""
    if isinstance(outcome.answer, TransactionMustRetry):
        raise outcome.answer
    assert not isinstance(outcome.answer, Error), f"an error inside of atomic(): {outcome.answer!r}"
    return outcome


def increment(
    place: Place, store: str, log_id: LogId, count: int, isolation: str
) -> Iterator[Outcome]:
    """Read the version and append at it, in a transaction, and retry until it is stored."""
    manager = races(store, place.number)
    for number in range(count):
        marker = f"{number}-{place.number}"
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            expected = None
            try:
                with transaction.atomic():
                    if isolation:
                        set_isolation(isolation)
                    expected = manager.version(log_id)
                    state = manager.append(
                        log_id,
                        *batch(marker),
                        expected_version=expected,
                        idempotency_key=marker,
                    )
            except EventLogError as error:
                error.__cause__ = None
                yield Outcome(log_id, marker, 1, expected, error)
            except OperationalError as error:
                if not must_retry(error):
                    raise
            else:
                yield Outcome(log_id, marker, 1, expected, state)
                break
        else:
            raise AssertionError(f"{marker} did not get in")


def append_while_keys_are_pruned(
    place: Place, store: str, log_ids: Sequence[LogId], rounds: int
) -> Iterator[Outcome]:
    """All append with the round's key, except every fourth, which prunes all keys meanwhile."""
    manager = races(store, place.number)
    for number, log_id in enumerate(log_ids[:rounds]):
        key = f"pruned {number}"
        place.together()
        if place.number % 4 == 3:
            for _ in range(5):
                IdempotencyKey.objects.prune(older_than=timedelta(0))
            continue
        # Each may be a new request to a store that forgot: hence a marker for each.
        marker = f"{key} by {place.number}"
        yield call(manager, log_id, marker, 1, None, key)


def set_isolation(level: str) -> None:
    """Set the isolation of the transaction that has just begun."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")


def migrate_and_create_logs(place: Place, count: int) -> Iterator[LogId]:
    """Make the tables, and answer the ids of new logs; one process does it for all."""
    if place.number == 0:
        call_command("migrate", "eventlogs", verbosity=0)
        for number in range(count):
            yield races("portable").create(*batch(f"log {number}")).log_id


def execute(
    place: Place, store: str, log_id: LogId, count: int, keyed: bool, in_atomic: bool
) -> Iterator[Outcome]:
    """
    Execute a decision on one log, with one retry, again and again.

    What counts as the expected version is the one that the decider has seen.
    """
    manager = races(store, place.number)
    place.together()
    for number in range(count):
        marker = f"{number}-{place.number}"
        yield execute_once(manager, log_id, marker, marker if keyed else None, in_atomic)


def execute_once(
    manager: LogManager[Race],
    log_id: LogId,
    marker: str,
    key: str | None = None,
    in_atomic: bool = False,
) -> Outcome:
    """Execute a decision, with one retry; return it with its answer or error."""
    seen = 0

    def decide(race: Race) -> list[Noted]:
        nonlocal seen
        seen = race.seen
        return batch(marker)

    answer: LogState | Exception
    try:
        with transaction.atomic() if in_atomic else nullcontext():
            answer = manager.execute(log_id, decide, idempotency_key=key, retries=1)
    except (EventLogError, Error) as error:
        error.__cause__ = None  # the error cannot be pickled
        answer = error
    return Outcome(log_id, marker, 1, seen, answer)


def execute_with_one_key(place: Place, store: str, log_ids: Sequence[LogId]) -> Iterator[Outcome]:
    """All execute the same decision with the round's key, on the round's log."""
    manager = races(store, place.number)
    for number, log_id in enumerate(log_ids):
        marker = f"execute {number}"
        place.together()
        yield execute_once(manager, log_id, marker, marker)._replace(expected=None)


def execute_crosswise(place: Place, store: str, log_ids: Sequence[LogId], count: int) -> list[str]:
    """
    Execute on one of two logs a decision that appends to the other one; return the answers.

    Each does so in its turn: it holds the log that the others need next.
    """
    manager = races(store, place.number)
    mine, other = log_ids if place.number % 2 else reversed(log_ids)
    answers = []
    for number in range(count):
        marker = f"{number}-{place.number}"

        def decide(_: Race, marker: str = marker) -> list[Noted]:
            manager.append(other, *batch(f"beside {marker}"), expected_version=ANY)
            return batch(marker)

        take_turns_on(manager, mine)
        place.together()
        try:
            manager.execute(mine, decide)
        except TransactionMustRetry:
            answers.append("given up")
        else:
            answers.append(marker)
    return answers


def hold_the_turn(place: Place, store: str, log_id: LogId) -> None:
    """Execute a decision that does not come to an end, with the log locked."""
    manager = races(store, place.number)
    take_turns_on(manager, log_id)

    def decide(_: Race) -> list[Noted]:
        place.say("it decides")
        place.hear()
        return batch("never")

    manager.execute(log_id, decide)


def execute_alone(place: Place, store: str, log_id: LogId, count: int) -> list[Outcome]:
    """Execute decisions, without a barrier."""
    manager = races(store, place.number)
    return [execute_once(manager, log_id, f"{number}-{place.number}") for number in range(count)]
