"""
System checks of event classes and upcasters.

    E006  two event classes claim one name, or an upcaster is missing or superfluous
    E007  the fields of an event class cannot be encoded
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage, Error, register

from eventlogs.events.codec import codec_for
from eventlogs.events.registry import registry
from eventlogs.exceptions import RegistrationError


@register()
def check_events(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check that event names, versions, upcasters and fields fit together."""
    for problem in registry.problems():
        yield Error(problem.rstrip("."), id="eventlogs.E006")
    for event_type in registry:
        try:
            codec_for(event_type)
        except RegistrationError as error:
            yield Error(str(error), id="eventlogs.E007")
