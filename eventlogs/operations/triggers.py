"""
The triggers of a PostgreSQL database: whether they are there, enabled, and not replaced.

They refuse changes of events, fence the feed, and keep chained logs chained. The owner of the
tables can drop, disable or replace them; this finds it for as long as it lasts. The expected
functions are known by the SHA-256 of their bodies, and by whose rights they run with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from importlib import import_module
from typing import Final, NamedTuple

from django.apps import apps
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.operations.commands import command
from eventlogs.operations.verification import Finding, Scope
from eventlogs.stores.layouts import layout_of
from eventlogs.stores.made_for_tests import is_test_database

ROW, BEFORE, INSERT, DELETE, UPDATE, TRUNCATE = 1, 2, 4, 8, 16, 32  # of pg_trigger.tgtype


# Those that create functions and triggers, in their order.
MIGRATIONS: Final = (
    "0002_append_only_events",
    "0003_fence_of_the_feed",
    "0005_lighter_appends",
    "0010_chained_histories",
    "0011_erasing_logs",
    "0013_buckets",
    "0015_citus",
)
# Of a partition, for statements that name it: PostgreSQL copies only triggers FOR EACH ROW.
OF_A_PARTITION: Final = """
CREATE OR REPLACE TRIGGER eventlogs_event_refuse_insert
    BEFORE INSERT ON {partition}
    FOR EACH STATEMENT EXECUTE FUNCTION eventlogs_refuse_change();
ALTER TABLE {partition} ENABLE ALWAYS TRIGGER eventlogs_event_refuse_insert;
ALTER TABLE {partition} ENABLE ALWAYS TRIGGER eventlogs_event_refuse_change
"""
NOT_FOR_TESTS: Final = """
CREATE OR REPLACE TRIGGER eventlogs_event_refuse_truncate
    BEFORE TRUNCATE ON {partition}
    FOR EACH STATEMENT EXECUTE FUNCTION eventlogs_refuse_change();
ALTER TABLE {partition} ENABLE ALWAYS TRIGGER eventlogs_event_refuse_truncate
"""
PARTITIONS: Final = """
SELECT relid::regclass::text FROM pg_partition_tree('eventlogs_event') WHERE isleaf AND level > 0
"""


FENCE: Final = "eventlogs_event_fence"  # not in the layout with buckets


class Wanted(NamedTuple):
    """A trigger as the migrations create it."""

    name: str
    table: str
    function: str
    kind: int
    has_condition: bool = False


WANTED: Final = (
    Wanted(
        "eventlogs_event_refuse_change",
        "eventlogs_event",
        "eventlogs_refuse_change",
        ROW | BEFORE | DELETE | UPDATE,
    ),
    Wanted(
        "eventlogs_event_refuse_truncate",
        "eventlogs_event",
        "eventlogs_refuse_change",
        BEFORE | TRUNCATE,
    ),
    Wanted(FENCE, "eventlogs_event", "eventlogs_fence", BEFORE | INSERT),
    Wanted(
        "eventlogs_eventlog_keep_chain",
        "eventlogs_eventlog",
        "eventlogs_keep_chain",
        ROW | UPDATE,
        has_condition=True,
    ),
)
TRUNCATE_TRIGGER: Final = "eventlogs_event_refuse_truncate"  # not in databases made for tests

# SHA-256 of the bodies. Change one with the migration that replaces the function.
BODIES: Final = {
    "eventlogs_refuse_change": "fbfb83519e3a1b309bebb96f69b7d85f4735e40d7f0529e5ab50fd4e502f68f1",
    "eventlogs_fence": "90d40ffada4d321e234de5626ff9301eb4afd0aa4d56088508c1cba192d2f869",
    "eventlogs_keep_chain": "2b64a3f92d005e7ad05f34c036af7d9e252959ecea3eff1ff915261ea4036948",
    "eventlogs_erase_log": "a0e9e9ccbbdea5198ee98a6291df48efcbf6376d0295dc916b4286b3d80ff986",
    "eventlogs_append": "a4040240cc4169fe2b06bd88b3c7214ba4904b8ed6890df8ff643932a3235a43",
    "eventlogs_take_positions": "deaee2ed8341991e7b996d8c92b7c593efcec74526f70fcf158bf073362f3c17",
    "eventlogs_chain": "da774b02518ebbc5887681fa03980aa7825d5f1f1a431a4d8b4d5cf291ec46aa",
}
# Likewise of the condition of eventlogs_eventlog_keep_chain, as PostgreSQL writes it.
CONDITION: Final = "edf13a8461615a2c605fbef6f24765a539b8c7f95591b66c53a2db5014d315b2"

# What the migration wrote into the body of the fence: oids, and the sequence's name. Where they are
# not those of this database, e.g. after a restore, the function looks them up.
FACTS: Final = re.compile(
    r"(?<=\()\d+(?=::bigint OPERATOR)|\d+(?=::pg_catalog\.oid)|(?<=to_regclass\()'(?:[^']|'')*'"
)

# The triggers of the tables, and those of partitions of events.
TRIGGERS: Final = """
SELECT relid::regclass::text, relid = wanted.of::regclass, wanted.name, trigger.tgenabled::text,
       trigger.tgtype::integer, trigger.tgattr::text = '', function.proname::text,
       CASE WHEN trigger.tgqual IS NOT NULL
            THEN substring(pg_get_triggerdef(trigger.oid) FROM ' WHEN (.*) EXECUTE ') END,
       function.prosrc, function.prosecdef, function.proconfig IS NOT NULL
