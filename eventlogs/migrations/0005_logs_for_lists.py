"""
Indexes for lists of logs and events.

Logs are found by their type, and by the end of their id. Both are of columns that never change,
so they cost when a log is created and not when it is appended to, whose updates stay within the
page (HOT).

Events are found by the time when they were recorded. Positions do not tell: an import or a
restore gives old events new ones. An append adds to the end of this index, about a microsecond
for each event; see docs/storage.md.
"""

from typing import Any

from django.db import migrations, models

# As eventlogs/admin/search.py asks for it. SQLite has no reverse(), and looks through.
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
    dependencies = [
        ("eventlogs", "0004_projections"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="eventlog",
            index=models.Index(fields=["log_type", "id"], name="eventlogs_eventlog_of_type"),
        ),
        migrations.AddIndex(
            model_name="event",
            index=models.Index(fields=["recorded_at", "position"], name="eventlogs_event_by_time"),
        ),
        migrations.RunPython(
            add_index_of_ends, remove_index_of_ends, hints={"model_name": "eventlog"}
        ),
    ]
