"""
The counters of the layout with buckets, see ``eventlogs/stores/buckets.py``.

The table has no rows in the other layout. In PostgreSQL, a function takes positions in the
statement that appends: the UPDATE of its counter waits for the transaction that holds it, and then
reads its newest number.
"""

from typing import Any

from django.db import migrations, models

TAKE = """
CREATE OR REPLACE FUNCTION eventlogs_take_positions(log uuid, count integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    own integer := pg_catalog.get_byte(pg_catalog.uuid_send(log), 15) OPERATOR(pg_catalog.&) 63;
    first bigint;
BEGIN
    UPDATE eventlogs_bucket
    SET number = greatest(
            number,
            (SELECT pg_catalog.max(visible.number) FROM eventlogs_bucket AS visible),
            ((extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.-) 1735689600)
             OPERATOR(pg_catalog.*) 8000)::bigint OPERATOR(pg_catalog.-) 1
        ) OPERATOR(pg_catalog.+) count
    WHERE bucket OPERATOR(pg_catalog.=) own
    RETURNING number OPERATOR(pg_catalog.-) count OPERATOR(pg_catalog.+) 1 INTO first;
    IF first IS NULL THEN
        RAISE EXCEPTION 'this database has no counters of buckets' USING ERRCODE = 'EV001',
            HINT = 'Set EVENTLOGS["LAYOUT"] = "fence", or run manage.py eventlogs layout.';
    END IF;
    RETURN first OPERATOR(pg_catalog.*) 64 OPERATOR(pg_catalog.+) own;
END
$$
"""

# Many updates of few rows: with room in their pages, none of them touches the index.
ROOM = "ALTER TABLE eventlogs_bucket SET (fillfactor = 10, autovacuum_vacuum_scale_factor = 0)"


def install(apps: Any, schema_editor: Any) -> None:
    connection = schema_editor.connection
    if connection.vendor == "postgresql":
        schema_editor.execute(TAKE, params=None)
        schema_editor.execute(ROOM, params=None)


def remove(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("DROP FUNCTION eventlogs_take_positions", params=None)


class Migration(migrations.Migration):
    dependencies = [("eventlogs", "0012_archived_logs")]

    operations = [
        migrations.CreateModel(
            name="Bucket",
            fields=[
                ("bucket", models.SmallIntegerField(primary_key=True, serialize=False)),
                ("number", models.BigIntegerField()),
            ],
        ),
        migrations.RunPython(install, remove, hints={"model_name": "event"}),
    ]
