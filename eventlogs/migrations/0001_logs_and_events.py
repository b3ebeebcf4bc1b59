"""The tables of logs, events and idempotency keys."""

import django.db.models.deletion
from django.db import migrations, models

from eventlogs.fields import ExactCharField


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
            },
        ),
        migrations.CreateModel(
            name="Event",
            fields=[
                ("position", models.BigAutoField(primary_key=True, serialize=False)),
                ("index", models.IntegerField(editable=False)),
                ("type", ExactCharField(editable=False, max_length=255)),
                ("schema_version", models.IntegerField(editable=False)),
                ("data", models.JSONField(editable=False)),
                ("metadata", models.JSONField(editable=False)),
                (
                    "idempotency_key",
                    ExactCharField(editable=False, max_length=255, null=True),
                ),
                ("recorded_at", models.DateTimeField(editable=False)),
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
            ],
            options={
                "base_manager_name": "objects",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("log", "index"), name="eventlogs_event_one_per_log_and_index"
                    )
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
    ]
