"""
Values that one log may have at a time: ``Annotated[str, Unique("member.email")]``.

The field's event claims its value for the log. This module finds the annotated fields of a class,
and makes a digest of a value: stores compare digests, and never see the value.

The digest is of 122 bits and not keyed. A key would have to live as long as the claim: after a
rotation of SECRET_KEY the same value would have another digest, and a unique constraint could not
refuse it. So a digest hides nothing from a reader of the table who guesses the value. See
docs/decisions/0005-a-unique-value-is-a-digest.md.

A value that is ``Personal``, too, must not be guessed: its digest is an HMAC under a key of the key
store, which is never replaced (a rotation wraps it anew).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, date, datetime
from enum import Enum
from hashlib import sha256
from types import UnionType
from typing import Annotated, Any, Final, NamedTuple, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from eventlogs.conf import MAX_SCOPE_LENGTH
from eventlogs.events.personal import is_personal_type
from eventlogs.exceptions import InvalidEvent, RegistrationError

SCOPE: Final = re.compile(rf"[A-Za-z][A-Za-z0-9_.:-]{{0,{MAX_SCOPE_LENGTH - 1}}}\Z")
DIGEST: Final = 16  # bytes of SHA-256


@dataclass(frozen=True, slots=True)
class Unique:
    """
    Declare that a value of an event's field belongs to one log at a time.

    Write ``email: Annotated[str, Unique("member.email", normalize=str.casefold)]``. An append of
    the event claims the value for its log, in the same transaction. A later value of the same log
    replaces it, and None releases it. An append with another log's value raises NameTaken.

    ``scope`` names the rule: values of one scope differ between logs. It is a letter, then
    letters, digits and ``_.:-``, at most 100 characters. Fields of several events, and of several
    log types, may share a scope; they need the same ``normalize``.

    ``normalize`` is called with a value that is not None, and returns what is compared. It must
    return the same for the same value for as long as events are kept. None from it releases, too.

    A value, after ``normalize``, is a str, int, UUID, date, aware datetime, a member of an Enum of
    these, or a tuple or list of these. Without ``normalize``, text is compared character by
    character.

    Raise RegistrationError for an invalid scope, or a ``normalize`` that cannot be called.
    """

    scope: str
    normalize: Callable[[Any], Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.scope, str) or not SCOPE.match(self.scope):
            raise RegistrationError(
                f"{self.scope!r} cannot be the scope of a unique value: use 1 to "
                f"{MAX_SCOPE_LENGTH} characters, first a letter, then letters, digits and any of "
                f"_ . : -"
            )
        if self.normalize is not None and not callable(self.normalize):
            raise RegistrationError(
                f"Unique({self.scope!r}): normalize is {self.normalize!r}. It must be a function, "
                f"e.g. str.casefold."
            )


class UniqueValue(NamedTuple):
    """A value that a log claims in a scope, as its digest; None releases what it has claimed."""

    scope: str
    digest: UUID | None


class UniqueField(NamedTuple):
    """An annotated field of an event class; the digest of a personal one is keyed."""

    name: str
    unique: Unique
    is_personal: bool = False


class Unfit(Exception):
    """A value that cannot be unique; its argument says why, without the value."""


def unique_fields(cls: type) -> tuple[UniqueField, ...]:
    """
    Return the fields of an event class that are annotated with Unique.

    Raise RegistrationError for an annotation at another place than the field itself, and for two
    fields of one scope. Raise NameError where an annotation cannot be evaluated.
    """
    hints = get_type_hints(cls, include_extras=True)
    found: dict[str, UniqueField] = {}
    for each in fields(cls):
        for unique, is_on_field in _annotations(hints[each.name], set()):
            where = f"{cls.__qualname__}.{each.name}"
            if not is_on_field:
                raise RegistrationError(
                    f"{where} has a Unique inside of its type, where it would claim nothing. "
                    f"Annotate the field itself: Annotated[…, Unique({unique.scope!r})]."
                )
            if unique.scope in found:
                raise RegistrationError(
                    f"{where} and {cls.__qualname__}.{found[unique.scope].name} are both unique in "
                    f"{unique.scope!r}, and a log has one value of a scope. Give one of them "
                    f"another scope."
                )
            is_personal = is_personal_type(hints[each.name])
            found[unique.scope] = UniqueField(each.name, unique, is_personal)
    return tuple(found.values())


def _annotations(
    hint: Any, seen: set[int], *, on_field: bool = True
) -> Iterator[tuple[Unique, bool]]:
    """Yield the Uniques of a type, and whether each is at the field itself."""
    while hasattr(hint, "__value__"):  # of a `type` statement (Python 3.12)
        hint = hint.__value__
    origin = get_origin(hint)
    inside: Iterable[Any]
    if origin is Annotated:
        for each in hint.__metadata__:
            if each is Unique:
                raise RegistrationError(
                    "A field is annotated with Unique, which needs a scope. Write "
                    "Unique('member.email')."
                )
            if isinstance(each, Unique):
                yield each, on_field
        inside = (hint.__origin__,)
    elif origin is Union or origin is UnionType:
        inside = get_args(hint)
    else:
        on_field, inside = False, get_args(hint)
        if isinstance(hint, type) and is_dataclass(hint) and id(hint) not in seen:
            seen.add(id(hint))
            inside = get_type_hints(hint, include_extras=True).values()
    for each in inside:
        yield from _annotations(each, seen, on_field=on_field)


def _no_key() -> None:
    return None


def values_of(
    found: Iterable[UniqueField],
    event: Any,
    event_type: str,
    key: Callable[[], bytes | None] = _no_key,
) -> Iterator[UniqueValue]:
    """
    Yield the unique values of an event.

    ``key`` returns the secret for digests of personal values. Raise InvalidEvent for a value that
    cannot be unique.
    """
    for name, unique, is_personal in found:
        try:
            value = getattr(event, name)
            yield unique_value(unique, value, key() if is_personal and value is not None else None)
        except Unfit as unfit:
            # "from None": the error of a normalize function may quote the value.
            raise InvalidEvent(str(unfit), event_type=event_type, path=f"$.{name}") from None


def unique_value(unique: Unique, value: Any, key: bytes | None = None) -> UniqueValue:
    """
    Return a value as stores compare it; raise Unfit where it cannot be unique.

    With ``key``, nobody can test a guess of the value against the digest without the key.
    """
    if value is not None and unique.normalize is not None:
        try:
            value = unique.normalize(value)
        except Exception as error:  # the project's own code
            raise Unfit(
                f"the normalize function of {unique.scope!r} raised {type(error).__name__}"
            ) from error
    if value is None:
        return UniqueValue(unique.scope, None)
    text = unique.scope.encode() + b"\0" + _canonical(value)
    # In the form of a UUID of version 5, which is made of a name, too: MariaDB's type refuses some
    # UUIDs of other forms.
    digest = sha256(text).digest() if key is None else hmac.digest(key, text, "sha256")
    return UniqueValue(unique.scope, UUID(bytes=digest[:DIGEST], version=5))


def _canonical(value: Any) -> bytes:
    """Return bytes that are the same for equal values, and different for all others."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return b"s" + str.__str__(value).encode("utf-8", "surrogatepass")
    if isinstance(value, int) and not isinstance(value, bool):
        return b"i%d" % value
    if isinstance(value, UUID):
        return b"u" + value.bytes
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise Unfit("a unique datetime must have a time zone")
        return b"t" + value.astimezone(UTC).isoformat().encode()
    if isinstance(value, date):
        return b"d" + value.isoformat().encode()
    if isinstance(value, tuple | list):
        parts = [_canonical(each) for each in value]
        return b"(" + b"".join([b"%d:%s" % (len(part), part) for part in parts])
    raise Unfit(
        f"a unique value must be a str, int, UUID, date, datetime or a tuple of these, not "
        f"{type(value).__name__}; normalize= can make one of it"
    )
