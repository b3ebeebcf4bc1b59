"""The rows of a read model: loaded for a batch at once, and written at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import models

from eventlogs.ids import LogId


def load(model: type[models.Model], log_ids: Iterable[LogId], using: str) -> dict[LogId, Any]:
    """Return the row of each log; where there is none yet, a new one."""
    wanted = list(dict.fromkeys(log_ids))
    found = {row.pk: row for row in model._base_manager.using(using).filter(pk__in=wanted)}
    return {log_id: found.get(log_id) or model(pk=log_id) for log_id in wanted}


def write(model: type[models.Model], rows: list[Any], using: str) -> None:
    """Insert or update ``rows``."""
    # The date a row was added on is not that of its update.
    fields = [
        field.name
        for field in model._meta.concrete_fields
        if not field.primary_key and not getattr(field, "auto_now_add", False)
    ]
    manager = model._base_manager.using(using)
    if fields:
        key = model._meta.pk.name
        manager.bulk_create(
            rows, update_conflicts=True, unique_fields=[key], update_fields=fields, batch_size=500
        )
    else:
        manager.bulk_create(rows, ignore_conflicts=True, batch_size=500)
