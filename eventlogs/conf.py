"""
The EVENTLOGS setting: every key with its default, and the fixed limits.

Settings are read on every call, so that ``override_settings`` works. No other module of the
package reads Django's settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from django.conf import settings
from django.utils.encoding import force_bytes

MAX_LOG_TYPE_LENGTH: Final = 63  # characters: a TypeID prefix
MAX_EVENT_TYPE_LENGTH: Final = 255  # characters
MAX_KEY_LENGTH: Final = 255  # characters
MAX_PROJECTION_NAME_LENGTH: Final = 100  # characters
MAX_SCOPE_LENGTH: Final = 100  # characters of the scope of a unique value
MAX_SUBJECT_LENGTH: Final = 255  # characters of the subject of personal data
MAX_VERSION: Final = 2**31 - 1  # events of one log
MAX_POSITION: Final = 2**63 - 1  # a bigint
MAX_DEPTH: Final = 64  # nested objects and arrays, the event itself included
MAX_PAGE_SIZE: Final = 10_000  # events
MAX_BATCH: Final = 10_000  # events of one append
MAX_ALSO_EXPECTED: Final = 100  # other logs of one append

DEFAULTS: Final[dict[str, Any]] = {
    "CACHE": "default",  # an alias in CACHES, or None: reductions are not cached
    "CACHE_TIMEOUT": 604_800,  # seconds that an entry is kept (7 days), or None: it does not expire
    "CACHING_POLICY": "eventlogs.policies.AlwaysCache",  # a policy, its class, or a path to one
    "REFRESHER": "eventlogs.refreshers.ThreadRefresher",  # or a dict of BACKEND and OPTIONS
    "REFRESH_ON_APPEND": False,  # True: refresh reductions after each append, too
    "MAX_EVENT_BYTES": 262_144,  # length of the JSON of one event, or of an append's metadata
    "IDEMPOTENCY_KEY_RETENTION": None,  # a timedelta, or None: prune() deletes no keys
    "PREPARED_STATEMENTS": True,  # False for poolers that do not support them
    "GROUP_COMMIT": "connection",  # "process" or False: which appends are joined
    "CHAIN": False,  # True: new logs are chained, each event to the one before it
    "LAYOUT": "fence",  # or "buckets": where the positions of events come from
    "PAGE_SIZE": 100,  # events of a page for which no limit is given
    "CONTEXT": {},  # functions that replace, extend or remove (None) those in CONTEXT below
    "SEAL_KEY": None,  # the secret key that signs seals: 32 bytes in base64; or None
    "SEAL_PUBLIC_KEYS": (),  # further keys whose seals are trusted: 32 bytes in base64 each
    "ENCRYPTION_KEYS": [],  # base64 of 32 bytes each, the newest first: they wrap subjects' keys
    "KEY_STORE": {  # where the keys of subjects are kept
        "BACKEND": "eventlogs.privacy.DatabaseKeyStore",
        "OPTIONS": {},
    },
    "PERSONAL_METADATA": {},  # names in the metadata that are personal, with that of the subject
    "ARCHIVE_STORAGE": None,  # an alias in STORAGES: where archives are kept
    "ARCHIVE_GRACE": timedelta(days=7),  # how long files that were replaced are kept
    "RETENTION": (),  # rules, or their dotted paths: which logs are archived
    "HEALTH": {},  # limits of the health check that replace those in HEALTH below
}

# The context of a request: names in the metadata, and dotted paths of functions of the request.
CONTEXT: Final[dict[str, str]] = {
    "user": "eventlogs.middleware.user",
    "request_id": "eventlogs.middleware.request_id",
    "correlation_id": "eventlogs.middleware.correlation_id",
    "traceparent": "eventlogs.middleware.traceparent",
}

HEALTH: Final[dict[str, float]] = {
    "MAX_LAG": 60,  # seconds that an event may wait for a projection
    "MAX_HELD": 10,  # seconds that a transaction may hold the feed back
    "MAX_PARKED": 0,  # logs of one projection that parked events may hold
    "MAX_DEPLOY": 600,  # seconds that a deployment may take, with two releases running
}


def prepare() -> None:
    """
    Set EVENTLOGS to an empty dict if the project does not set it.

    Django searches for a missing setting again on every access, which takes fifty times as long
    as reading one, and an append reads three.
    """
    if not hasattr(settings, "EVENTLOGS"):
        settings.EVENTLOGS = {}


def _get(name: str) -> Any:
    try:
        # LazySettings stores a value in its __dict__ once it was read. Reading it from there
        # skips the Python code of LazyObject's attribute access; override_settings() and
        # assignments remove the stored value.
        own = object.__getattribute__(settings, "EVENTLOGS")
    except AttributeError:
        own = getattr(settings, "EVENTLOGS", DEFAULTS)
    return own.get(name, DEFAULTS[name])


def configured() -> Any:
    """Return the EVENTLOGS setting as the project wrote it, for the system check of it."""
    return getattr(settings, "EVENTLOGS", {})


def cache() -> str | None:
    """Return the alias of the cache of reductions, or None for no cache."""
    value: str | None = _get("CACHE")
    return value


def cache_timeout() -> float | None:
    """Return how many seconds a cached reduction is kept, or None if it does not expire."""
    value: float | None = _get("CACHE_TIMEOUT")
    return value


def caching_policy() -> Any:
    """Return the caching policy, its class, or a dotted path to either."""
    return _get("CACHING_POLICY")


def refresher() -> Any:
    """Return the dotted path to the refresher's class, or a dict of that and its options."""
    return _get("REFRESHER")


