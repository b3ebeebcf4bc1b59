"""
The table of unique values: which log a value belongs to.

An append whose events declare no unique value does not touch it.
"""

import django.db.models.deletion
from django.db import migrations, models

from eventlogs.fields import ExactCharField


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0005_lighter_appends")]

    operations = [
        migrations.CreateModel(
            name="UniqueValue",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("scope", ExactCharField(editable=False, max_length=100)),
                ("digest", models.UUIDField(editable=False)),
                ("log_type", ExactCharField(editable=False, max_length=63)),
                (
                    "log",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        editable=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="unique_values",
                        to="eventlogs.eventlog",
                    ),
                ),
            ],
            options={
                "base_manager_name": "objects",
                "indexes": [
                    models.Index(fields=["log", "scope"], name="eventlogs_uniquevalue_of_log")
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("scope", "digest"), name="eventlogs_uniquevalue_one_log_per_value"
                    )
                ],
            },
        ),
    ]