FROM unnest(%s::text[], %s::text[]) AS wanted (name, of)
CROSS JOIN LATERAL (SELECT wanted.of::regclass AS relid
                    UNION SELECT relid FROM pg_partition_tree(wanted.of::regclass)) AS tables
LEFT JOIN pg_trigger AS trigger ON trigger.tgrelid = relid AND trigger.tgname = wanted.name
LEFT JOIN pg_proc AS function ON function.oid = trigger.tgfoid
ORDER BY 2 DESC, 1, 3
"""
# Functions that no trigger calls. PUBLIC has the grantee 0, and may execute where there is no list.
FUNCTIONS: Final = """
SELECT wanted.name, prosrc, prosecdef, proconfig IS NOT NULL,
       EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner)))
               WHERE grantee = 0 AND privilege_type = 'EXECUTE')
FROM unnest(%s::text[], %s::text[]) AS wanted (name, arguments)
LEFT JOIN pg_proc ON oid = to_regprocedure(wanted.name || wanted.arguments)
"""
ARGUMENTS: Final = {
    "eventlogs_chain": "(bytea, bytea[])",
    "eventlogs_erase_log": "(uuid, text, integer, bytea, text, text)",
    "eventlogs_append": "(uuid, text, integer, bigint, jsonb, jsonb, text, bytea)",
    "eventlogs_take_positions": "(uuid, integer)",
}
NOT_OF_PUBLIC: Final = {"eventlogs_erase_log"}
# On Citus, operations/distribution.py gives it a search_path.
WITH_A_PATH: Final = {"eventlogs_append"}
# The owner's rights are part of what it does: all others run with those of their caller.
WITH_RIGHTS_OF_OWNER: Final = {"eventlogs_fence"}


def create_triggers(connection: BaseDatabaseWrapper) -> None:
    """
    Create all functions and triggers again, ENABLE ALWAYS, those of partitions included.

    Call it in a transaction, as the owner of the tables. It waits for open transactions that have
    appended, and appends wait for it.
    """
    with connection.schema_editor(atomic=False) as editor:
        for name in MIGRATIONS:
            import_module(f"eventlogs.migrations.{name}").install(apps, editor)
        if layout_of(connection) == "buckets":
            editor.execute(f"DROP TRIGGER {FENCE} ON eventlogs_event")
    _guard_partitions(connection)


def guard_events(connection: BaseDatabaseWrapper) -> None:
    """Create the triggers of a new table of events; it locks no other table."""
    refusing = import_module("eventlogs.migrations.0002_append_only_events")
    fencing = import_module("eventlogs.migrations.0003_fence_of_the_feed")
    make_fence(connection)
    with connection.cursor() as cursor:
        cursor.execute(fencing.TRIGGER)
        cursor.execute(refusing.NO_CHANGE)
        if not is_test_database(connection):
            cursor.execute(refusing.NO_TRUNCATE)
    _guard_partitions(connection)


def make_fence(connection: BaseDatabaseWrapper) -> None:
    """Make the function of the fence for the table and the sequence that are there now."""
    facts = import_module("eventlogs.migrations.0003_fence_of_the_feed").FACTS
    migration = import_module("eventlogs.migrations.0005_lighter_appends")
    with connection.cursor() as cursor:
        cursor.execute(facts)
        table, sequence, name = cursor.fetchone()
        cursor.execute(migration.function(table, sequence or 0, name or "''"))


def _guard_partitions(connection: BaseDatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute(PARTITIONS)
        for (partition,) in cursor.fetchall():
            cursor.execute(OF_A_PARTITION.format(partition=partition))
            if not is_test_database(connection):
                cursor.execute(NOT_FOR_TESTS.format(partition=partition))


class TriggerVerifier:
    """The triggers of PostgreSQL; other databases have none."""

    name = "triggers"

    def verify(self, scope: Scope) -> Iterator[Finding]:
        """Yield a finding for each trigger that is missing, disabled or not that of a migration."""
        connection = connections[scope.using]
        if connection.vendor != "postgresql":
            return
        absent = {FENCE} if layout_of(connection) == "buckets" else set()
        if is_test_database(connection):
            absent.add(TRUNCATE_TRIGGER)
        wanted = {each.name: each for each in WANTED if each.name not in absent}
        with connection.cursor() as cursor:
            cursor.execute(TRIGGERS, [list(wanted), [each.table for each in wanted.values()]])
            rows = cursor.fetchall()
            cursor.execute(FUNCTIONS, [list(ARGUMENTS), list(ARGUMENTS.values())])
            functions = cursor.fetchall()
        advice = f"run {command('triggers', using=scope.using)}, then find out who did this"
        found: set[str] = set()  # the triggers of tables that are not as they should be
        for (
            table,
            is_table,
            name,
            enabled,
            kind,
            for_all,
            function,
            condition,
            body,
            *rights,
        ) in rows:
            each = wanted[name]
            if not is_table and (name in found or each.kind == BEFORE | INSERT):
                # It was told once for the table. A partition has no fence: a trigger of its own
                # refuses what a fence would not see.
                continue
            problem = ""
            if enabled is None:
                problem = "is missing"
            elif enabled != "A":
                problem = "is disabled, or not ENABLE ALWAYS"
            elif function != each.function or _digest(body) != BODIES[each.function]:
                problem = "runs another function than that of eventlogs"
            elif _is_other(each.function, *rights):
                problem = "runs its function with other rights or settings"
            elif is_table and (
                kind != each.kind
                or not for_all
                or (condition is not None) != each.has_condition
                or (condition is not None and _digest(condition) != CONDITION)
            ):
                problem = "was replaced: it is called for other changes"
            if problem:
                found |= {name} if is_table else set()
                yield Finding("triggers", table, f"the trigger {name} {problem}: {advice}")
        for name, body, *rights, is_public in functions:
            if body is None:
                problem = "is missing"
            elif _digest(body) != BODIES[name]:
                problem = "was replaced"
            elif _is_other(name, *rights):
                problem = "was replaced: it runs with other rights or settings"
            elif is_public and name in NOT_OF_PUBLIC:
                problem = "may be executed by everybody"
            else:
                continue
            yield Finding("triggers", name, f"the function {name} {problem}: {advice}")


def _is_other(function: str, has_rights_of_owner: bool, has_settings: bool) -> bool:
    """Return whether a function is SECURITY DEFINER or has settings, and should not be so."""
    has_other_settings = has_settings and function not in WITH_A_PATH
    return has_rights_of_owner != (function in WITH_RIGHTS_OF_OWNER) or has_other_settings


def _digest(text: str) -> str:
    return sha256(FACTS.sub("", text).encode()).hexdigest()
