"""Retention rules: which logs are archived, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.utils.module_loading import import_string

from eventlogs import conf
from eventlogs.exceptions import RegistrationError

OWN: Final = "eventlogs_"  # how the log types of this package begin


@dataclass(frozen=True, slots=True)
class Retention:
    """
    A rule: logs of ``log_type`` whose last event is older than ``after`` are archived.

    ``when`` is called with the aggregate, and returns whether the log is closed: whether nothing
    will be appended to it any more. Without it, every log of the type is closed that had no event
    for so long. It must only look: it may be called again at any time.

    ``EVENTLOGS["RETENTION"]`` is a list of rules, or of their dotted paths. Raise ValueError for an
    ``after`` that is not positive and for a log type of eventlogs itself, and TypeError for a
    ``when`` that cannot be called.
    """

    log_type: str
    after: timedelta
    when: Callable[[Any], bool] | None = None

    def __post_init__(self) -> None:
        if self.log_type.startswith(OWN):
            raise ValueError(
                f"log_type is {self.log_type!r}, a log type of eventlogs itself. Its logs are "
                f"appended to for good: leave them in the tables."
            )
        if not isinstance(self.after, timedelta) or self.after <= timedelta():
            raise ValueError(
                f"after is {self.after!r}. It must be a positive datetime.timedelta: how long a "
                f"log has had no event."
            )
        if self.when is not None and not callable(self.when):
            raise TypeError(f"when is {self.when!r}. It must be a function of the aggregate.")


def rules() -> list[Retention]:
    """
    Return the rules of ``EVENTLOGS["RETENTION"]``.

    Raise RegistrationError for one that is no Retention, or cannot be imported.
    """
    return [rule_from(each) for each in conf.retention()]


def rule_from(given: Any) -> Retention:
    """Return a rule, given itself or its dotted path. Raise RegistrationError."""
    try:
        found = import_string(given) if isinstance(given, str) else given
    except ImportError as error:
        raise RegistrationError(
            f"EVENTLOGS['RETENTION'] names {given!r}, which cannot be imported: {error}. Give the "
            f"dotted path to a Retention."
        ) from error
    if not isinstance(found, Retention):
        raise RegistrationError(
            f"EVENTLOGS['RETENTION'] has {given!r}, which is no Retention. Give a Retention, or "
            f"the dotted path to one."
        )
    return found
