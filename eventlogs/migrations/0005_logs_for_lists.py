"""
Indexes for who looks for logs: those of a type, and one of which the end of the id is known.

Both are of columns that never change, so they cost when a log is created and not when it is
appended to, whose updates stay within the page (HOT).
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
        migrations.RunPython(
            add_index_of_ends, remove_index_of_ends, hints={"model_name": "eventlog"}
        ),
    ]
