"""
System checks of event classes and upcasters.

    E006  two event classes claim one name, or an upcaster is missing or superfluous
    E007  the fields of an event class cannot be encoded, or are unique in a wrong way
    E048  two fields of one scope are normalized in different ways
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage, Error, register

from eventlogs.events.codec import codec_for
from eventlogs.events.registry import registry
from eventlogs.events.unique_values import by_scope, declared
from eventlogs.exceptions import RegistrationError


@register()
def check_events(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that event names, versions, upcasters and fields fit together."""
    for problem in registry.problems():
        message, hint = _split(problem)
        yield Error(message, hint=hint, id="eventlogs.E006")
    for event_type in registry:
        try:
            codec_for(event_type)
        except RegistrationError as error:
            message, hint = _split(str(error))
            yield Error(message, hint=hint, id="eventlogs.E007")
    try:
        by_scope(unique for _, uniques in declared() for unique in uniques)
    except RegistrationError as error:
        message, hint = _split(str(error))
        yield Error(message, hint=hint, id="eventlogs.E048")


def _split(text: str) -> tuple[str, str]:
    """Return the text of an error, and its last sentence, which says what to do."""
    problem, _, hint = text.rpartition(". ")
    return f"{problem}.", hint
