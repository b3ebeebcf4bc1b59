"""Watch the statements that a thread sends to its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

from django.db import connection


@contextmanager
def sent(text: str, times: int = 1) -> Iterator[Event]:
    """
    Return an event that is set when this thread has sent so many statements that hold ``text``.

    So another thread knows that this one has begun to wait for something in the database.
    """
    event, count = Event(), 0

    def watch(execute: Any, sql: str, *rest: Any) -> Any:
        nonlocal count
        try:
            return execute(sql, *rest)
        finally:
            count += text in sql
            if count >= times:
                event.set()

    with connection.execute_wrapper(watch):
        yield event
