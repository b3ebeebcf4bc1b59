"""An index for lists of the newest logs: not all ids sort by the time they were made."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0006_unique_values")]

    operations = [
        migrations.AddIndex(
            model_name="eventlog",
            index=models.Index(fields=["created_at", "id"], name="eventlogs_eventlog_by_creation"),
        ),
    ]
