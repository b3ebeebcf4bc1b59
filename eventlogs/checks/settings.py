"""
System checks of the EVENTLOGS setting and of USE_TZ.

    E001  EVENTLOGS is not a dict, or one of its values is of the wrong kind or out of range
    W002  EVENTLOGS has a key that eventlogs does not know
    E005  USE_TZ is off
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterable
from datetime import timedelta
from inspect import iscoroutinefunction
from reprlib import repr as short
from typing import Any, Final

from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from eventlogs import conf
from eventlogs.archives.rules import rule_from
from eventlogs.events.metadata import NAME
from eventlogs.exceptions import RegistrationError
from eventlogs.policies import policy_from
from eventlogs.privacy.encryption import is_wrapping_key
from eventlogs.privacy.keys import BaseKeyStore
from eventlogs.refreshers import refresher_for

KEY_LENGTH: Final = 32  # bytes


def is_policy(value: Any) -> bool:
    """Return whether a value is a caching policy, its class, or the dotted path to either."""
    try:
        policy_from(value)
    except (ImportError, TypeError):
        return False
    return True


def is_refresher(value: Any) -> bool:
    """Return whether a value names a refresher that can be imported, whatever its options are."""
    try:
        # refresher_for(None) would return the refresher of the setting.
        return value is not None and refresher_for(value) is not None
    except (ImportError, TypeError, AttributeError):
        return False
    except ImproperlyConfigured:
        return True  # eventlogs.E047 reports it


def is_source(value: Any) -> bool:
    """Return whether a value is a sync function, the dotted path to one, or None."""
    try:
        found = import_string(value) if isinstance(value, str) else value
    except (ImportError, AttributeError, TypeError, ValueError):
        return False
    return found is None or (callable(found) and not iscoroutinefunction(found))


def is_key(value: Any) -> bool:
    """Return whether a value is a key of 32 bytes, in base64."""
    try:
        return isinstance(value, str) and len(b64decode(value, validate=True)) == KEY_LENGTH
    except ValueError:
        return False


def are_encryption_keys(value: Any) -> bool:
    """Return whether a value is a list of keys for the keys of subjects."""
    return isinstance(value, list | tuple) and all(map(is_wrapping_key, value))


def is_key_store(value: Any) -> bool:
    """Return whether a value names a key store that can be imported, whatever its options are."""
    try:
        if not isinstance(value, dict) or not isinstance(value.get("OPTIONS", {}), dict):
            return False
        return set(value) <= {"BACKEND", "OPTIONS"} and issubclass(
            import_string(value["BACKEND"]), BaseKeyStore
        )
    except (ImportError, KeyError, TypeError, AttributeError, ValueError):
        return False


def is_personal_metadata(value: Any) -> bool:
    """Return whether a value is a dict of names, with the name of their subject, or None."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and (subject is None or isinstance(subject, str))
        for name, subject in value.items()
    )


def are_rules(value: Any) -> bool:
    """Return whether a value is a list of retention rules that can be imported."""
    if not isinstance(value, list | tuple):
        return False
    try:
        return bool([rule_from(each) for each in value]) or not value
    except RegistrationError:
        return False


# Values that a message must not show.
SECRETS: Final = {"ENCRYPTION_KEYS", "KEY_STORE", "SEAL_KEY"}

# For each key: the test of its value, and the allowed values in words.
VALID: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "CACHE": (
        lambda value: value is None or isinstance(value, str),
        "an alias in CACHES, or None",
    ),
    "CACHE_TIMEOUT": (
        lambda value: (
            value is None
            or (isinstance(value, int | float) and type(value) is not bool and value > 0)
        ),
        "a positive number of seconds, or None",
    ),
    "CACHING_POLICY": (
        is_policy,
        "a caching policy, the class of one, or the dotted path to either",
    ),
    "REFRESHER": (
        is_refresher,
        "the dotted path to a refresher whose packages are installed, or a dict with the keys "
        "'BACKEND' (such a path) and 'OPTIONS' (a dict)",
    ),
    "REFRESH_ON_APPEND": (lambda value: isinstance(value, bool), "True or False"),
    "MAX_EVENT_BYTES": (
        lambda value: type(value) is int and 0 < value <= 2**28,
        "an int from 1 to 268,435,456 (256 MiB, the limit of jsonb)",
    ),
    "IDEMPOTENCY_KEY_RETENTION": (
        lambda value: value is None or (isinstance(value, timedelta) and value > timedelta()),
        "a positive datetime.timedelta, or None",
    ),
    "CHAIN": (lambda value: isinstance(value, bool), "True or False"),
    "LAYOUT": (lambda value: value in ("fence", "buckets"), "'fence' or 'buckets'"),
    "PREPARED_STATEMENTS": (lambda value: isinstance(value, bool), "True or False"),
    "GROUP_COMMIT": (
        lambda value: value is False or value in ("connection", "process"),
        "'connection', 'process' or False",
    ),
    "PAGE_SIZE": (
        lambda value: type(value) is int and 0 < value <= conf.MAX_PAGE_SIZE,
        f"an int from 1 to {conf.MAX_PAGE_SIZE:,}",
    ),
    "CONTEXT": (
        lambda value: isinstance(value, dict),
        "a dict of names and functions of a request, their dotted paths, or None",
    ),
    "SEAL_KEY": (
        lambda value: value is None or is_key(value),
        "32 bytes in base64, as `manage.py eventlogs seal --new-key` prints them, or None",
    ),
    "SEAL_PUBLIC_KEYS": (
        lambda value: isinstance(value, list | tuple) and all(map(is_key, value)),
        "a list of public keys, each of 32 bytes in base64",
    ),
    "ENCRYPTION_KEYS": (
        are_encryption_keys,
        "a list of keys, the newest first, each of them base64 of 32 bytes",
    ),
    "KEY_STORE": (
        is_key_store,
        "a dict with the keys 'BACKEND' (the dotted path to a BaseKeyStore) and 'OPTIONS' (a dict)",
    ),
    "PERSONAL_METADATA": (
        is_personal_metadata,
        "a dict of names in the metadata, each with the name of its subject, or None",
    ),
    "ARCHIVE_STORAGE": (
        lambda value: value is None or conf.is_storage(value),
        "an alias in STORAGES, or None",
    ),
    "ARCHIVE_GRACE": (
        lambda value: isinstance(value, timedelta) and value >= timedelta(),
        "a datetime.timedelta, 0 or more",
    ),
    "RETENTION": (
        are_rules,
        "a list of rules (eventlogs.Retention), or of their dotted paths",
    ),
    "HEALTH": (
        lambda value: isinstance(value, dict),
        f"a dict with any of the keys {', '.join(conf.HEALTH)}",
    ),
}


