"""
Shadow tables: where the rows of a rebuild are made, until they take the place of the old ones.

In PostgreSQL the tables are swapped: the old one is dropped, the new one and its indexes get the
old names. That needs an exclusive lock, and no time that grows with the table. The lock is waited
for a second at most, because other statements wait meanwhile. If other objects depend on the
table that would be lost (a view, a foreign key that points to it, a trigger, grants for
columns), and on SQLite, the rows are moved instead, in the same transaction: readers see the old
ones until it commits. So it is where REPEATABLE READ is the default: a snapshot from before the
rebuild would find the new table, and none of its rows.

On MariaDB and MySQL each statement about a table commits by itself, and what the transaction did
before. There the rows are moved in a transaction, and the shadow table is removed after it
(``commits_by_itself``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final

from django.apps.registry import Apps
from django.db import OperationalError, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import truncate_name

LOCK_TIMEOUT: Final = 1_000  # milliseconds
PATIENCE: Final = 10  # seconds, on MariaDB and MySQL
MAX_NAME: Final = 63  # bytes, in PostgreSQL

_models: dict[type[models.Model], type[models.Model]] = {}

# Objects that would be lost, or would stay with the old table. One row with one boolean.
HANGS_ON = """
SELECT EXISTS (SELECT FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
               WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = %(table)s::regclass)
    OR EXISTS (SELECT FROM pg_depend
               WHERE classid = 'pg_proc'::regclass AND refobjid = %(table)s::regclass)
    OR EXISTS (SELECT FROM pg_depend
               WHERE refclassid = 'pg_type'::regclass AND deptype = 'n'
                 AND refobjid = (SELECT reltype FROM pg_class WHERE oid = %(table)s::regclass))
    OR EXISTS (SELECT FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
               WHERE d.classid = 'pg_class'::regclass AND d.refobjid = %(table)s::regclass
                 AND d.deptype = 'a')
    OR EXISTS (SELECT FROM pg_statistic_ext WHERE stxrelid = %(table)s::regclass)
    OR EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = %(table)s::regclass)
    OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = %(table)s::regclass AND NOT tgisinternal)
    OR EXISTS (SELECT FROM pg_policy WHERE polrelid = %(table)s::regclass)
    OR EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = %(table)s::regclass)
    OR EXISTS (SELECT FROM pg_inherits
               WHERE %(table)s::regclass IN (inhrelid, inhparent))
    OR EXISTS (SELECT FROM pg_attribute
               WHERE attrelid = %(table)s::regclass AND attacl IS NOT NULL)
    OR (SELECT relkind <> 'r' OR reloptions IS NOT NULL OR relrowsecurity OR relreplident <> 'd'
            OR relpersistence <> 'p' OR reltablespace <> 0 OR NOT pg_has_role(relowner, 'USAGE')
        FROM pg_class WHERE oid = %(table)s::regclass)
    OR current_setting('default_transaction_isolation') IN ('repeatable read', 'serializable')
"""

# What LIKE does not copy: the foreign keys of a table, and the rest, as statements for another
# one: its comment, its grants (and no others) and its owner. A sequence has such, too.
FOREIGN_KEYS = """
SELECT format('ALTER TABLE %%I ADD CONSTRAINT %%I %%s', %(shadow)s::text, conname,
              pg_get_constraintdef(oid))
FROM pg_constraint WHERE contype = 'f' AND conrelid = %(table)s::regclass ORDER BY conname
"""
MYSQL_FOREIGN_KEYS = """
SELECT column_name, referenced_table_name, referenced_column_name
FROM information_schema.key_column_usage
WHERE table_schema = DATABASE() AND table_name = %s AND referenced_table_name IS NOT NULL
ORDER BY constraint_name
"""
OWN = """
SELECT format('COMMENT ON %%s %%I IS %%L', %(kind)s::text, %(shadow)s::text,
              obj_description(%(table)s::regclass, 'pg_class'))
WHERE obj_description(%(table)s::regclass, 'pg_class') IS NOT NULL
UNION ALL
SELECT format('REVOKE ALL ON %%s %%I FROM %%s', %(kind)s::text, %(shadow)s::text,
              CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee))
              END)
