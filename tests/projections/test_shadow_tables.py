"""Shadow tables: a swap leaves no visible difference but the rows."""

from __future__ import annotations

import threading
import time
from decimal import Decimal

import pytest
from django.db import OperationalError, connection, connections, migrations, models, transaction
from django.db.migrations.state import ModelState, ProjectState
from django.db.models.functions import Now

from eventlogs import LogId, LogIdField
from eventlogs.fields import exact_collation
from eventlogs.projections import shadow_tables
from tests.locks import a_session_waits
from tests.processes import until
from tests.tables import Table

POSTGRESQL = pytest.mark.postgresql


class Owner(Table):
    name = models.CharField(max_length=50)

    class Meta:
        app_label = "tests_of_shadows"

    def __str__(self):
        return self.name


class Rich(Table):
    """A model with every kind of column, index and constraint."""

    log_id = LogIdField(primary_key=True)
    owner = models.ForeignKey(Owner, on_delete=models.CASCADE, null=True)
    code = models.CharField(max_length=20, unique=True)
    amount = models.DecimalField(max_digits=9, decimal_places=2, default=0)
    facts = models.JSONField(default=dict)
    doubled = models.GeneratedField(
        expression=models.F("amount") * 2,
        output_field=models.DecimalField(max_digits=10, decimal_places=2),
        db_persist=True,
    )
    kind = models.CharField(max_length=5, db_default="a")
    added_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)
    noted_at = models.DateTimeField(db_default=Now(), db_comment="by the clock")

    class Meta:
        app_label = "tests_of_shadows"
        db_table = "Rich_rows_of_a_table_whose_Name_is_as_long_as_PostgreSQL_takes_"
        db_table_comment = "What a person wrote"
        indexes = [
            models.Index(fields=["amount", "code"], name="rich_amount_code"),
            models.Index(fields=["code", "amount"], name="rich_code_amount"),
            models.Index(fields=["amount"], name="rich_a", condition=models.Q(amount__gt=5)),
            models.Index(fields=["-amount"], name="rich_down"),
        ]
        constraints = [
            models.CheckConstraint(condition=models.Q(amount__gte=0), name="rich_not_negative"),
            models.UniqueConstraint(fields=["owner", "kind", "code"], name="rich_unique"),
        ]

    def __str__(self):
        return self.code


OWNERS = Owner._meta.db_table
TABLE = connection.ops.quote_name(Rich._meta.db_table)
CATALOGS = {
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = {name}",
    "constraints": """SELECT conname, contype::text, pg_get_constraintdef(oid), condeferrable,
        condeferred FROM pg_constraint WHERE conrelid = {table}""",
    "columns": """SELECT attnum, attname, format_type(atttypid, atttypmod), attnotnull,
        attidentity::text, attgenerated::text, pg_get_expr(adbin, adrelid),
        col_description(attrelid, attnum)
        FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
        WHERE attrelid = {table} AND attnum > 0""",
    "grants": """SELECT pg_get_userbyid(grantor), pg_get_userbyid(grantee), privilege_type,
        is_grantable FROM pg_class, aclexplode(relacl) WHERE oid = {table}""",
    "table": """SELECT pg_get_userbyid(relowner), obj_description(oid, 'pg_class')
        FROM pg_class WHERE oid = {table}""",
    "indexes' comments": """SELECT relname, obj_description(oid, 'pg_class') FROM pg_class
        WHERE oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = {table})""",
}


def type_of_key():
    collation = exact_collation(connection)
    exact = f" CHARACTER SET utf8mb4 COLLATE {collation}" if collation else ""
    return f"{Rich._meta.pk.db_type(connection)}{exact}"


def run(*statements):
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement.replace("{table}", TABLE))


def ask(query):
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def catalogs():
    names = {"name": f"'{Rich._meta.db_table}'", "table": f"'{TABLE}'::regclass"}
    return {name: sorted(ask(query.format(**names)), key=str) for name, query in CATALOGS.items()}


def oid():
    return ask(f"SELECT '{TABLE}'::regclass::oid")[0][0]


def row(code="old", **values):
    return Rich(log_id=LogId.new("account"), code=code, **values)


def fill(*rows):
    shadow_tables.shadow_of(Rich)._base_manager.bulk_create(rows)


def swap():
    with transaction.atomic():
        shadow_tables.swap(Rich, "default")
    if shadow_tables.commits_by_itself(connection):
        shadow_tables.drop(Rich, "default")


def codes():
    return sorted(Rich.objects.values_list("code", flat=True))


