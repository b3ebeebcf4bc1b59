"""Stores whose appends are joined with others, and broken versions of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from itertools import count
from typing import Any, ClassVar
from uuid import uuid4

from django.db import connection

from eventlogs import LogId, LogState
from eventlogs.events.codec import EncodedEvent
from eventlogs.stores import AppendRequest
from eventlogs.stores.base import HELD
from eventlogs.stores.group_commit import append_group
from eventlogs.stores.postgresql import PostgreSQLStore

TRIES = 20

_places = count()


def company() -> AppendRequest:
    """Return the request of another caller: a create with a key."""
    marker = f"company {uuid4()}"
    event = EncodedEvent("race.noted", 1, f'{{"marker":"{marker}","part":0,"of":1}}')
    return AppendRequest(LogId.new("race"), [event], 0, marker, "{}")


class GroupStore(PostgreSQLStore):
    """Each append is joined with those of two others, and done alone if that does not store it."""

    def append(self, request: AppendRequest) -> LogState:
        for _ in range(TRIES):
            place = next(_places) % 3
            requests = [company(), company()]
            requests.insert(place, request)
            answer = append_group(self.using, requests)[place]
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, LogState):
                return answer
            if answer is not HELD:
                break
        return super().append(request)


class Mutant(GroupStore):
    """The joined statement with ``part`` of it replaced on its way to the server."""

    part: ClassVar[str]  # a regular expression
    instead: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        text = (files("eventlogs.stores") / "sql" / "append_group.sql").read_text(encoding="utf-8")
        assert re.search(cls.part, text, re.DOTALL), f"there is nothing for {cls} to break"

    def append(self, request: AppendRequest) -> LogState:
        with connection.execute_wrapper(self._change):
            return super().append(request)

    def _change(self, execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        return execute(re.sub(self.part, self.instead, sql, flags=re.DOTALL), *arguments)


class NoVersionComparison(Mutant):
    """Appends at any version."""

    part = r"AND (log\.)?version = coalesce\(request.expected, (log\.)?version\)"


class NoLock(Mutant):
    """Reads the version from the snapshot, without a lock against other writers."""

    part = r"FOR NO KEY UPDATE SKIP LOCKED"


class KeyNotNeeded(Mutant):
    """Appends even if the key is taken."""

    part = r"WHERE ready.key IS NULL OR claimed.log_id IS NOT NULL"


class KeyLeftBehind(Mutant):
    """Keeps the claim of a key whose log already exists."""

    part = r"1 / \(count\(\*\) = 0\)::integer"
    instead = "count(*)"


class TimeRunsBackwards(Mutant):
    """Writes the time of the clock, even if the log's last event is later."""

    part = r"greatest\(clock_timestamp\(\), log.updated_at\)"
    instead = "clock_timestamp() - random() * interval '1 minute'"


class WithoutOrder(Mutant):
    """Inserts events in any order, so that positions run backwards."""

    part = r"ORDER BY allowed.number, \(item ->> 1\)::integer"
    instead = "ORDER BY allowed.number, (item ->> 1)::integer DESC"


class WaitsForLogs(Mutant):
    """Waits for the lock of a log."""

    part = r" SKIP LOCKED"
