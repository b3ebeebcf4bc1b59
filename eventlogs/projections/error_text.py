"""
Texts of errors for log lines and the database: where one was raised, and its text if it is safe.

An exception's text may quote what the code was working on: ``int(data)`` and ``amounts[key]``
put the value into it, and so do databases. Events hold data that must not be written to a log
file. So an error is named by its class, and its text is shown for two kinds only:

- An error of eventlogs.exceptions that is not about a value that was given (a ValueError), and
  whose text its class writes.
- A missing name (AttributeError, NameError, ImportError). The text is made here, of the
  name and of the class that lacks it, and only where the name is written in the code of the
  traceback: ``getattr(row, value)`` puts a value there.

A traceback has files, lines, functions and lines of source code, of all errors of the chain. It
has no variables and no notes.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from eventlogs import exceptions
from eventlogs.exceptions import EventLogError, RegistrationError

MAX_DETAILS: Final = 10_000  # characters
LONGEST: Final = 10_000  # characters of a traceback; the end is kept
CHAIN: Final = 5  # errors of one chain that are shown
CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"

NOT_A_HANDLER: Final = frozenset({"eventlogs", "django"})  # packages
LIBRARIES: Final = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)

FREE_TEXT: Final = (EventLogError, RegistrationError)  # their text is written where they are raised


def described(error: BaseException) -> str:
    """Return an error's class, with its text where that cannot hold payload data."""
    name = type(error).__qualname__
    text = _text(error)
    return f"{name}: {text}" if text else name


def traceback_of(error: BaseException) -> str:
    """Return an error's traceback and those of its causes, without values; "" for none."""
    parts: list[str] = []
    seen: set[int] = set()
    following, is_anything = "", False
    each: BaseException | None = error
    while each is not None and id(each) not in seen and len(seen) < CHAIN:
        seen.add(id(each))
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


def handler_of(error: BaseException) -> str:
    """
    Return the name of the function of the project's own code that raised an error, or "".

    It is the innermost frame that is neither of this package nor of an installed library. Where
    the project is an installed library itself, it is the function that this package called.
    """
    frames = [
        frame
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in NOT_A_HANDLER
    ]
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith(LIBRARIES)]
    if not frames:
        return ""
    code = (own[-1] if own else frames[0]).f_code
    # Leave out parts without a name: "captured.<locals>.<lambda>" is captured.
    named = [part for part in code.co_qualname.split(".") if not part.startswith("<")]
    return named[-1][:200] if named else ""


def details_of(error: BaseException) -> str:
    """Return an error with its traceback and its text, for the database; at most MAX_DETAILS."""
    # Databases store neither NUL nor lone surrogates.
    lines: Iterator[str] = traceback.TracebackException.from_exception(error).format()
    text = "".join(lines).replace("\0", "�")
    return text.encode(errors="backslashreplace").decode()[-MAX_DETAILS:]