@register()
def check_settings(**kwargs: Any) -> Iterable[CheckMessage]:
    """Check the EVENTLOGS setting and USE_TZ."""
    configured = conf.configured()
    if isinstance(configured, dict):
        yield from _check_keys(configured)
    else:
        yield Error(
            f"EVENTLOGS is {short(configured)}. It must be a dict.",
            hint=f"Set EVENTLOGS = {{}}, with any of the keys {', '.join(conf.DEFAULTS)}.",
            id="eventlogs.E001",
        )
    if not conf.uses_time_zones():
        yield Error(
            "USE_TZ is False. It must be True: eventlogs records events with their time zone.",
            hint="Set USE_TZ = True.",
            id="eventlogs.E005",
        )


def _check_keys(configured: dict[Any, Any]) -> Iterable[CheckMessage]:
    for name, value in configured.items():
        if name not in VALID:
            yield Warning(
                f"EVENTLOGS[{name!r}] is not a setting of eventlogs.",
                hint=f"Remove it, or rename it to one of {', '.join(conf.DEFAULTS)}.",
                id="eventlogs.W002",
            )
            continue
        is_valid, allowed = VALID[name]
        if not is_valid(value):
            shown = "wrong" if name in SECRETS else short(value)
            yield Error(
                f"EVENTLOGS[{name!r}] is {shown}. It must be {allowed}.",
                hint=f"Set EVENTLOGS[{name!r}] = {conf.DEFAULTS[name]!r}, which is the default, "
                "or another allowed value.",
                id="eventlogs.E001",
            )
        elif name == "HEALTH":
            yield from _check_limits(value)
        elif name == "CONTEXT":
            yield from _check_context(value)


def _check_context(sources: dict[Any, Any]) -> Iterable[CheckMessage]:
    for name, source in sources.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            yield Error(
                f"EVENTLOGS['CONTEXT'] has the name {short(name)}. A name has 1 to 100 letters, "
                f"digits and characters of _.:-",
                hint="Set EVENTLOGS['CONTEXT'] = {}, or use other names.",
                id="eventlogs.E001",
            )
        elif not is_source(source):
            yield Error(
                f"EVENTLOGS['CONTEXT'][{name!r}] is {short(source)}. It must be a function that "
                f"takes the request, not an async one, the dotted path to one, or None.",
                hint=f"Set EVENTLOGS['CONTEXT'][{name!r}] = None, and events have no {name}, or "
                f"another allowed value.",
                id="eventlogs.E001",
            )


def _check_limits(limits: dict[Any, Any]) -> Iterable[CheckMessage]:
    for name, value in limits.items():
        if name not in conf.HEALTH:
            yield Warning(
                f"EVENTLOGS['HEALTH'][{name!r}] is not a limit of eventlogs.",
                hint=f"Remove it, or rename it to one of {', '.join(conf.HEALTH)}.",
                id="eventlogs.W002",
            )
        elif isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            unit = "logs" if name == "MAX_PARKED" else "seconds"
            yield Error(
                f"EVENTLOGS['HEALTH'][{name!r}] is {short(value)}. It must be a number of {unit}, "
                f"0 or more.",
                hint=f"Set EVENTLOGS['HEALTH'][{name!r}] = {conf.HEALTH[name]}, which is the "
                "default, or another allowed value.",
                id="eventlogs.E001",
            )
