"""
The base class of all errors, and the decorator that declares an error.

``eventlogs.exceptions`` lists all errors. RegistrationError and InvalidLogId are defined here,
because log ids raise them, and ``exceptions`` imports log ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, dataclass_transform

E = TypeVar("E", bound="EventLogError")

PUBLIC = "eventlogs.exceptions"  # the module that tracebacks and pickles name


def _restore(cls: type[E], *args: Any) -> E:
    return cls.__new__(cls, *args)


class EventLogError(Exception):
    """Base class of all errors that eventlogs raises."""

    __module__ = PUBLIC
    template: ClassVar[str] = ""  # of the message; the fields in braces are the error's facts
    message_of: ClassVar[Callable[[Any], str]] = str

    def __str__(self) -> str:
        return self.template.format_map(vars(self)) if self.template else super().__str__()

    def __post_init__(self) -> None:
        # The message of the class that declares the facts: a user's subclass may have a __str__
        # of attributes that it sets after this.
        self.args = (type(self).message_of(self),)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle as cls(*args), which keyword-only facts do not survive.
        return _restore, (type(self), *self.args), self.__dict__


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def error(cls: type[E]) -> type[E]:
    """
    Make an error of a class that declares its facts as fields and its message as ``template``.

    As in a dataclass, the facts are the arguments of ``__init__`` and attributes. A message that
    is more than a template is a ``__str__``. The repr shows no facts: an idempotency key may
    be one of them.
    """
    made = dataclass(eq=False, repr=False)(cls)
    made.message_of = made.__str__
    made.__module__ = PUBLIC  # not before: dataclass() looks the class's module up
    return made


class RegistrationError(EventLogError):
    """A class, name or upcaster cannot be registered as it is written; nothing was registered."""

    __module__ = PUBLIC


@error
class InvalidLogId(EventLogError, ValueError):
    """
    The value is not a log id, or it is the id of another log type.

    ``expected_type`` is the log type that was expected, or None for any.
    """

    reason: str
    expected_type: str | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        return self.reason
