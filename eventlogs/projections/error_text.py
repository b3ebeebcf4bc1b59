"""
What a log line may say of an error: where it was raised, and its text where that holds no data.

An exception's text may quote what the code was working on: ``int(data)`` and ``amounts[key]``
put the value into it, and so do databases. Events hold what must not end in a log file. So an
error is named by its class, and its text is told for two kinds only:

- An error of eventlogs.exceptions that is not about a value that was given (a ValueError), and
  whose text its class writes.
- A name that is not there (AttributeError, NameError, ImportError). The text is made here, of the
  name and of the class that lacks it, and only where the name is written in the code of the
  traceback: ``getattr(row, value)`` puts a value there.

A traceback has files, lines, functions and lines of source code, of all errors of the chain. It
has no variables and no notes.
"""

from __future__ import annotations

import traceback
from types import ModuleType
from typing import Final

from eventlogs import exceptions
from eventlogs.exceptions import EventLogError, RegistrationError

LONGEST: Final = 10_000  # characters of a traceback; the end is kept
CHAIN: Final = 5  # errors that are told of one chain
CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"

FREE_TEXT: Final = (EventLogError, RegistrationError)  # whoever raises them writes their text


def described(error: BaseException) -> str:
    """Return an error's class, with its text where that cannot hold payload data."""
    name = type(error).__qualname__
    text = _text(error)
    return f"{name}: {text}" if text else name


def traceback_of(error: BaseException) -> str:
    """Return an error's traceback and those of its causes, without values; "" for none."""
    parts: list[str] = []
    told: set[int] = set()
    following, is_anything = "", False
    each: BaseException | None = error
    while each is not None and id(each) not in told and len(told) < CHAIN:
        told.add(id(each))
        frames = traceback.extract_tb(each.__traceback__)
        is_anything |= bool(frames)
        lines = ["Traceback (most recent call last):\n", *frames.format()] if frames else []
        parts.append("".join([*lines, described(each), "\n", following]))
        following = CONTEXT if each.__cause__ is None else CAUSE
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "".join(reversed(parts))[-LONGEST:].rstrip("\n") if is_anything else ""


def _text(error: BaseException) -> str:
    if type(error).__module__ == exceptions.__name__:
        is_safe = not isinstance(error, ValueError) and type(error) not in FREE_TEXT
        return str(error) if is_safe else ""
    name = getattr(error, "name", None)
    if not isinstance(name, str) or name not in _names_in_code(error):
        return ""
    match error:
        case AttributeError():
            return f"{_owner(error.obj)} has no attribute {name!r}"
        case ModuleNotFoundError():
            return f"no module named {name!r}"
        case ImportError():
            return f"cannot import from {name!r}"
        case NameError():
            return f"name {name!r} is not defined"
    return ""


def _names_in_code(error: BaseException) -> set[str]:
    """Return the names that are written in the functions of an error's traceback."""
    return {
        name
        for frame, _ in traceback.walk_tb(error.__traceback__)
        for name in (*frame.f_code.co_names, *frame.f_code.co_varnames, *frame.f_code.co_freevars)
    }


def _owner(value: object) -> str:
    if isinstance(value, ModuleType):
        return f"module {value.__name__!r}"
    if isinstance(value, type):
        return f"type object {value.__name__!r}"
    return f"{type(value).__name__!r} object"
