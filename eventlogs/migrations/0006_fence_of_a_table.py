"""
Install the fence once more, as migration 0003 has it now.

A database that ran 0003 in an earlier form has the fence of all tables of the database, which
today's readers do not see: it gets today's function here. In any other this changes nothing. A
transaction that is under way meanwhile keeps the fence that it has put up: replacing the function
and its trigger waits for its end.
"""

from importlib import import_module
from typing import Any

from django.db import migrations


def install(apps: Any, schema_editor: Any) -> None:
    import_module("eventlogs.migrations.0003_fence_of_the_feed").install(apps, schema_editor)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0005_logs_for_lists")]

    operations = [
        migrations.RunPython(install, migrations.RunPython.noop, hints={"model_name": "event"})
    ]