@pytest.fixture(autouse=True)
def _table(transactional_db):
    with connection.schema_editor() as editor:
        editor.create_model(Owner)
        editor.create_model(Rich)
    Rich.objects.bulk_create([row()])
    yield
    connection.close()
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"DROP TABLE IF EXISTS {TABLE} CASCADE")
        for name in (shadow_tables.shadow_of(Rich)._meta.db_table, Rich._meta.db_table, OWNERS):
            cursor.execute(f"DROP TABLE IF EXISTS {connection.ops.quote_name(name)}")


def test_the_rows_of_the_shadow_table_become_those_of_the_model():
    shadow_tables.create(Rich, "default")
    fill(row("new", amount=Decimal("1.50"), facts={"a": [1, None]}))
    assert codes() == ["old"]
    assert shadow_tables.exists(Rich, "default")

    swap()

    [new] = Rich.objects.all()
    assert (new.code, new.amount, new.doubled, new.facts, new.kind) == (
        "new",
        Decimal("1.50"),
        Decimal("3.00"),
        {"a": [1, None]},
        "a",
    )
    assert new.added_at is not None
    assert new.noted_at is not None
    assert not shadow_tables.exists(Rich, "default")


def test_a_swap_that_is_rolled_back_leaves_both_tables_unchanged():
    shadow_tables.create(Rich, "default")
    fill(row("new"))

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        shadow_tables.swap(Rich, "default")
        raise ZeroDivisionError

    assert codes() == ["old"]
    assert shadow_tables.exists(Rich, "default")
    swap()
    assert codes() == ["new"]


def test_an_existing_shadow_table_is_dropped():
    shadow_tables.drop(Rich, "default")
    shadow_tables.create(Rich, "default")
    shadow_tables.drop(Rich, "default")
    assert not shadow_tables.exists(Rich, "default")


def test_a_swap_can_be_repeated():
    for number in range(3):
        shadow_tables.create(Rich, "default")
        fill(row(f"new {number}"))
        swap()
    assert codes() == ["new 2"]


@POSTGRESQL
def test_a_swapped_table_keeps_the_owner_grants_comments_and_indexes():
    run(
        "COMMENT ON INDEX rich_down IS 'why'",
        "COMMENT ON CONSTRAINT rich_not_negative ON {table} IS 'never'",
        "DROP ROLE IF EXISTS rich_reader",
        "DROP ROLE IF EXISTS rich_writer",
        "DROP ROLE IF EXISTS rich_owner",
        'CREATE ROLE rich_reader; CREATE ROLE "rich_writer"; CREATE ROLE rich_owner',
        "GRANT CREATE ON SCHEMA public TO rich_owner",
        "ALTER TABLE {table} OWNER TO rich_owner",
        "GRANT SELECT ON {table} TO PUBLIC",
        "GRANT SELECT, INSERT ON {table} TO rich_reader",
        "GRANT UPDATE ON {table} TO rich_writer WITH GRANT OPTION",
        "CREATE INDEX rich_twice ON {table} (amount)",
        "CREATE INDEX rich_thrice ON {table} (amount)",
    )
    try:
        before, old = catalogs(), oid()
        for _ in range(2):
            shadow_tables.create(Rich, "default")
            swap()

            assert catalogs() == before
            assert oid() != old
            old = oid()
    finally:
        run(
            "DROP TABLE {table}",
            "DROP OWNED BY rich_owner, rich_reader, rich_writer",
            "DROP ROLE rich_reader; DROP ROLE rich_writer; DROP ROLE rich_owner",
        )


@POSTGRESQL
def test_grants_that_new_tables_get_by_default_are_not_added():
    run(
        "DROP ROLE IF EXISTS rich_reader",
        "CREATE ROLE rich_reader",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO rich_reader",
        "GRANT INSERT ON {table} TO rich_reader",
    )
    try:
        before = catalogs()
        shadow_tables.create(Rich, "default")
        swap()
        assert catalogs() == before
    finally:
        run(
            "ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM rich_reader",
            "DROP OWNED BY rich_reader",
            "DROP ROLE rich_reader",
        )


@POSTGRESQL
def test_migrations_find_indexes_and_constraints_by_name_after_a_swap():
    before = catalogs()
    shadow_tables.create(Rich, "default")
    swap()
    state = ProjectState()
    for model in (Owner, Rich):
        state.add_model(ModelState.from_model(model))
    operations = [
        migrations.RemoveIndex("Rich", "rich_down"),
        migrations.AddIndex("Rich", models.Index(fields=["-amount"], name="rich_down")),
        migrations.RemoveConstraint("Rich", "rich_not_negative"),
        migrations.AddConstraint(
            "Rich",
            models.CheckConstraint(condition=models.Q(amount__gte=0), name="rich_not_negative"),
        ),
    ]
    for operation in operations:
        after = state.clone()
        operation.state_forwards("tests_of_shadows", after)
        with connection.schema_editor() as editor:
            operation.database_forwards("tests_of_shadows", editor, state, after)
        state = after
    assert catalogs() == before


