"""
Log identifiers.

A log id is a UUIDv7 (RFC 9562, section 5.7) shown as a TypeID: the log type, an underscore
and 26 characters of lower-case Crockford base32 (https://github.com/jetify-com/typeid).

A log id is a ``str``, because JSON encoders, Celery, templates and database drivers accept a
``str`` and no class of ours. But it equals other log ids only, and sorts with them only: a text
that was not parsed may not be an id, and a comparison with one is a mistake that must show.

Ids made later sort later, to the millisecond. Do not give that order a business meaning:
``EventLog.created_at`` is set by the database's clock, an id's time by the process that made it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

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

    Make a new one with ``LogManager.new_id()`` or ``LogId.new(log_type)``, and parse input with
    ``LogId.parse(text)``. It is a ``str``, but it does not equal its plain text, and ordering it
    with one raises TypeError. It cannot be changed.
    """

    __slots__ = ("log_type", "uuid")

    log_type: str
    uuid: UUID

    def __new__(cls, log_type: str, uuid: UUID) -> LogId:
        """
        Make a log id from a log type and a UUID of version 7.

        Raise InvalidLogId for another UUID, and RegistrationError for a log type that ids cannot
        contain: 1 to 63 characters of a-z and underscores, with a letter first and last.
        """
        check_log_type(log_type)
        if not isinstance(uuid, UUID) or uuid.version != 7:
            raise InvalidLogId("A log id holds a UUID of version 7: make one with LogId.new().")
        return cls.stored(log_type, uuid)

    @classmethod
    def new(cls, log_type: str) -> LogId:
        """
        Return a new id. It is made in this process, without a query.

        Raise RegistrationError for a log type that ids cannot contain.
        """
        if _seeded.pid != (pid := os.getpid()):
            reseed_rng()
            _seeded.pid = pid
        return cls(log_type, uuid7())

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
            log_id = cls(typeid.prefix, UUID(int=typeid.uuid.int))
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
    def created_at(self) -> datetime:
        """The time when the id was made, to the millisecond, by the clock of that process."""
        return UNIX_EPOCH + timedelta(milliseconds=self.uuid.int >> 80)

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

    # The order of texts is that of types, and then of UUIDs: in base32 as in ASCII, and with
    # the underscore and the digits below all letters.

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
