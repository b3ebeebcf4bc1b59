"""
System check of archives.

    E052  logs are archived, and the settings do not say where (with --database)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections

from eventlogs import conf
from eventlogs.checks.databases import holds_logs
from eventlogs.models import ArchivedLog


@register(Tags.database)
def check_archives(
    *, databases: Sequence[str] | None = None, **kwargs: Any
) -> Iterable[CheckMessage]:
    """Check that this process can read the archives of the logs in its databases."""
    if conf.archive_storage() is not None:
        return
    table = ArchivedLog._meta.db_table
    for alias in databases or ():
        if not holds_logs(alias) or table not in connections[alias].introspection.table_names():
            continue
        if ArchivedLog.objects.using(alias).exists():
            yield Error(
                f"DATABASES[{alias!r}] has archived logs, and EVENTLOGS['ARCHIVE_STORAGE'] is not "
                f"set: they cannot be read.",
                hint="Set EVENTLOGS['ARCHIVE_STORAGE'] to the alias in STORAGES that has the "
                "files.",
                id="eventlogs.E052",
            )