MIGRATIONS = {
    "a column": "ALTER TABLE {table} ADD COLUMN later varchar(5) DEFAULT 'x' NOT NULL",
    "a type": "ALTER TABLE {table} ALTER COLUMN kind TYPE varchar(99)",
    "an index": "CREATE INDEX rich_later ON {table} (kind)",
    "a constraint": "ALTER TABLE {table} ADD CONSTRAINT rich_later CHECK (code <> 'z')",
    "a default": "ALTER TABLE {table} ALTER COLUMN kind SET DEFAULT 'b'",
    "a null": "ALTER TABLE {table} ALTER COLUMN kind DROP NOT NULL",
    "a column less": "ALTER TABLE {table} DROP COLUMN noted_at",
}


@POSTGRESQL
@pytest.mark.parametrize("what", list(MIGRATIONS))
def test_changes_of_a_migration_before_the_swap_are_kept(what):
    shadow_tables.create(Rich, "default")
    assert shadow_tables.is_alike(Rich, "default")
    fill(row("new"))
    run(MIGRATIONS[what])
    before = catalogs()
    assert not shadow_tables.is_alike(Rich, "default")

    if what != "a column less":  # its model is still of the code before
        swap()
        assert ask(f"SELECT code FROM {TABLE}") == [("new",)]
    assert catalogs() == before


@POSTGRESQL
def test_unvalidated_checks_and_invalid_indexes_do_not_prevent_a_swap():
    run(
        "ALTER TABLE {table} ADD CONSTRAINT rich_later CHECK (code <> 'z') NOT VALID",
        "CREATE INDEX rich_invalid ON {table} (kind)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'rich_invalid'::regclass",
    )
    shadow_tables.create(Rich, "default")
    old = oid()

    swap()

    assert oid() != old


# Dependencies that a swap would lose

HANGING = {
    "a view": "CREATE VIEW rich_view AS SELECT code FROM {table}",
    "a trigger": (
        "CREATE TRIGGER rich_trigger BEFORE INSERT ON {table} FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    ),
    "a rule": "CREATE RULE rich_rule AS ON UPDATE TO {table} DO ALSO NOTHING",
    "a foreign key": (
        "CREATE TABLE rich_child (log_id varchar(100) REFERENCES {table}"
        " DEFERRABLE INITIALLY DEFERRED)"
    ),
    "a policy": "CREATE POLICY rich_policy ON {table} USING (true)",
    "a grant for a column": "GRANT SELECT (code) ON {table} TO pg_monitor",
    "a function of its rows": (
        "CREATE FUNCTION rich_function() RETURNS SETOF {table} LANGUAGE sql"
        " AS 'SELECT * FROM {table}'"
    ),
    "a function that is parsed": (
        "CREATE FUNCTION rich_function() RETURNS bigint LANGUAGE sql"
        " BEGIN ATOMIC SELECT count(*) FROM {table}; END"
    ),
    "a column of its type": "CREATE TABLE rich_child (value {table})",
    "statistics": "CREATE STATISTICS rich_statistics ON code, amount FROM {table}",
    "a publication": "CREATE PUBLICATION rich_publication FOR TABLE {table}",
    "options": "ALTER TABLE {table} SET (fillfactor = 70)",
    "a sequence": (
        "ALTER TABLE {table} ADD COLUMN number integer;"
        " CREATE SEQUENCE rich_sequence OWNED BY {table}.number;"
        " ALTER TABLE {table} ALTER COLUMN number SET DEFAULT nextval('rich_sequence')"
    ),
    "a child": "CREATE TABLE rich_child () INHERITS ({table})",
}
UNDO = """
DROP TABLE IF EXISTS rich_child; DROP FUNCTION IF EXISTS rich_function;
DROP VIEW IF EXISTS rich_view; DROP PUBLICATION IF EXISTS rich_publication
"""


@POSTGRESQL
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "what",
    [
        # Citus has neither in a distributed schema.
        pytest.param(
            each, marks=pytest.mark.one_server if each in ("a sequence", "a child") else ()
        )
        for each in HANGING
    ],
)
def test_rows_are_moved_instead_if_other_objects_depend_on_the_table(what):
    run(HANGING[what])
    try:
        before, old = catalogs(), oid()
        shadow_tables.create(Rich, "default")
        if what != "a trigger":
            fill(row("new"))

        swap()

        assert oid() == old
        assert catalogs() == before
        assert codes() == ([] if what == "a trigger" else ["new"])
        assert not shadow_tables.exists(Rich, "default")
        if what == "a view":
            assert ask("SELECT * FROM rich_view") == [("new",)]
    finally:
        run(UNDO)


