"""
Tables of the keys of subjects and of erased logs, and columns for the digests of chained histories.

The columns are NULL at first: PostgreSQL adds them without writing to the tables.
"""

from django.db import migrations, models

import eventlogs.fields


class Migration(migrations.Migration):
    dependencies = [
        ("eventlogs", "0008_stored_types"),
    ]

    operations = [
        migrations.CreateModel(
            name="ErasedLog",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("log_type", eventlogs.fields.ExactCharField(editable=False, max_length=63)),
                ("count", models.IntegerField(editable=False)),
                ("digest", models.BinaryField()),
                ("erased_by", eventlogs.fields.ExactCharField(editable=False, max_length=255)),
                ("reason", models.TextField(editable=False)),
                ("erased_at", models.DateTimeField(editable=False)),
            ],
            options={
                "base_manager_name": "objects",
            },
        ),
        migrations.AddField(
            model_name="event",
            name="digest",
            field=models.BinaryField(null=True),
        ),
        migrations.AddField(
            model_name="eventlog",
            name="head",
            field=models.BinaryField(null=True),
        ),
        migrations.CreateModel(
            name="SubjectKey",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("subject", eventlogs.fields.ExactCharField(editable=False, max_length=255)),
                ("wrapped", models.BinaryField(null=True)),
                ("wrapped_by", eventlogs.fields.ExactCharField(editable=False, max_length=100)),
                ("created_at", models.DateTimeField(editable=False)),
                ("destroyed_at", models.DateTimeField(editable=False, null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("subject",), name="eventlogs_subjectkey_one_per_subject"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="SubjectLog",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("key_id", models.UUIDField(editable=False)),
                ("log_id", eventlogs.fields.LogIdField(editable=False)),
            ],
            options={
                "indexes": [models.Index(fields=["log_id"], name="eventlogs_subjectlog_of_log")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("key_id", "log_id"), name="eventlogs_subjectlog_one_per_key_and_log"
                    )
                ],
            },
        ),
    ]
