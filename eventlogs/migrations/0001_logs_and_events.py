"""
The tables of logs, events and idempotency keys, and their indexes.

Logs are found by their type, and by the end of their id. Both indexes are of columns that never
change: creating a log writes to them, and appending to it does not, so that its updates stay within
the page (HOT).

Events are found by the time when they were recorded. Positions do not tell: an import or a
restore gives old events new ones. An append adds to the end of this index, about a microsecond
for each event; see docs/storage.md.
"""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models

from eventlogs.fields import ExactCharField

# The expression of eventlogs/admin/log_search.py. SQLite has no reverse(), and scans the logs.
BY_END = """
CREATE INDEX eventlogs_eventlog_by_end_of_id
ON eventlogs_eventlog (reverse(replace(id::text, '-', '')) text_pattern_ops)
"""


def add_index_of_ends(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(BY_END)


def remove_index_of_ends(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("DROP INDEX IF EXISTS eventlogs_eventlog_by_end_of_id")


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="EventLog",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("log_type", ExactCharField(editable=False, max_length=63)),
                ("version", models.IntegerField(editable=False)),
                ("created_at", models.DateTimeField(editable=False)),
                ("updated_at", models.DateTimeField(editable=False)),
            ],
            options={
                "base_manager_name": "objects",
                "verbose_name": "event log",
                "verbose_name_plural": "event logs",
                "indexes": [
                    models.Index(fields=["log_type", "id"], name="eventlogs_eventlog_of_type")
                ],
            },
        ),
        migrations.CreateModel(
            name="Event",
            # Columns of a fixed width come first: PostgreSQL pads none of them then, and finds
            # them without reading those before. It saves about as much as log_type takes.
            fields=[
                ("position", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "log",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        editable=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="events",
                        to="eventlogs.eventlog",
                    ),
                ),
                ("recorded_at", models.DateTimeField(editable=False)),
                ("index", models.IntegerField(editable=False)),
                ("schema_version", models.IntegerField(editable=False)),
                ("type", ExactCharField(editable=False, max_length=255)),
                ("log_type", ExactCharField(editable=False, max_length=63)),
                (
                    "idempotency_key",
                    ExactCharField(editable=False, max_length=255, null=True),
                ),
                ("metadata", models.JSONField(editable=False)),
                ("data", models.JSONField(editable=False)),
            ],
            options={
                "base_manager_name": "objects",
                "permissions": [("view_payload", "Can see payloads, metadata and states")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("log", "index"), name="eventlogs_event_one_per_log_and_index"
                    )
                ],
                "indexes": [
                    models.Index(fields=["recorded_at", "position"], name="eventlogs_event_by_time")
                ],
            },
        ),
        migrations.CreateModel(
            name="IdempotencyKey",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("log_type", ExactCharField(editable=False, max_length=63)),
                ("key", ExactCharField(editable=False, max_length=255)),
                ("first_index", models.IntegerField(editable=False)),
                ("count", models.IntegerField(editable=False)),
                ("fingerprint", models.BinaryField()),
                ("created_at", models.DateTimeField(editable=False)),
                (
                    "log",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        editable=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="idempotency_keys",
                        to="eventlogs.eventlog",
                    ),
                ),
            ],
            options={
                "base_manager_name": "objects",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("log_type", "key"),
                        name="eventlogs_idempotencykey_used_once_per_log_type",
                    )
                ],
            },
        ),
        migrations.RunPython(
            add_index_of_ends, remove_index_of_ends, hints={"model_name": "eventlog"}
        ),
    ]
