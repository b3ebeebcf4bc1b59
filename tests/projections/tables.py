"""Read models of one test module: their tables, and projections that only its tests declare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections, models

from eventlogs.models import Checkpoint
from eventlogs.projections.base import BaseProjection, projections
from eventlogs.stores.participants import registered


def checkpoint(projection: type[BaseProjection], *positions: int) -> None:
    """Store the positions that the partitions of a projection have reached."""
    Checkpoint.objects.filter(projection=projection.name).delete()
    for number, position in enumerate(positions):
        Checkpoint.objects.create(
            projection=projection.name,
            partition=number,
            partitions=len(positions),
            position=position,
        )


@contextmanager
def made(*wanted: type[models.Model], using: str = "default") -> Iterator[None]:
    """Make the tables of models, in their order, and drop them in the end, shadows included."""
    connection = connections[using]
    with connection.schema_editor() as editor:
        for model in wanted:
            editor.create_model(model)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            for model in reversed(wanted):
                for table in (f"{model._meta.db_table}__rebuild", model._meta.db_table):
                    cursor.execute(f"DROP TABLE IF EXISTS {connection.ops.quote_name(table)}")


class Known:
    """Projections that a fixture declares, because inline ones take part in every append."""

    def __init__(self, *classes: type[BaseProjection]) -> None:
        self.classes = {each.name: each for each in classes}
        self.registered = {
            name: registered.pop(name) for name in self.classes if name in registered
        }
        for name in self.classes:
            del projections[name]

    @contextmanager
    def declared(self, *names: str) -> Iterator[None]:
        """Declare some of them, by default all."""
        chosen = names or tuple(self.classes)
        projections.update({name: self.classes[name] for name in chosen})
        registered.update({n: f for n, f in self.registered.items() if n in chosen})
        try:
            yield
        finally:
            for name in chosen:
                projections.pop(name, None)
                registered.pop(name, None)
