"""
The EVENTLOGS setting: every key, its default and its bounds.

It is read on every call, so that ``override_settings`` works; nothing else in the package
reads Django's settings for eventlogs.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from django.conf import settings
from django.utils.encoding import force_bytes

MAX_LOG_TYPE_LENGTH: Final = 63  # characters: a TypeID prefix
MAX_EVENT_TYPE_LENGTH: Final = 255  # characters
MAX_KEY_LENGTH: Final = 255  # characters
MAX_PROJECTION_NAME_LENGTH: Final = 100  # characters
MAX_VERSION: Final = 2**31 - 1  # events a log can take
MAX_POSITION: Final = 2**63 - 1  # a bigint
MAX_DEPTH: Final = 64  # nested objects and arrays, the event itself included
MAX_PAGE_SIZE: Final = 10_000  # events
MAX_BATCH: Final = 10_000  # events of one append

DEFAULTS: Final[dict[str, Any]] = {
    "CACHE": "default",  # an alias in CACHES, or None for no cache of reductions
    "CACHE_TIMEOUT": 604_800,  # seconds that a reduction is kept (7 days), or None for good
    "CACHING_POLICY": "eventlogs.policies.AlwaysCache",  # a policy, its class, or a path to one
    "REFRESHER": "eventlogs.refreshers.ThreadRefresher",  # a path to a BaseRefresher
    "REFRESH_ON_APPEND": False,  # True: also refresh after each append
    "MAX_EVENT_BYTES": 262_144,  # of the JSON of one event, or of an append's metadata
    "IDEMPOTENCY_KEY_RETENTION": None,  # a timedelta, or None: keys are kept for good
    "PREPARED_STATEMENTS": True,  # False for connection poolers that cannot keep them
    "PAGE_SIZE": 100,  # events of a page that names no limit
    "HEALTH": {},  # limits beyond which somebody must act; what is left out is in HEALTH below
}

HEALTH: Final[dict[str, float]] = {
    "MAX_LAG": 60,  # seconds that an event may wait for a projection
    "MAX_HELD": 10,  # seconds that a transaction may hold the feed back
    "MAX_PARKED": 0,  # logs that may be held by parked events of one projection
    "MAX_DEPLOY": 600,  # seconds that a deployment may take: two releases run side by side
}


def prepare() -> None:
    """
    Have the setting there, if only as an empty dict.

    Django looks for a setting that is missing anew each time, which takes fifty times as long as
    reading one: an append reads three.
    """
    if not hasattr(settings, "EVENTLOGS"):
        settings.EVENTLOGS = {}


def _get(name: str) -> Any:
    try:
        # What Django keeps once it has been read, past the code that a lazy object has for any
        # access; override_settings() and an assignment throw it away.
        own = object.__getattribute__(settings, "EVENTLOGS")
    except AttributeError:
        own = getattr(settings, "EVENTLOGS", DEFAULTS)
    return own.get(name, DEFAULTS[name])


def cache() -> str | None:
    """Return the alias of the cache that reductions are kept in, or None for none."""
    value: str | None = _get("CACHE")
    return value


def cache_timeout() -> float | None:
    """Return for how many seconds a reduction is kept, or None for good."""
    value: float | None = _get("CACHE_TIMEOUT")
    return value


def caching_policy() -> Any:
    """Return the caching policy, its class, or a dotted path to either."""
    return _get("CACHING_POLICY")


def refresher() -> Any:
    """Return the dotted path to the refresher's class."""
    return _get("REFRESHER")


def refresh_on_append() -> bool:
    """Return whether reductions are refreshed after each append as well."""
    return bool(_get("REFRESH_ON_APPEND"))


def max_event_bytes() -> int:
    """Return the limit on the JSON of one event, in bytes."""
    return int(_get("MAX_EVENT_BYTES"))


def idempotency_key_retention() -> timedelta | None:
    """Return how long idempotency keys are kept, or None for good."""
    value: timedelta | None = _get("IDEMPOTENCY_KEY_RETENTION")
    return value


def prepared_statements() -> bool:
    """Return whether statements may be prepared on the database server."""
    return bool(_get("PREPARED_STATEMENTS"))


def page_size() -> int:
    """Return how many events a page holds where the caller names no limit."""
    return int(_get("PAGE_SIZE"))


def health() -> dict[str, float]:
    """Return the limits beyond which somebody must act, by name."""
    own = _get("HEALTH")
    return {**HEALTH, **own} if isinstance(own, dict) else HEALTH  # a system check says so


def secret_keys() -> list[bytes]:
    """Return the project's secret keys, the one to sign with first."""
    return [force_bytes(key) for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)]