def test_rows_that_stay_keep_the_rows_that_refer_to_them():
    [old] = Rich.objects.all()
    gone = row("gone")
    gone.save()
    run(
        f"CREATE TABLE rich_child (log_id {type_of_key()} REFERENCES {{table}} (log_id)"
        " ON DELETE CASCADE)",
        f"INSERT INTO rich_child VALUES ('{old.pk}'), ('{gone.pk}')",
    )
    try:
        shadow_tables.create(Rich, "default")
        fill(Rich(log_id=old.log_id, code="changed"), row("new"))

        swap()

        assert list(ask("SELECT * FROM rich_child")) == [(str(old.pk),)]
        assert codes() == ["changed", "new"]
    finally:
        run("DROP TABLE rich_child")


def test_a_broken_version_that_deletes_all_rows_first_loses_rows_that_refer_to_them(monkeypatch):
    nothing = dict.fromkeys(shadow_tables.REFERENCES, "SELECT false")
    monkeypatch.setattr(shadow_tables, "REFERENCES", nothing)

    with pytest.raises(AssertionError):
        test_rows_that_stay_keep_the_rows_that_refer_to_them()


@POSTGRESQL
@pytest.mark.one_server
def test_rows_added_in_the_same_transaction_are_checked_before_the_swap():
    """The owner of a table with pending checks cannot be changed."""
    owner = Owner.objects.create(name="ada")
    run(
        "DROP ROLE IF EXISTS rich_owner",
        "CREATE ROLE rich_owner",
        "GRANT CREATE ON SCHEMA public TO rich_owner",
        f'GRANT REFERENCES, SELECT ON "{Owner._meta.db_table}" TO rich_owner',
        "ALTER TABLE {table} OWNER TO rich_owner",
    )
    try:
        shadow_tables.create(Rich, "default")
        with transaction.atomic():
            fill(row("new", owner=owner))
            shadow_tables.swap(Rich, "default")
        assert codes() == ["new"]
    finally:
        run("DROP TABLE {table}", "DROP OWNED BY rich_owner", "DROP ROLE rich_owner")


# Concurrent sessions


@POSTGRESQL
def test_behind_a_long_reader_the_swap_gives_up_and_unblocks_others(elsewhere):
    shadow_tables.create(Rich, "default")
    reading, enough = threading.Event(), threading.Event()

    def read_for_long():
        with transaction.atomic():
            Rich.objects.count()
            reading.set()
            enough.wait(10)
        connections.close_all()

    reader = threading.Thread(target=read_for_long)
    reader.start()
    waits = []

    def read():
        until(a_session_waits)  # that is the swap
        begun = time.monotonic()
        Rich.objects.count()
        waits.append(time.monotonic() - begun)
        connections.close_all()

    other = threading.Thread(target=read)
    try:
        assert reading.wait(5)
        other.start()
        begun = time.monotonic()
        with pytest.raises(OperationalError), transaction.atomic():
            shadow_tables.limit_lock_wait("default")
            shadow_tables.swap(Rich, "default")
        assert time.monotonic() - begun < 1.5
    finally:
        enough.set()
        reader.join()
        other.join()
    assert 0.3 < waits[0] < 1.5
    assert codes() == ["old"]
    swap()


@POSTGRESQL
def test_statements_that_other_connections_have_prepared_see_the_new_table():
    query = "SELECT code FROM {table} ORDER BY code".replace("{table}", TABLE)
    asked, swapped, answers = threading.Event(), threading.Event(), []

    def ask_twice():
        connection.ensure_connection()
        for _ in range(2):
            for _ in range(2):
                rows = connection.connection.execute(query, prepare=True).fetchall()
            answers.append(rows)
            asked.set()
            swapped.wait(10)
        connections.close_all()

    other = threading.Thread(target=ask_twice)
    other.start()
    assert asked.wait(5)
    shadow_tables.create(Rich, "default")
    fill(row("new"))
    swap()
    swapped.set()
    other.join()

    assert answers == [[("old",)], [("new",)]]
