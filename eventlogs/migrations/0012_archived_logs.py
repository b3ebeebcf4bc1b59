"""
Tables of archived logs, of the files that they are in, and of logs that were brought back.

No function is new: the owner takes the events of a log out under the mark of migration 0011, which
its trigger lets pass for the owner alone; see ``eventlogs/operations/archiving``.
"""

import django.db.models.deletion
from django.db import migrations, models

import eventlogs.fields


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0011_erasing_logs")]

    operations = [
        migrations.CreateModel(
            name="ArchiveFile",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", eventlogs.fields.ExactCharField(editable=False, max_length=255)),
                ("log_type", eventlogs.fields.ExactCharField(editable=False, max_length=63)),
                (
                    "state",
                    eventlogs.fields.ExactCharField(
                        default="writing", editable=False, max_length=10
                    ),
                ),
                ("logs", models.IntegerField(default=0, editable=False)),
                ("events", models.BigIntegerField(default=0, editable=False)),
                ("size", models.BigIntegerField(default=0, editable=False)),
                ("digest", models.BinaryField(null=True)),
                ("created_at", models.DateTimeField(editable=False)),
                ("replaced_at", models.DateTimeField(editable=False, null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("name",), name="eventlogs_archivefile_one_per_name"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ArchivedLog",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("log_type", eventlogs.fields.ExactCharField(editable=False, max_length=63)),
                ("version", models.IntegerField(editable=False)),
                ("created_at", models.DateTimeField(editable=False)),
                ("updated_at", models.DateTimeField(editable=False)),
                ("head", models.BinaryField(null=True)),
                ("digest", models.BinaryField()),
                ("last_position", models.BigIntegerField(editable=False)),
                ("frames", models.JSONField(editable=False)),
                ("archived_at", models.DateTimeField(editable=False)),
                ("archived_by", eventlogs.fields.ExactCharField(editable=False, max_length=255)),
                (
                    "archive",
                    models.ForeignKey(
                        editable=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="archived_logs",
                        to="eventlogs.archivefile",
                    ),
                ),
            ],
            options={
                "base_manager_name": "objects",
                "indexes": [
                    models.Index(fields=["log_type", "id"], name="eventlogs_archivedlog_of_type")
                ],
            },
        ),
        migrations.CreateModel(
            name="ReturnedLog",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("returned_at", models.DateTimeField(editable=False)),
            ],
        ),
    ]
