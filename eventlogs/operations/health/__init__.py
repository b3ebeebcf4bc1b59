"""
Health: problems of a project's logs, since when, and who must act.

One call checks a database, its feed, its projections and their workers, and the cache. Its
statements use an index or read the small tables of projections, and never count all events: some
fifty for a few projections, however many events there are. It changes nothing but one tiny entry
of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from django.db import router
from django.utils import timezone

from eventlogs import conf
from eventlogs.models import EventLog
from eventlogs.operations.health.databases import look_at_database, unknown_types
from eventlogs.operations.health.findings import Finding, Health
from eventlogs.operations.health.look import Look, unknown
from eventlogs.operations.health.read_models import look_at_projections
from eventlogs.operations.health.reduction_cache import look_at_cache

__all__ = ["Finding", "Health", "health"]

Part = Callable[[Look], Iterator[Finding]]


def health(
    *,
    using: str | None = None,
    max_lag: float | None = None,
    max_held: float | None = None,
    max_parked: float | None = None,
    max_deploy: float | None = None,
) -> Health:
    """
    Return the problems of a database's logs, projections and cache, and who must act.

    ``using`` is the alias of a database, by default the one that logs are written to. Limits that
    are None are those of ``EVENTLOGS["HEALTH"]``: ``max_lag`` is how many seconds an
    event may wait for a projection, ``max_held`` how many seconds a transaction may hold the feed
    back, ``max_parked`` how many logs may be held by parked events of one projection, and
    ``max_deploy`` how many seconds a deployment may take.

    A part that cannot be checked is a finding, and raises nothing. Raise
    ConnectionDoesNotExist for an alias that DATABASES does not have.
    """
    given = {
        "MAX_LAG": max_lag,
        "MAX_HELD": max_held,
        "MAX_PARKED": max_parked,
        "MAX_DEPLOY": max_deploy,
    }
    limits = {**conf.health(), **{name: each for name, each in given.items() if each is not None}}
    look = Look(using or router.db_for_write(EventLog), timezone.now(), limits)
    look.connection  # noqa: B018 - an unknown alias is the caller's mistake
    found = _safely(look, "The database", look_at_database)
    if look.is_there:
        found += _safely(look, "The projections", look_at_projections)
        found += unknown_types(look)
    found += _safely(look, "The cache of reductions", look_at_cache)
    # The sort is stable: of one level, causes come before their consequences.
    found.sort(key=lambda each: not each.must_act)
    return Health(look.using, look.now, tuple(found), look.figures, look.by_projection)


def _safely(look: Look, what: str, part: Part) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(part(look))
    except Exception as error:
        found.append(unknown(look, what, error))
    return found
