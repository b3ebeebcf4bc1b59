"""
Log identifiers.

A log id is a UUID shown as a TypeID: the log type, an underscore and 26 characters of lower-case
Crockford base32 (https://github.com/jetify-com/typeid). ``LogId.new()`` makes UUIDs of version 7
(RFC 9562, section 5.7); ``from_uuid()`` and ``from_key()`` take those that a project has already.

A log id is a ``str``, because JSON encoders, Celery, templates and database drivers accept a
``str`` and no class of ours. But it equals other log ids only, and sorts with them only: a plain
text may not be an id. Compared with one, ``==`` is False and ``<`` raises TypeError.

Ids that ``new()`` made later sort later, to the millisecond. Do not give that order a business
meaning: ``EventLog.created_at`` is set by the database's clock, an id's time by the process that
made it, and other ids hold no time at all.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID, uuid5

from typeid import TypeID
from typeid.base32 import decode, encode
from typeid.errors import TypeIDException
from uuid_utils import reseed_rng
from uuid_utils.compat import uuid7

from eventlogs.conf import MAX_LOG_TYPE_LENGTH
from eventlogs.utils.errors import InvalidLogId, RegistrationError

__all__ = ["LogId"]

# The TypeID specification's rule for prefixes, which a log type is.
LOG_TYPE = re.compile(rf"[a-z]([a-z_]{{0,{MAX_LOG_TYPE_LENGTH - 2}}}[a-z])?\Z")
SUFFIX = 26  # characters of base32 at the end of an id
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
AHEAD: Final = timedelta(seconds=10)  # by which another machine's clock may be ahead of this one

# Never change it: ids of keys would change with it, and other programs compute them, too.
KEY_NAMESPACE: Final = UUID("6d0a3ba3-6c5f-4c8e-9a57-0f1b7d2c9e84")

# A fork copies the state of the random generator: without this, workers would make equal ids.
# Newer releases of uuid-utils do it themselves.
os.register_at_fork(after_in_child=reseed_rng)


class _Seeded(threading.local):
    """
    The id of the process in which this thread's generator was seeded.

    A server that forks in C, as uWSGI does, does not call the hook above.
    """

    pid = os.getpid()


_seeded = _Seeded()

TAIL_BITS: Final = 62  # of a UUIDv7, behind its time and the bits of version and variant
STEP_BITS: Final = 32


class _GivenMoments:
    """
    UUIDs of version 7 for moments that callers give.

    The 12 bits behind the millisecond are its fraction (RFC 9562, section 6.2, method 3), in
    steps of a quarter of a microsecond. The rest is random. If the previous call was for the same
    moment, it is the previous rest plus a random step, so that UUIDs sort in the order of calls.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = (-1, 0)  # the microseconds, and the rest
        self._pid = os.getpid()

    def uuid(self, microseconds: int) -> UUID:
        """Return a UUID for the microseconds since 1970."""
        with self._lock:
            before, tail = self._last
            # A fork has the state of its parent: both would count on from there.
            if microseconds == before and self._pid == os.getpid():
                tail += 1 + secrets.randbits(STEP_BITS)
            else:
                # Half of the range is left for the steps: 2**29 of them.
                tail = secrets.randbits(TAIL_BITS - 1)
            self._last, self._pid = (microseconds, tail), os.getpid()
        milliseconds, rest = divmod(microseconds, 1_000)
        fraction = rest * 4_096 // 1_000
        return UUID(
            int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | tail % 2**TAIL_BITS
        )


_given_moments = _GivenMoments()


def check_log_type(log_type: str) -> str:
    """
    Return ``log_type`` if ids can contain it, else raise RegistrationError.

    It must be 1 to 63 characters of a-z and underscores, with a letter at both ends
    (https://github.com/jetify-com/typeid/tree/main/spec).
    """
    if not isinstance(log_type, str) or not LOG_TYPE.match(log_type):
        raise RegistrationError(
            f"{log_type!r} cannot be a log type: use 1 to {MAX_LOG_TYPE_LENGTH} of the "
            f"characters a-z and _, with a letter first and last."
        )
    return log_type