FROM pg_class, aclexplode(relacl) AS acl
WHERE oid = %(new)s::regclass AND acl.grantee <> relowner
UNION ALL
SELECT format('GRANT %%s ON %%s %%I TO %%s%%s', acl.privilege_type, %(kind)s::text,
              %(shadow)s::text,
              CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee))
              END,
              CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class, aclexplode(relacl) AS acl
WHERE oid = %(table)s::regclass AND acl.grantee <> relowner
UNION ALL
SELECT format('ALTER TABLE %%I OWNER TO %%I', %(shadow)s::text, pg_get_userbyid(relowner))
FROM pg_class
WHERE oid = %(table)s::regclass AND pg_get_userbyid(relowner) <> current_user
  AND %(kind)s::text = 'TABLE'
"""
# Whether a foreign key points to a table.
REFERENCES = {
    "postgresql": (
        "SELECT EXISTS (SELECT FROM pg_constraint"
        " WHERE contype = 'f' AND confrelid = %(quoted)s::regclass)"
    ),
    "sqlite": (
        "SELECT EXISTS (SELECT 1 FROM sqlite_master AS m, pragma_foreign_key_list(m.name) AS f"
        """ WHERE m.type = 'table' AND f."table" = %(table)s COLLATE NOCASE)"""
    ),
    "mysql": (
        "SELECT EXISTS (SELECT * FROM information_schema.key_column_usage"
        " WHERE referenced_table_schema = DATABASE() AND referenced_table_name = %(table)s)"
    ),
}
# Its indexes, each with its definition without its name: two tables made alike have the same.
INDEXES = """
SELECT index.relname, indisunique, indisprimary,
       regexp_replace(pg_get_indexdef(indexrelid), '^.*? USING ', '')
FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid
WHERE indrelid = %(table)s::regclass
ORDER BY 2, 3, 4, index.oid
"""
# The definition of a table, without names that must be unique: a row for each part.
SHAPE = {
    "postgresql": """
SELECT 'column', attname::text, format_type(atttypid, atttypmod), attnotnull,
       attgenerated::text || attidentity::text, attcollation::bigint,
       coalesce(pg_get_expr(adbin, adrelid), '')
FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
WHERE attrelid = %(quoted)s::regclass AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraint', contype::text, replace(pg_get_constraintdef(oid), ' NOT VALID', ''),
       condeferrable, '', 0, ''
FROM pg_constraint WHERE conrelid = %(quoted)s::regclass AND contype IN ('c', 'f', 'p', 'u', 'x')
UNION ALL
SELECT 'index', '', regexp_replace(pg_get_indexdef(indexrelid), '^.*? USING ', ''),
       indisunique, '', 0, ''
FROM pg_index WHERE indrelid = %(quoted)s::regclass
ORDER BY 1, 2, 3, 4
""",
    "sqlite": """
SELECT substr(sql, instr(sql, '(')) FROM sqlite_master WHERE type = 'table' AND name = %(table)s
""",
    "mysql": """
SELECT 'column', ordinal_position, column_name, column_type, collation_name, is_nullable,
       column_default, extra
FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = %(table)s
UNION ALL
SELECT 'index', seq_in_index, column_name, index_name, collation, non_unique, sub_part, index_type
FROM information_schema.statistics WHERE table_schema = DATABASE() AND table_name = %(table)s
ORDER BY 1, 2, 3, 4
""",
}


def shadow_of(model: type[models.Model]) -> type[models.Model]:
    """
    Return a model of the same rows in the shadow table.

    It is a proxy of the model, so rows have its methods and properties, in a registry of its
    own, so that no other code finds it.
    """
    shadow = _models.get(model)
    if shadow is None:
        meta = type("Meta", (), {"proxy": True, "app_label": model._meta.app_label, "apps": Apps()})
        namespace = {"__module__": model.__module__, "Meta": meta}
        shadow = type(f"{model.__name__}Shadow", (model,), namespace)
        # Generated columns are not returned: RETURNING would name the model's table.
        shadow._meta.db_returning_fields = []
        shadow._meta.db_table = truncate_name(f"{model._meta.db_table}__rebuild", MAX_NAME)
        _models[model] = shadow
    return shadow


def exists(model: type[models.Model], using: str) -> bool:
    """Return whether there is a shadow table."""
    connection = connections[using]
    with connection.cursor() as cursor:
        names = connection.introspection.table_names(cursor)
    return shadow_of(model)._meta.db_table in names


def is_alike(model: type[models.Model], using: str) -> bool:
    """Return whether the shadow table exists and is like the model's, also after a migration."""
    if not exists(model, using):
        return False
    connection = connections[using]
    shapes = []
    with connection.cursor() as cursor:
        for each in (model, shadow_of(model)):
            names = {"table": each._meta.db_table, "quoted": _quoted(connection, each)}
            cursor.execute(SHAPE[connection.vendor], names)
            shapes.append(cursor.fetchall())
    return bool(shapes[0] == shapes[1])


