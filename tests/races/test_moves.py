"""Races of moves: no event of a log is lost or doubled while it goes from database to database."""

from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connections

from eventlogs import ANY, LogId, LogManager, LogMoved
from eventlogs.exceptions import CannotMove
from eventlogs.models import Event, EventLog
from eventlogs.operations import moving
from eventlogs.operations.moving import steps
from example_project.shards import ShardRouter
from tests.accounts import Account, Noted, Opened
from tests.processes.forks import Place, Processes
from tests.projections.crashes import kill_this_process
from tests.races import COMMITS
from tests.test_shards import Shards

pytestmark = COMMITS

SECONDS = 5.0
LOGS = 4

accounts = Account.logs


@pytest.fixture
def shards(
    transactional_db: None, request: pytest.FixtureRequest, settings: Any, monkeypatch: Any
) -> Shards:
    """Two databases, over which the example's router spreads all logs."""
    made = Shards(str(request.getfixturevalue("second_database")))
    monkeypatch.setattr(ShardRouter, "databases", made.aliases)
    monkeypatch.setattr(ShardRouter, "moved", type(ShardRouter.moved)(seconds=0))
    settings.DATABASE_ROUTERS = ["example_project.shards.ShardRouter"]
    return made


def join(aliases: tuple[str, str], database: dict[str, Any], seconds: float) -> None:
    """Let a process know both databases, and spread logs over them."""
    connections.databases[aliases[1]] = database
    ShardRouter.databases = aliases
    ShardRouter.moved = type(ShardRouter.moved)(seconds=seconds)
    assert django_settings.DATABASE_ROUTERS


def append(
    place: Place, aliases: tuple[str, str], database: dict[str, Any], logs: list[LogId]
) -> tuple[dict[str, str], Counter[str]]:
    """
    Append to logs at random, each with a key and a retry; return which key is of which log.

    Its router learns of moves late, as in a project.
    """
    join(aliases, database, 0.3)
    stored: dict[str, str] = {}
    seen: Counter[str] = Counter()
    until = time.monotonic() + SECONDS
    # On a busy machine there may be few appends and moves until then.
    while time.monotonic() < until or len(stored) <= LOGS:
        log_id, key = place.random.choice(logs), f"{place.number}-{len(stored)}"
        while True:
            try:
                first = accounts.get_or_append(
                    log_id, Noted(key), expected_version=ANY, idempotency_key=key
                )
                again = accounts.get_or_append(
                    log_id, Noted(key), expected_version=ANY, idempotency_key=key
                )
            except LogMoved as error:
                seen["moved" if error.is_complete else "moving"] += 1
                place.wait(0.01)
                continue
            break
        assert first[0].version == again[0].version, "a retry has another answer"
        stored[key] = str(log_id)
    return stored, seen


def read(
    place: Place, aliases: tuple[str, str], database: dict[str, Any], logs: list[LogId]
) -> list[str]:
    """Read logs at random; return what was wrong."""
    join(aliases, database, 0.1)
    wrong: list[str] = []
    last: Counter[LogId] = Counter()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        log_id = place.random.choice(logs)
        try:
            events = list(accounts.stream(log_id))
            reduction = accounts.reduce(log_id)
            version = accounts.version(log_id)
        except LogMoved:
            continue
        indexes = [each.index for each in events]
        if indexes != list(range(len(events))):
            wrong.append(f"the indexes {indexes}")
        if not last[log_id] <= len(events) <= reduction.version <= version:
            wrong.append(
                f"{last[log_id]}, then {len(events)}, {reduction.version} and {version} events"
            )
        last[log_id] = version
    return wrong


def there(log_id: LogId, aliases: tuple[str, str]) -> str:
    home = ShardRouter.databases[0]
    return ShardRouter.moved.database_of(log_id, home)


