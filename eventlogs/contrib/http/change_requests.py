"""
Requests that change a log: their Idempotency-Key, If-Match and digest, read once.

Responses are not stored. The answer to a request is the log *as of the version* that the request
led to, which stays the same as long as the log exists. The metadata of the events have the digest
of their request, stored in the same append. So a key that is found tells its request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final, TypeVar
from urllib.parse import quote

from django.db import transaction
from django.http import HttpRequest

from eventlogs.aggregates import ANY, Aggregate
from eventlogs.conf import MAX_KEY_LENGTH, MAX_VERSION
from eventlogs.contrib.http.bodies import body_of, digests_of, is_digest_of, plain, too_deep
from eventlogs.contrib.http.problems import Problem
from eventlogs.deciders import Decider
from eventlogs.exceptions import ConcurrentAppend, IdempotencyKeyReused
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.routing import read_alias, write_alias
from eventlogs.utils.twins import AsyncTwin
from eventlogs.values import LogState, Reduction

A = TypeVar("A", bound=Aggregate)

DIGEST: Final = "request_digest"  # the name in the metadata

# The draft asks for a string of RFC 8941 (Structured Fields, section 3.3.3). Many clients send the
# key without quotes. A comma is refused there: servers join several headers with commas.
QUOTED_KEY: Final = re.compile(r'"(?P<key>(?:[ !#-\[\]-~]|\\["\\])*)"\Z')
BARE_KEY: Final = re.compile(r"[!#-+\--~]+\Z")

NEVER: Final = MAX_VERSION  # a version at which no append succeeds: the log would be full
FROM_REQUEST: Final[Any] = object()


class ChangeRequest:
    """
    A request that changes a log, with its headers.

    ``caller`` names the caller, such as the id of an account: each caller has keys of its own.
    Without it all callers share their keys, and can find out which keys others have used.

    ``body`` is what the request asks for, as a JSON value, for views that have parsed it; by
    default it is read from the request. With ``key_required``, a request without an Idempotency-Key
    is refused (400), with ``match_required`` one without If-Match (428, RFC 6585).

    Raise Problem (400) for a malformed key, or for one that is too long together with the caller.

    Its methods run those of a LogManager, and return the Reduction as of the version that the
    request led to. A retry with the same key and body gets that of the first request, even if the
    log or the ETag has changed since; a key with another request is IdempotencyKeyReused. An
    If-Match that does not match is a Problem (412). Nothing is stored after an error, the key
    included: a refused request can be sent again with its key.
    """

    def __init__(
        self,
        request: HttpRequest,
        *,
        caller: object = None,
        body: Any = FROM_REQUEST,
        key_required: bool = False,
        match_required: bool = False,
    ) -> None:
        self.request = request
        self.idempotency_key = key_of(request, caller)
        self.if_match: str | None = request.headers.get("If-Match")
        self._body = body
        if key_required and self.idempotency_key is None:
            raise Problem(400, "Send a new Idempotency-Key with each new request.")
        if match_required and self.if_match is None:
            raise Problem(
                428, "Get the current state first, and send its ETag, quotes included, as If-Match."
            )

    @cached_property
    def body(self) -> Any:
        """What the request asks for, as a JSON value that is equal for equal requests."""
        try:
            return plain(self.read_body() if self._body is FROM_REQUEST else self._body)
        except RecursionError:
            raise too_deep() from None

    @cached_property
    def metadata(self) -> dict[str, str]:
        """
        The metadata that an append of this request needs: its digest, if it has a key.

        It is keyed by SECRET_KEY. After a rotation, keep the old key in SECRET_KEY_FALLBACKS for as
        long as retries may come.
        """
        if self.idempotency_key is None:
            return {}
        return {DIGEST: next(digests_of(self.request, self.body))}

    def read_body(self) -> Any:
        """Return the body of the request as a JSON value; override it for another framework."""
        return body_of(self.request)

    def create(
        self,
        logs: LogManager[A],
        event: Any,
        *more: Any,
        log_id: LogId | str | None = None,
        metadata: Mapping[str, Any] | None = None,
        also_expect: Sequence[LogState | Reduction[Any]] = (),
    ) -> Reduction[A]:
        """
        Create a log; the arguments and errors are those of ``LogManager.create``.

        Raise Problem (412) if the request has an If-Match other than ``*``: a new log has no ETag.
        """
        if self._expects_a_tag:
            raise _has_changed()

        def attempt() -> LogState:
            options: dict[str, Any] = {
                "log_id": log_id,
                "metadata": self._with_digest(metadata),
                "also_expect": also_expect,
            }
            if self.idempotency_key is None:
                return logs.create(event, *more, **options)
            key = self.idempotency_key
            return logs.get_or_create(event, *more, idempotency_key=key, **options)[0]

        return self._answer(logs, self._first(logs, None, attempt))

    def append(
        self,
        logs: LogManager[A],
        log_id: LogId | str,
        *events: Any,
        metadata: Mapping[str, Any] | None = None,
        also_expect: Sequence[LogState | Reduction[Any]] = (),
    ) -> Reduction[A]:
        """
        Append events to a log at the version of If-Match, or without If-Match at any version.

        The errors are those of ``LogManager.append``; ConcurrentAppend is about a log of
        ``also_expect``. Raise Problem (412) if If-Match does not match.
        """
        log_id = logs.parse_id(log_id)

        def attempt(expected: int | None) -> LogState:
            options: dict[str, Any] = {
                "expected_version": ANY if expected is None else expected,
                "metadata": self._with_digest(metadata),
                "also_expect": also_expect,
            }
            if self.idempotency_key is None:
                return logs.append(log_id, *events, **options)
            key = self.idempotency_key
            return logs.get_or_append(log_id, *events, idempotency_key=key, **options)[0]

        def matched() -> LogState:
            return self._at_match(logs, log_id, attempt)

        return self._answer(logs, self._first(logs, log_id, matched))

    def execute(
        self,
        logs: LogManager[A],
        log_id: LogId | str,
        decider: Decider,
        /,  # a decider may have an argument of such a name
        *args: Any,
        metadata: Mapping[str, Any] | None = None,
        also_expect: Sequence[LogState | Reduction[Any]] = (),
        retries: int = 3,
        **kwargs: Any,
    ) -> Reduction[A]:
        """
        Decide at the version of If-Match, or without If-Match at the current one.

        The arguments and errors are those of ``LogManager.execute``. If-Match is compared with the
        version to which the events are appended. Raise Problem (412) if it does not match; then
        the decider is not called, or nothing of its answer is stored.
        """
        log_id = logs.parse_id(log_id)

        def attempt(expected: int | None) -> LogState:
            return logs.execute(
                log_id,
                decider,
                *args,
                idempotency_key=self.idempotency_key,
                retries=retries,
                metadata=self._with_digest(metadata),
                expected_version=expected,
                also_expect=also_expect,
                **kwargs,
            )

        return self._answer(logs, self._at_match(logs, log_id, attempt))

    @property
    def _expects_a_tag(self) -> bool:
        return self.if_match is not None and self.if_match.strip() != "*"

    def _with_digest(self, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**(metadata or {}), **self.metadata}

    def _at_match(
        self, logs: LogManager[A], log_id: LogId, attempt: Callable[[int | None], LogState]
    ) -> LogState:
        """
        Call ``attempt`` with the version at which If-Match matches, None for any version.

        The version is compared again under the lock of the append. Comparing the position before
        is enough: events do not change, so a log that is still at this version has the history
        that the caller saw. If nothing matches, the attempt only looks its key up: a retry gets the
        first answer, whatever its If-Match is.
        """
        if not self._expects_a_tag:
            return attempt(None)
        before = None
        while True:
            seen = _state_of(logs, log_id)
            matches = seen is not None and seen != before and seen.matches(self.if_match)
            try:
                return attempt(seen.version if seen is not None and matches else NEVER)
            except ConcurrentAppend as conflict:
                if conflict.log_id != log_id:
                    raise
                if not matches:
                    raise _has_changed() from None
            before = seen  # another request was faster; If-Match may name its version, too

    def _first(
        self, logs: LogManager[A], log_id: LogId | None, attempt: Callable[[], LogState]
    ) -> LogState:
        """
        Return the state that the first request with this key led to, of any log or of this one.

        A retry may come with other events, such as the time of the call. The digests decide.
        """
        try:
            return attempt()
        except IdempotencyKeyReused as reused:
            if reused.count is None or log_id not in (None, reused.log_id):
                raise
            state = LogState(reused.log_id, reused.index + reused.count, 0)
            if not self._is_of_this_request(logs, state):
                raise
            return state

    def _answer(self, logs: LogManager[A], state: LogState) -> Reduction[A]:
        """Return the log as of ``state``, for the first request and all of its retries."""
        if self.idempotency_key is not None and not self._is_of_this_request(logs, state):
            raise IdempotencyKeyReused(
                self.idempotency_key, log_id=state.log_id, index=state.version - 1
            )
        with reading_the_primary(logs, state.log_id):
            reduction = logs.reduce(state.log_id)  # from the cache
            if reduction.version == state.version:
                return reduction
            return logs.reduce(state.log_id, version=state.version)

    def _is_of_this_request(self, logs: LogManager[A], state: LogState) -> bool:
        """
        Return whether the event that led to ``state`` is of this request, if it has our key.

        The events are not enough to know: two different requests can lead to equal events.
        """
        with reading_the_primary(logs, state.log_id):
            page = logs.load(state.log_id, start=state.version - 1, limit=1, decode=False)
        return all(
            each.idempotency_key != self.idempotency_key
            or is_digest_of(each.metadata.get(DIGEST), self.request, self.body)
            for each in page
        )

    acreate = AsyncTwin(create)
    aappend = AsyncTwin(append)
    aexecute = AsyncTwin(execute)


def key_of(request: HttpRequest, caller: object) -> str | None:
    """
    Return the key in the Idempotency-Key header, behind its caller; None without the header.

    The header is defined by draft-ietf-httpapi-idempotency-key-header. A colon in a caller is
    quoted, and a key without a caller that has a colon gets the prefix ``%:``, so no two pairs of
    caller and key are stored as the same text.
    """
    header = request.headers.get("Idempotency-Key")
    if header is None:
        return None
    if quoted := QUOTED_KEY.match(header):
        key = re.sub(r"\\(.)", r"\1", quoted["key"])
    else:
        key = header if BARE_KEY.match(header) else ""
    prefix = "%:" if ":" in key else ""  # no caller is quoted as a lone %
    if caller is not None:
        prefix = f"{quote(str(caller), safe='')}:"
    longest = MAX_KEY_LENGTH - len(prefix)
    if longest < 1:
        raise ValueError(f"caller takes {len(prefix)} characters of a key. Take a shorter one.")
    if not 1 <= len(key) <= longest:
        raise Problem(
            400,
            f"Idempotency-Key must be one string of 1 to {longest} ASCII characters, in double "
            f'quotes: "8e03978e-40d5-43dd-bc93-6894a57f9324".',
        )
    return f"{prefix}{key}"


@contextmanager
def reading_the_primary(logs: LogManager[Any], log_id: LogId) -> Iterator[None]:
    """Read from the database that was written to: a replica may not have the events yet."""
    alias = write_alias(log_id)
    if logs.using is not None or read_alias(log_id) == alias:
        yield
        return
    with transaction.atomic(using=alias):
        yield


def _state_of(logs: LogManager[Any], log_id: LogId) -> LogState | None:
    with reading_the_primary(logs, log_id):
        page = logs.load(log_id, limit=1, reverse=True, decode=False)
    return next((LogState(log_id, each.index + 1, each.position) for each in page), None)


def _has_changed() -> Problem:
    return Problem(
        412,
        "This has changed. Get it again. If the request still applies, send it with the new ETag, "
        "quotes included.",
    )
