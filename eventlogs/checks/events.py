"""
System checks of event classes and upcasters.

    E006  two event classes claim one name, or an upcaster is missing or superfluous
    E007  the fields of an event class cannot be encoded, or are unique in a wrong way
    E048  two fields of one scope are normalized in different ways
    E050  stored events have a type, or a version, that no class here can decode (with --database
          and --deploy)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections

from eventlogs.aggregates import aggregates
from eventlogs.checks.databases import holds_logs
from eventlogs.events.codec import codec_for
from eventlogs.events.registry import registry
from eventlogs.events.unique_values import by_scope, declared
from eventlogs.exceptions import RegistrationError
from eventlogs.models import StoredType
from eventlogs.stores.stored_types import stored_types


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
        by_scope(field for _, found in declared() for field in found)
    except RegistrationError as error:
        message, hint = _split(str(error))
        yield Error(message, hint=hint, id="eventlogs.E048")


@register(Tags.database, deploy=True)
def check_stored_types(
    databases: Iterable[str] | None = None, **kwargs: Any
) -> Iterable[CheckMessage]:
    """
    Check that every event type and version that is stored can be decoded.

    It reads the small table of stored types, not the events. Log types that no aggregate here has
    may be another project's: they are left out.
    """
    ours = {each.log_type for each in aggregates}
    for alias in databases or ():
        if not holds_logs(alias):
            continue
        if StoredType._meta.db_table not in connections[alias].introspection.table_names():
            continue  # not migrated yet
        for log_type, name, version in sorted(stored_types(alias)):
            if log_type not in ours:
                continue
            problem = _why_not_decoded(name, version)
            if problem is not None:
                message, hint = problem
                yield Error(
                    f"DATABASES[{alias!r}] has {log_type} events of type {name!r}, version "
                    f"{version}: {message}.",
                    hint=hint,
                    id="eventlogs.E050",
                )


ERASED = "If they were erased, `manage.py eventlogs events --exact` corrects the list."


def _why_not_decoded(name: str, version: int) -> tuple[str, str] | None:
    """Return why events of a name and version cannot be decoded, and what to do; or None."""
    event_type = registry.by_name(name)
    if event_type is None:
        if registry.is_retired(name):
            return None
        return (
            "no class is registered for it",
            f"Restore its class, name it in the aliases of the class that replaced it, or declare "
            f"retired_event({name!r}). {ERASED}",
        )
    if version > event_type.version:
        return (
            f"its class is of version {event_type.version}",
            f"Deploy the release that has version {version}, or a later one. {ERASED}",
        )
    for each in range(version, event_type.version):
        if registry.upcaster(event_type.names, each) is None:
            return (
                f"no upcaster takes it from version {each} to {each + 1}",
                f"Add @upcaster({event_type.name!r}, from_version={each}).",
            )
    return None


def _split(text: str) -> tuple[str, str]:
    """Return the text of an error, and its last sentence, which says what to do."""
    problem, _, hint = text.rpartition(". ")
    return f"{problem}.", hint
