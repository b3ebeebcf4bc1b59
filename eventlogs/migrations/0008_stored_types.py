"""
The table of stored event types, and its first rows, read from all events.

It reads the table of events once and locks nothing. Events that processes of the release before
append meanwhile may be missing; ``manage.py eventlogs events --exact`` finds them.
"""

from typing import Any

from django.db import migrations, models

import eventlogs.fields


def fill(apps: Any, schema_editor: Any) -> None:
    using = schema_editor.connection.alias
    event, stored = apps.get_model("eventlogs", "Event"), apps.get_model("eventlogs", "StoredType")
    found: Any = models.QuerySet(event, using=using).order_by()
    names = found.values_list("log_type", "type", "schema_version").distinct()
    stored.objects.using(using).bulk_create(
        stored(log_type=log_type, type=name, schema_version=version)
        for log_type, name, version in names
    )


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0007_logs_by_creation")]

    operations = [
        migrations.CreateModel(
            name="StoredType",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("log_type", eventlogs.fields.ExactCharField(editable=False, max_length=63)),
                ("type", eventlogs.fields.ExactCharField(editable=False, max_length=255)),
                ("schema_version", models.IntegerField(editable=False)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("log_type", "type", "schema_version"),
                        name="eventlogs_storedtype_noted_once",
                    )
                ],
            },
        ),
        migrations.RunPython(fill, migrations.RunPython.noop, hints={"model_name": "storedtype"}),
    ]
