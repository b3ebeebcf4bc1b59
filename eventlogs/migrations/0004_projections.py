"""The tables of projections: states, checkpoints, workers, and events that were not applied."""

from django.db import migrations, models

from eventlogs.fields import ExactCharField, LogIdField


class Migration(migrations.Migration):
    dependencies = [
        ("eventlogs", "0003_fence_of_the_feed"),
    ]

    operations = [
        migrations.CreateModel(
            name="ProjectionState",
            fields=[
                (
                    "name",
                    ExactCharField(
                        editable=False, max_length=100, primary_key=True, serialize=False
                    ),
                ),
                ("version", models.IntegerField(editable=False)),
                ("mode", ExactCharField(editable=False, max_length=10)),
                ("partitions", models.IntegerField(editable=False)),
                ("rebuilt_at", models.DateTimeField(editable=False, null=True)),
                ("rebuild_requested_at", models.DateTimeField(editable=False, null=True)),
                ("rebuild_error", models.TextField(default="", editable=False)),
                ("rebuild_version", models.IntegerField(editable=False, null=True)),
                ("rebuild_started_at", models.DateTimeField(editable=False, null=True)),
                ("rebuild_reached", models.UUIDField(editable=False, null=True)),
                ("rebuild_done", models.BigIntegerField(default=0, editable=False)),
                ("rebuild_total", models.BigIntegerField(default=0, editable=False)),
                ("rebuild_applied", models.BigIntegerField(default=0, editable=False)),
            ],
            options={
                "verbose_name": "projection",
                "permissions": [
                    ("operate_projections", "Can retry, skip and rebuild in projections")
                ],
            },
        ),
        migrations.CreateModel(
            name="ProjectionWorker",
            fields=[
                (
                    "name",
                    ExactCharField(
                        editable=False, max_length=100, primary_key=True, serialize=False
                    ),
                ),
                ("projections", models.JSONField(editable=False)),
                ("seen_until", models.DateTimeField(editable=False)),
                ("declared_at", models.DateTimeField(editable=False, null=True)),
                ("ended_at", models.DateTimeField(editable=False, null=True)),
            ],
        ),
        migrations.CreateModel(
            name="AppliedVersion",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("projection", ExactCharField(editable=False, max_length=100)),
                ("log_id", LogIdField(editable=False)),
                ("version", models.IntegerField(editable=False)),
                ("made_by", models.IntegerField(default=1, editable=False)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("projection", "log_id"), name="eventlogs_appliedversion_one_per_log"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Checkpoint",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("projection", ExactCharField(editable=False, max_length=100)),
                ("is_rebuild", models.BooleanField(default=False, editable=False)),
                ("partition", models.IntegerField(editable=False)),
                ("partitions", models.IntegerField(editable=False)),
                ("position", models.BigIntegerField(default=0, editable=False)),
                ("token", models.BigIntegerField(default=0, editable=False)),
                (
                    "owner",
                    ExactCharField(default="", editable=False, max_length=100),
                ),
                ("leased_until", models.DateTimeField(editable=False, null=True)),
                ("applied", models.BigIntegerField(default=0, editable=False)),
                ("rate", models.FloatField(default=0, editable=False)),
                ("moved_at", models.DateTimeField(editable=False, null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("projection", "is_rebuild", "partition"),
                        name="eventlogs_checkpoint_one_per_partition",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ParkedEvent",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("projection", ExactCharField(editable=False, max_length=100)),
                ("is_rebuild", models.BooleanField(default=False, editable=False)),
                ("log_id", LogIdField(editable=False)),
                ("index", models.IntegerField(editable=False)),
                ("position", models.BigIntegerField(editable=False)),
                ("type", ExactCharField(editable=False, max_length=255)),
                ("schema_version", models.IntegerField(default=1, editable=False)),
                ("attempts", models.IntegerField(default=0, editable=False)),
                ("retry_at", models.DateTimeField(editable=False, null=True)),
                ("awaits", ExactCharField(default="", editable=False, max_length=32)),
                (
                    "error",
                    ExactCharField(default="", editable=False, max_length=200),
                ),
                (
                    "handler",
                    ExactCharField(default="", editable=False, max_length=200),
                ),
                ("details", models.TextField(default="", editable=False)),
                ("first_failed_at", models.DateTimeField(editable=False)),
                ("failed_at", models.DateTimeField(editable=False)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("projection", "is_rebuild", "log_id"),
                        name="eventlogs_parkedevent_one_per_log",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="SkippedEvent",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("projection", ExactCharField(editable=False, max_length=100)),
                ("log_id", LogIdField(editable=False)),
                ("index", models.IntegerField(editable=False)),
                ("position", models.BigIntegerField(editable=False)),
                ("type", ExactCharField(editable=False, max_length=255)),
                (
                    "error",
                    ExactCharField(default="", editable=False, max_length=200),
                ),
                ("skipped_at", models.DateTimeField(editable=False)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("projection", "position"),
                        name="eventlogs_skippedevent_skipped_once",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ProjectionAction",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("projection", ExactCharField(editable=False, max_length=100)),
                ("action", ExactCharField(editable=False, max_length=20)),
                ("by", ExactCharField(default="", editable=False, max_length=200)),
                ("at", models.DateTimeField(editable=False)),
                ("log_id", LogIdField(editable=False, null=True)),  # type: ignore[misc]
                ("index", models.IntegerField(editable=False, null=True)),
                ("count", models.BigIntegerField(editable=False, null=True)),
                ("seconds", models.FloatField(editable=False, null=True)),
                ("note", models.TextField(default="", editable=False)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["projection", "id"], name="eventlogs_action_of_projection")
                ],
            },
        ),
    ]