def owner(model: type[models.Model], using: str) -> str | None:
    """Return the role that owns the model's table; None where a database has no owners."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass(%s)",
            [_quoted(connection, model)],
        )
        role: str | None
        [role] = cursor.fetchone() or [None]
    return role


def drop(model: type[models.Model], using: str) -> None:
    """Remove the shadow table, if there is one."""
    connection = connections[using]
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {_quoted(connection, shadow_of(model))}")


def create(model: type[models.Model], using: str) -> None:
    """Make an empty shadow table, like that of the model."""
    connection = connections[using]
    table, shadow = model._meta.db_table, shadow_of(model)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                f"CREATE TABLE {_quoted(connection, shadow)} "
                f"(LIKE {_quoted(connection, model)} INCLUDING ALL)"
            )
            names = {"table": _quoted(connection, model), "shadow": shadow._meta.db_table}
            cursor.execute(FOREIGN_KEYS, names)
            for (statement,) in cursor.fetchall():
                cursor.execute(statement)
            return
        if connection.vendor == "mysql":
            new = _quoted(connection, shadow)
            cursor.execute(f"CREATE TABLE {new} LIKE {_quoted(connection, model)}")
            cursor.execute(MYSQL_FOREIGN_KEYS, [table])
            for names in cursor.fetchall():
                column, other, key = map(connection.ops.quote_name, names)
                cursor.execute(
                    f"ALTER TABLE {new} ADD FOREIGN KEY ({column}) REFERENCES {other} ({key})"
                )
            return
        cursor.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = %s", [table])
        (sql,) = cursor.fetchone()
        _, _, columns = sql.partition("(")
        cursor.execute(f"CREATE TABLE {_quoted(connection, shadow)} ({columns}")


def swap(model: type[models.Model], using: str) -> None:
    """
    Replace the model's rows by those of the shadow table, and remove the shadow table.

    Call it in a transaction. In PostgreSQL it raises OperationalError if the lock is not granted
    in time. Where statements about tables commit, the shadow table stays: ``drop`` it afterwards.
    """
    connection = connections[using]
    shadow = shadow_of(model)
    names = {"table": _quoted(connection, model), "shadow": shadow._meta.db_table}
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(HANGS_ON, names)
            may_swap = cursor.fetchone() == (False,) and not _keeps_snapshots(connection)
            # A migration may have changed the old table meanwhile: its changes must stay.
            if may_swap and is_alike(model, using):
                _swap_tables(connection, cursor, model, shadow, names)
                return
        _move_rows(connection, cursor, model, shadow)


def _keeps_snapshots(connection: BaseDatabaseWrapper) -> bool:
    """Return whether transactions here are stricter than READ COMMITTED by default."""
    read_committed = 2  # of psycopg.IsolationLevel, which Django stores as an int
    return int(getattr(connection, "isolation_level", None) or read_committed) > read_committed


def _move_rows(
    connection: BaseDatabaseWrapper,
    cursor: Any,
    model: type[models.Model],
    shadow: type[models.Model],
) -> None:
    quote = connection.ops.quote_name
    old, new = _quoted(connection, model), _quoted(connection, shadow)
    key = quote(str(model._meta.pk.column))
    others = [
        quote(str(field.column))
        for field in model._meta.concrete_fields
        if not field.generated and not field.primary_key
    ]
    columns = ", ".join([key, *others])
    rows = f"INSERT INTO {old} ({columns}) SELECT {columns} FROM {new}"
    cursor.execute(REFERENCES[connection.vendor], {"table": model._meta.db_table, "quoted": old})
    if cursor.fetchone()[0]:
        # A row that stays is never deleted, not even for a moment: a reference could cascade.
        cursor.execute(f"DELETE FROM {old} WHERE {key} NOT IN (SELECT {key} FROM {new})")
        if connection.vendor == "mysql":
            changes = ", ".join(f"{old}.{each} = {new}.{each}" for each in others)
            if others:
                cursor.execute(f"UPDATE {old} JOIN {new} USING ({key}) SET {changes}")
            cursor.execute(f"{rows} WHERE {key} NOT IN (SELECT {key} FROM {old})")
            return
        changes = ", ".join(f"{each} = excluded.{each}" for each in others)
        action = f"UPDATE SET {changes}" if others else "NOTHING"
        # Without WHERE, SQLite parses ON as that of a join.
        cursor.execute(f"{rows} WHERE true ON CONFLICT ({key}) DO {action}")
    else:
        cursor.execute(f"DELETE FROM {old}")
        cursor.execute(rows)
    if not commits_by_itself(connection):
        cursor.execute(f"DROP TABLE {new}")


def _swap_tables(
    connection: BaseDatabaseWrapper,
    cursor: Any,
    model: type[models.Model],
    shadow: type[models.Model],
    names: dict[str, str],
) -> None:
    old, new = names["table"], _quoted(connection, shadow)
    # The owner of a table with pending deferred checks cannot be changed.
    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    cursor.execute(f"LOCK TABLE {old} IN ACCESS EXCLUSIVE MODE")
    cursor.execute(INDEXES, {"table": old})
    wanted = cursor.fetchall()
    cursor.execute(INDEXES, {"table": new})
    made = cursor.fetchall()
    take_over(cursor, old=old, new=shadow._meta.db_table)
    cursor.execute(f"DROP TABLE {old}")
    cursor.execute(f"ALTER TABLE {new} RENAME TO {old}")
    quote = connection.ops.quote_name
    pairs = [(one[0], other[0]) for one, other in zip(made, wanted, strict=True)]
    for number, (have, _) in enumerate(pairs):
        # Rename by way of unused names: another index may still have the wanted name.
        cursor.execute(f"ALTER INDEX {quote(have)} RENAME TO {quote(_between(number, model))}")
    for number, (_, want) in enumerate(pairs):
        cursor.execute(f"ALTER INDEX {quote(_between(number, model))} RENAME TO {quote(want)}")


def take_over(cursor: Any, *, old: str, new: str, kind: str = "TABLE") -> None:
    """
    Give a table the comment, grants and owner of another one, or a sequence those of another.

    ``old`` is quoted where it has to be, ``new`` is not. ``kind`` is TABLE or SEQUENCE: the owner
    of a sequence is that of its table.
    """
    quoted = '"{}"'.format(new.replace('"', '""'))
    cursor.execute(OWN, {"table": old, "shadow": new, "new": quoted, "kind": kind})
    for (statement,) in cursor.fetchall():
        cursor.execute(statement)


def _between(number: int, model: type[models.Model]) -> str:
    return truncate_name(f"{model._meta.db_table}__renamed_{number}", MAX_NAME)


def commits_by_itself(connection: BaseDatabaseWrapper) -> bool:
    """Return whether statements about tables commit the transaction (MariaDB, MySQL, Oracle)."""
    return not connection.features.can_rollback_ddl


@contextmanager
def one_at_a_time(name: str, using: str) -> Iterator[None]:
    """
    Let one rebuild of a projection at a time make its table, where that ends row locks.

    Raise OperationalError where another one takes more than ten seconds for it.
    """
    connection = connections[using]
    if connection.vendor != "mysql":
        yield
        return
    digest = sha256(f"{connection.settings_dict['NAME']}/{name}".encode()).hexdigest()[:40]
    with connection.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, %s)", [f"eventlogs {digest}", PATIENCE])
        if cursor.fetchone() != (1,):
            raise OperationalError(f"Another process is about to rebuild {name!r}.")
        try:
            yield
        finally:
            cursor.execute("SELECT RELEASE_LOCK(%s)", [f"eventlogs {digest}"])


def limit_lock_wait(using: str) -> None:
    """Set lock_timeout to LOCK_TIMEOUT, one second, for this transaction."""
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [str(LOCK_TIMEOUT)])


def _quoted(connection: BaseDatabaseWrapper, model: type[models.Model]) -> str:
    return connection.ops.quote_name(model._meta.db_table)