class LogId(str):
    """
    The id of one log, equal to another id of the same log type and UUID.

    Make a new one with ``LogManager.new_id()`` or ``LogId.new(log_type)``, the one of an entity
    that has a key elsewhere with ``LogId.from_uuid()`` or ``LogId.from_key()``, and parse input
    with ``LogId.parse(text)``. It is a ``str``, but it does not equal its plain text, and ordering
    it with one raises TypeError. It cannot be changed.
    """

    __slots__ = ("log_type", "uuid")

    log_type: str
    uuid: UUID

    def __new__(cls, log_type: str, uuid: UUID) -> LogId:
        """
        Make a log id from a log type and a UUID of any version.

        Raise InvalidLogId for anything but a UUID, and RegistrationError for a log type that ids
        cannot contain: 1 to 63 characters of a-z and underscores, with a letter first and last.
        """
        check_log_type(log_type)
        if not isinstance(uuid, UUID):
            raise InvalidLogId(
                f"A log id holds a uuid.UUID, not a {type(uuid).__name__}. Pass a UUID, or make "
                f"the id of another key with LogId.from_key()."
            )
        return cls.stored(log_type, uuid)

    @classmethod
    def new(cls, log_type: str, *, at: datetime | None = None) -> LogId:
        """
        Return a new id. It is made in this process, without a query.

        ``at`` is the id's time, for an entity that began earlier: an aware datetime from 1970 on
        and not in the future (10 seconds of it are allowed, for clocks that differ). By default
        it is now. Ids that this process makes one after the other for one moment sort in that
        order.

        Raise RegistrationError for a log type that ids cannot contain, and InvalidLogId for a
        moment that cannot be an id's time.
        """
        if at is not None:
            return cls(log_type, _given_moments.uuid(_microseconds(at)))
        if _seeded.pid != (pid := os.getpid()):
            reseed_rng()
            _seeded.pid = pid
        return cls(log_type, uuid7())

    @classmethod
    def from_uuid(cls, log_type: str, uuid: UUID) -> LogId:
        """
        Return the id of the entity that has this UUID elsewhere, e.g. as its primary key.

        The UUID may be of any version. Equal arguments give equal ids. Raise InvalidLogId for
        anything but a ``uuid.UUID``, and RegistrationError for a log type that ids cannot contain.
        """
        return cls(log_type, uuid)

    @classmethod
    def from_key(cls, log_type: str, key: int | str) -> LogId:
        """
        Return the id of the entity that has this key elsewhere, e.g. the number of a row.

        Equal arguments give equal ids, for ever and in any program: the UUID is of version 5 (RFC
        9562, section 5.5), of the key's text in a namespace that is itself the version 5 UUID of
        the log type in the namespace ``6d0a3ba3-6c5f-4c8e-9a57-0f1b7d2c9e84``. An int stands for
        its decimal digits, so 42 and "42" are one key.

        Raise InvalidLogId for an empty text, one with lone surrogates, and anything but an int or
        a str (for a UUID, see ``from_uuid``); and RegistrationError for a log type that ids cannot
        contain.
        """
        check_log_type(log_type)
        if isinstance(key, bool) or not isinstance(key, int | str):
            raise InvalidLogId(
                f"A key is an int or a str, not a {type(key).__name__}. For a UUID, call "
                f"LogId.from_uuid(); of several values, make one text."
            )
        text = str.__str__(key) if isinstance(key, str) else int.__repr__(key)
        try:
            text.encode()
        except UnicodeEncodeError:
            text = ""
        if not text:
            raise InvalidLogId(
                "A key is a text of at least one character, without lone surrogates. Pass the key "
                "that the entity has elsewhere."
            )
        return cls.stored(log_type, uuid5(_namespace_of(log_type), text))

    @classmethod
    def parse(cls, text: str) -> LogId:
        """
        Return the id of a text such as ``payment_01h455vb4pex5vsknk084sn02q``.

        Raise InvalidLogId for a text that differs from ``str()`` of every log id, for example by
        upper-case letters.
        """
        if isinstance(text, LogId):
            return text
        try:
            typeid = TypeID.from_string(text)
            # Not typeid.uuid: typeid 0.3.3 makes a UUID of version 7 of any.
            log_id = cls(typeid.prefix, UUID(bytes=bytes(decode(typeid.suffix))))
        except (TypeIDException, RegistrationError, TypeError, ValueError, AttributeError):
            log_id = None
        if log_id is None or str(log_id) != text:
            raise InvalidLogId(
                "This is not a log id. A log id is a log type, an underscore and 26 "
                "characters, as in payment_01h455vb4pex5vsknk084sn02q."
            )
        return log_id

    @classmethod
    def stored(cls, log_type: str, uuid: UUID) -> LogId:
        """Return the id of a stored row, without checks: it was checked when it was stored."""
        log_id = str.__new__(cls, f"{log_type}_{encode(uuid.bytes)}")
        object.__setattr__(log_id, "log_type", log_type)
        object.__setattr__(log_id, "uuid", uuid)
        return log_id

    @classmethod
    def stored_as(cls, log_type: str, raw: bytes) -> LogId:
        """
        Return the id of a stored row, without checks, from the 16 bytes of its UUID.

        The UUID is made when it is first asked for: by far most readers of events need none.
        """
        log_id = str.__new__(cls, f"{log_type}_{encode(raw)}")
        _set_log_type(log_id, log_type)
        return log_id

    def __getattr__(self, name: str) -> UUID:
        """Make the UUID of an id that has none yet; Python calls this for missing attributes."""
        if name != "uuid":
            raise AttributeError(f"A LogId has no attribute {name!r}.")
        uuid = UUID(bytes=bytes(decode(self[-SUFFIX:])))
        object.__setattr__(self, "uuid", uuid)
        return uuid

    @property
    def created_at(self) -> datetime | None:
        """
        The time that the id holds, to the millisecond; None for one that holds none.

        Only UUIDs of version 7 count: it is the moment when the id was made, by the clock of that
        process, or the one that was given to ``new()``.
        """
        number = self.uuid.int
        if number >> 76 & 0xF != 7 or number >> 62 & 0x3 != 2:
            return None
        try:
            return UNIX_EPOCH + timedelta(milliseconds=number >> 80)
        except OverflowError:  # past the year 9999
            return None

    def __repr__(self) -> str:
        return f"LogId({str(self)!r})"

    # Never NotImplemented for a str: Python would then ask str, which compares the texts.

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LogId):
            return str.__eq__(self, other)
        return False if isinstance(other, str) else NotImplemented

    def __ne__(self, other: object) -> bool:
        if isinstance(other, LogId):
            return str.__ne__(self, other)
        return True if isinstance(other, str) else NotImplemented

    # Texts sort by type, then by UUID: base32 keeps the order of bytes, and in ASCII the underscore
    # and the digits come before all lower-case letters.

    def __lt__(self, other: str) -> bool:
        return str.__lt__(self, _log_id(other))

    def __le__(self, other: str) -> bool:
        return str.__le__(self, _log_id(other))

    def __gt__(self, other: str) -> bool:
        return str.__gt__(self, _log_id(other))

    def __ge__(self, other: str) -> bool:
        return str.__ge__(self, _log_id(other))

    __hash__ = str.__hash__

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"A log id never changes: {name!r} cannot be set.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"A log id never changes: {name!r} cannot be deleted.")

    def __reduce__(self) -> tuple[Any, ...]:
        return LogId.stored, (self.log_type, self.uuid)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        """
        Let pydantic (django-ninja) use LogId as a field's type: it parses text and writes text.

        Text that is no log id is a ValidationError there, since InvalidLogId is a ValueError.
        """
        # https://docs.pydantic.dev/latest/concepts/types/#customizing-validation-with-__get_pydantic_core_schema__
        return {
            "type": "function-after",
            "function": {"type": "no-info", "function": cls.parse},
            "schema": handler(str),
        }


# The slot's own setter: it costs less than object.__setattr__, which looks the slot up.
_set_log_type: Callable[[LogId, str], None] = vars(LogId)["log_type"].__set__


def _log_id(other: object) -> LogId:
    if isinstance(other, LogId):
        return other
    raise TypeError(f"A log id is ordered with log ids only, not with a {type(other).__name__}.")


def _microseconds(at: datetime) -> int:
    """Return a moment in microseconds since 1970; raise InvalidLogId where an id cannot hold it."""
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise InvalidLogId("An id's time is a datetime with a time zone. Pass an aware datetime.")
    if at < UNIX_EPOCH:
        raise InvalidLogId(
            f"{at.isoformat()} is before 1970, and an id's time is counted from there. Make an id "
            f"without a time: LogId.from_key(), or LogId.from_uuid()."
        )
    if at > datetime.now(UTC) + AHEAD:
        raise InvalidLogId(
            f"{at.isoformat()} is in the future. An id's time is when the entity began: pass a "
            f"moment that has passed, and check the clock of this machine."
        )
    return (at - UNIX_EPOCH) // MICROSECOND


@lru_cache(maxsize=1_000)
def _namespace_of(log_type: str) -> UUID:
    return uuid5(KEY_NAMESPACE, log_type)
