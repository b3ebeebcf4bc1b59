"""
What the processes of a race over HTTP do: each sends one request to the payments API.

A defect is a deliberately broken ChangeRequest, which the process uses instead of the real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from django.test import Client

from eventlogs import LogId, LogManager, LogState
from eventlogs.contrib.http import ChangeRequest
from example_project.payments import views
from tests.processes import Place


class Response(NamedTuple):
    """What a caller got: the number of its body, and the response."""

    body: int
    status: int
    content: bytes
    etag: str | None


class WithoutDigest(ChangeRequest):
    """Does not compare the digest of the request."""

    def _is_of_this_request(self, logs: LogManager[Any], state: LogState) -> bool:
        return True


class WithoutKey(ChangeRequest):
    """Compares digests, but does not pass the key to the store."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.idempotency_key = None


class ComparedBefore(ChangeRequest):
    """Compares If-Match before the append, and not under its lock."""

    def _at_match(
        self, logs: LogManager[Any], log_id: LogId, attempt: Callable[[int | None], LogState]
    ) -> LogState:
        return super()._at_match(logs, log_id, lambda expected: attempt(_unless_never(expected)))


def _unless_never(expected: int | None) -> int | None:
    return expected if expected is not None and expected > 1_000 else None


DEFECTS = {each.__name__: each for each in (WithoutDigest, WithoutKey, ComparedBefore)}


@contextmanager
def defective(name: str | None) -> Iterator[None]:
    names = vars(views)
    real = names["ChangeRequest"]
    names["ChangeRequest"] = real if name is None else DEFECTS[name]
    try:
        yield
    finally:
        names["ChangeRequest"] = real


def post(
    place: Place,
    address: str,
    bodies: list[Any],
    headers: dict[str, str],
    defect: str | None,
) -> Iterator[Response]:
    """Post the process's body; the last process has the last one, all others the first one."""
    number = len(bodies) - 1 if place.number == place.size - 1 else 0
    with defective(defect):
        response = Client().post(
            address, json.dumps(bodies[number]), content_type="application/json", headers=headers
        )
    yield Response(number, response.status_code, response.content, response.headers.get("ETag"))