def die_at_a_step(place: Place) -> None:
    """Let this process be killed before or after one of the first calls of a step."""
    name = place.random.choice(["announce", "leave", "copy", "copy", "take_out", "withdraw"])
    step, left = getattr(steps, name), place.random.choice([1, 2])
    is_before = place.random.random() < 0.4

    def die(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if not left and is_before:
            kill_this_process()
        answer = step(*args, **kwargs)
        if not left:
            kill_this_process()
        return answer

    setattr(steps, name, die)


def move(
    place: Place,
    aliases: tuple[str, str],
    database: dict[str, Any],
    logs: list[LogId],
    dies: bool,
) -> Counter[str]:
    """Move logs to and fro, and abandon moves; with ``dies``, until it is killed at some step."""
    join(aliases, database, 0)
    if dies:
        die_at_a_step(place)
    done: Counter[str] = Counter()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until or not (dies or done["moved"]):
        log_id = place.random.choice(logs)
        source = there(log_id, aliases)
        target = aliases[1 - aliases.index(source)]
        with suppress(CannotMove, LogMoved):
            if place.random.random() < 0.3:
                moving.abandon(log_id, source=source, target=target)
                done["abandoned"] += 1
            else:
                moving.move(log_id, source=source, target=target, by="grace", timeout=2)
                done["moved"] += 1
    return done


def finish(log_id: LogId, shards: Shards) -> str:
    """End a move that was interrupted; return the log's database."""
    for source, target in (shards.aliases, shards.aliases[::-1]):
        with suppress(CannotMove, LogMoved):
            moving.move(log_id, source=source, target=target, by="grace")
            break
    return shards.of(log_id)


def check(log_id: LogId, shards: Shards, stored: dict[str, str]) -> None:
    place = finish(log_id, shards)
    [other] = {*shards.aliases} - {place}
    notes = [each.event.note for each in accounts.stream(log_id) if each.index]
    expected = [key for key, log in stored.items() if log == str(log_id)]
    assert Counter(notes) == Counter(expected)
    assert accounts.version(log_id) == len(notes) + 1
    assert EventLog.objects.using(place).filter(pk=log_id.uuid).count() == 1
    assert EventLog.objects.using(other).filter(pk=log_id.uuid).count() == 0
    assert Event.objects.using(other).filter(log_id=log_id.uuid).count() == 0
    for key in expected[-3:]:
        state, is_new = accounts.get_or_append(
            log_id, Noted(key), expected_version=ANY, idempotency_key=key
        )
        assert not is_new, state
    with pytest.raises(LogMoved):
        LogManager(Account, using=other).append(log_id, Noted("?"), expected_version=ANY)


def test_no_event_is_lost_or_doubled_while_logs_are_moved(shards: Shards) -> None:
    first, second = shards.aliases
    logs = [accounts.create(Opened("Ada"), log_id=shards.new_id(first)).log_id for _ in range(LOGS)]
    database = dict(connections[second].settings_dict)
    common = (shards.aliases, database, logs)

    with Processes(settings={"DATABASE_ROUTERS": django_settings.DATABASE_ROUTERS}) as team:
        team.line_up(3, append, *common)
        team.line_up(2, move, *common, False)
        team.line_up(1, read, *common)
        team.go()
        reports = team.reports()

    writers, movers, [wrong] = reports[:3], reports[3:5], reports[5:]
    stored = {key: log for found, _ in writers for key, log in found.items()}
    assert wrong == []
    assert sum(each["moved"] for each in movers) > 1
    assert len(stored) > LOGS
    for each in logs:
        check(each, shards, stored)


def test_no_event_is_lost_or_doubled_while_movers_are_killed(shards: Shards) -> None:
    first, second = shards.aliases
    logs = [accounts.create(Opened("Ada"), log_id=shards.new_id(first)).log_id for _ in range(LOGS)]
    database = dict(connections[second].settings_dict)
    common = (shards.aliases, database, logs)
    routers = {"DATABASE_ROUTERS": django_settings.DATABASE_ROUTERS}

    with Processes(settings=routers) as team:
        writers = [team.start(append, *common, number=number) for number in (1, 2)]
        until, killed = time.monotonic() + SECONDS, 0
        while time.monotonic() < until or not killed:
            mover = team.start(move, *common, True, number=killed)
            mover.join()
            killed += mover.exit_code == -signal.SIGKILL
        # A log whose mover has died takes no events before somebody goes on with its move.
        last = team.start(move, *common, False, number=99)
        reports = [each.report() for each in writers]
        last.report()

    stored = {key: log for found, _ in reports for key, log in found.items()}
    assert killed
    for each in logs:
        check(each, shards, stored)