def refresh_on_append() -> bool:
    """Return whether reductions are refreshed after each append as well."""
    return bool(_get("REFRESH_ON_APPEND"))


def max_event_bytes() -> int:
    """Return the limit on the JSON of one event, in bytes."""
    return int(_get("MAX_EVENT_BYTES"))


def idempotency_key_retention() -> timedelta | None:
    """Return the age at which idempotency keys may be pruned, or None if they are kept."""
    value: timedelta | None = _get("IDEMPOTENCY_KEY_RETENTION")
    return value


def prepared_statements() -> bool:
    """Return whether statements may be prepared on the database server."""
    return bool(_get("PREPARED_STATEMENTS"))


def chain() -> bool:
    """Return whether logs that are created here are chained."""
    return bool(_get("CHAIN"))


def has_buckets() -> bool:
    """Return whether positions come from the counters of buckets: ``LAYOUT = "buckets"``."""
    return bool(_get("LAYOUT") == "buckets")


def group_commit() -> str | bool:
    """Return which appends are joined: those of a "connection", of the "process", or False."""
    value: str | bool = _get("GROUP_COMMIT")
    return value


def page_size() -> int:
    """Return the number of events of a page for which the caller gives no limit."""
    return int(_get("PAGE_SIZE"))


def context() -> Mapping[str, Any]:
    """Return the functions of a request's context, or their dotted paths, by name."""
    own = _get("CONTEXT")
    if not own:
        return CONTEXT
    found = {**CONTEXT, **own} if isinstance(own, dict) else CONTEXT  # E001 reports it
    return {name: source for name, source in found.items() if source is not None}


def health() -> dict[str, float]:
    """Return the limits of the health check, by name."""
    own = _get("HEALTH")
    return {**HEALTH, **own} if isinstance(own, dict) else HEALTH  # E001 reports it


def seal_key() -> str | None:
    """Return the secret key that signs seals, in base64, or None."""
    value: str | None = _get("SEAL_KEY")
    return value


def seal_public_keys() -> Sequence[str]:
    """Return further public keys whose seals are trusted, in base64."""
    value: Sequence[str] = _get("SEAL_PUBLIC_KEYS")
    return value


def has_seal_keys() -> bool:
    """Return whether the project makes seals, or trusts some."""
    own = configured()
    return isinstance(own, dict) and any(map(own.get, ("SEAL_KEY", "SEAL_PUBLIC_KEYS")))


def encryption_keys() -> list[str]:
    """Return the keys that wrap the keys of subjects, in base64, the newest first."""
    value: list[str] = _get("ENCRYPTION_KEYS")
    return value


def key_store() -> dict[str, Any]:
    """Return where the keys of subjects are kept: a dict of BACKEND and OPTIONS."""
    value: dict[str, Any] = _get("KEY_STORE")
    return value


def personal_metadata() -> Mapping[str, str | None]:
    """Return the names in the metadata that are personal, with the name of their subject."""
    value: Mapping[str, str | None] = _get("PERSONAL_METADATA")
    return value


def archive_storage() -> str | None:
    """Return the alias of the storage of archives, or None."""
    value: str | None = _get("ARCHIVE_STORAGE")
    return value


def is_storage(alias: Any) -> bool:
    """Return whether STORAGES has an alias."""
    return isinstance(alias, str) and alias in settings.STORAGES


def archive_grace() -> timedelta:
    """Return how long the file of an archive is kept after it was written anew."""
    value: timedelta = _get("ARCHIVE_GRACE")
    return value


def retention() -> Sequence[Any]:
    """Return the rules that say which logs are archived, or their dotted paths."""
    value: Sequence[Any] = _get("RETENTION")
    return value


def secret_keys() -> list[bytes]:
    """Return SECRET_KEY, with which new signatures are made, and then its fallbacks."""
    return [force_bytes(key) for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)]


def uses_time_zones() -> bool:
    """Return whether USE_TZ is on."""
    return bool(settings.USE_TZ)
