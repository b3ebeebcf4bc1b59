"""The table of moves of logs between databases; see ``eventlogs/operations/moving``."""

from django.db import migrations, models

import eventlogs.fields


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0013_buckets")]

    operations = [
        migrations.CreateModel(
            name="LogMove",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("token", models.UUIDField(editable=False)),
                ("uuid", models.UUIDField(editable=False)),
                ("log_type", eventlogs.fields.ExactCharField(editable=False, max_length=63)),
                ("state", eventlogs.fields.ExactCharField(editable=False, max_length=10)),
                ("other", eventlogs.fields.ExactCharField(editable=False, max_length=255)),
                ("version", models.IntegerField(default=0, editable=False)),
                ("digest", models.BinaryField(null=True)),
                ("begun_at", models.DateTimeField(editable=False)),
                ("ended_at", models.DateTimeField(editable=False, null=True)),
                ("moved_by", eventlogs.fields.ExactCharField(editable=False, max_length=255)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("token",), name="eventlogs_logmove_one_per_token"
                    )
                ],
                "indexes": [models.Index(fields=["uuid", "id"], name="eventlogs_logmove_of_log")],
            },
        ),
    ]
