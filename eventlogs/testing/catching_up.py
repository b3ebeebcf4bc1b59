"""All projections and reactors, caught up for a test."""

from __future__ import annotations

from typing import Final

from asgiref.sync import sync_to_async

from eventlogs.deciders import kind_of
from eventlogs.projections.base import RowProjection, declared
from eventlogs.projections.operations import Operations

ROUNDS: Final = 100  # in which projections apply what reactors have appended in the round before


def catch_up(*projections: type[Operations], using: str | None = None) -> dict[str, int]:
    """
    Apply all events with these projections and reactors, by default with all that are declared.

    Return how many events each has applied, by its name. Projections come before reactors. What
    reactors append is applied as well, so that nothing is left at the end. ``using`` is the alias
    of the database whose logs are meant.

    It is strict: raise ProjectionFailed at the first event that cannot be applied, also for one
    that is parked or waits, with the handler's own error as its cause. Events before it stay
    applied. Raise AssertionError where reactors append in every one of 100 rounds, TypeError for
    anything but a projection or reactor, and FeedUnavailable as the feed does.
    """
    __tracebackhide__ = True
    for each in projections:
        if not (isinstance(each, type) and issubclass(each, Operations)):
            raise TypeError(f"catch_up() takes projections and reactors, not {kind_of(each)}.")
    chosen = list(projections) or declared(Operations, using=using)
    chosen.sort(key=lambda each: not issubclass(each, RowProjection))
    applied = {each.name: 0 for each in chosen}
    for _ in range(ROUNDS):
        before = dict(applied)
        for each in chosen:
            applied[each.name] += each.catch_up(strict=True, using=using)
        if applied == before:
            return applied
    endless = [name for name, count in applied.items() if count > before[name]]
    raise AssertionError(
        f"After {ROUNDS} rounds there are still new events to apply, for {', '.join(endless)}. "
        f"A reactor appends an event that makes it append again: let it skip its own events."
    )


async def acatch_up(*projections: type[Operations], using: str | None = None) -> dict[str, int]:
    """Do the same as ``catch_up``, for async code."""
    return await sync_to_async(catch_up, thread_sensitive=True)(*projections, using=using)
