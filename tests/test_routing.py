"""Where routers send logs that were moved."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction
from django.utils import timezone

from eventlogs import LogId
from eventlogs.models import LogMove
from eventlogs.routing import MOST_MOVES, MovedLogs

pytestmark = pytest.mark.django_db


def store(log_id: LogId, state: str, other: str) -> None:
    LogMove.objects.create(
        token=uuid4(),
        uuid=log_id.uuid,
        log_type=log_id.log_type,
        state=state,
        other=other,
        version=1,
        begun_at=timezone.now(),
        moved_by="grace",
    )


def test_a_log_is_where_its_last_move_has_brought_it(django_assert_num_queries):
    moved, left, back, leaving, arriving = (LogId.new("account") for _ in range(5))
    with_moves = MovedLogs()
    store(left, LogMove.LEFT, "default_2")
    store(back, LogMove.LEFT, "default_2")
    store(back, LogMove.ARRIVED, "default_2")
    store(leaving, LogMove.LEAVING, "default_2")
    store(arriving, LogMove.LEFT, "default_2")
    store(arriving, LogMove.ARRIVING, "default_2")
    with_moves._known["default_2"] = with_moves._known.get("default_2") or _empty()

    asked = [with_moves.database_of(each, "default") for each in (moved, left, back, leaving)]

    assert asked == ["default", "default_2", "default", "default"]
    assert with_moves.database_of(arriving, "default") == "default_2"


def _empty() -> Any:
    found = MovedLogs()
    found.database_of(LogId.new("account"), "default")
    return found._known["default"]._replace(logs={}, time=float("inf"))


def test_it_reads_the_table_once_in_some_seconds(django_assert_num_queries):
    moves, log_id = MovedLogs(seconds=60), LogId.new("account")
    moves.database_of(log_id, "default")
    store(log_id, LogMove.LEFT, "default_2")

    with django_assert_num_queries(0):
        assert moves.database_of(log_id, "default") == "default"
    moves.forget()
    moves._known = {"default_2": _empty()}
    assert moves.database_of(log_id, "default") == "default_2"


def test_answers_of_different_times_may_lead_in_a_circle():
    moves, log_id = MovedLogs(), LogId.new("account")
    known = _empty()
    moves._known = {
        "a": known._replace(logs={log_id.uuid: "b"}),
        "b": known._replace(logs={log_id.uuid: "a"}),
    }

    assert moves.database_of(log_id, "a") in ("a", "b")
    assert MOST_MOVES % 2 == 0


def test_what_cannot_be_read_fails_no_call(monkeypatch):
    moves, log_id = MovedLogs(seconds=0), LogId.new("account")
    store(log_id, LogMove.LEFT, "default_2")
    moves._known = {"default_2": _empty()}

    async def ask() -> str:
        return moves.database_of(log_id, "default")

    assert asyncio.run(ask()) == "default"  # in an event loop, where no query is allowed
    with transaction.atomic():
        with monkeypatch.context() as missing:
            missing.setattr(LogMove._meta, "db_table", "of_no_database")
            assert moves.database_of(log_id, "default") == "default"
        assert LogMove.objects.exists()
        transaction.set_rollback(True)
        assert moves.database_of(log_id, "default") == "default"
    assert moves.database_of(log_id, "default") == "default_2"
