"""The observers of this process, with the global providers."""

from __future__ import annotations

from eventlogs.contrib.opentelemetry.metering import Metering
from eventlogs.contrib.opentelemetry.tracing import Tracing
from eventlogs.observers import Observer, register

_installed: list[Observer] = []


def observers_of_a_process() -> list[Observer]:
    """Return the observers. The last one ends first: inside of the span, which is its exemplar."""
    return [Tracing(), Metering()]


def install() -> None:
    """Register the observers, once."""
    if not _installed:
        _installed.extend(observers_of_a_process())
    for each in _installed:
        register(each)
