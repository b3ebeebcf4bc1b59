"""The system checks of MariaDB and MySQL, each by its id."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from django.core.checks import run_checks
from django.db import connection, connections, models

from eventlogs import LogIdField
from eventlogs.checks import mysql
from eventlogs.fields import MARIADB_COLLATION
from tests.checks.messages import found


@contextmanager
def altered(*statements):
    """Change the database by DDL or SET, and change it back."""
    there, *back = statements
    with connection.cursor() as cursor:
        cursor.execute(there)
        try:
            yield
        finally:
            for each in back:
                cursor.execute(each)


@pytest.mark.mariadb
@pytest.mark.django_db
def test_a_migrated_database_has_no_findings():
    ours = [
        message
        for message in run_checks(databases=["default"], include_deployment_checks=False)
        if message.id.startswith("eventlogs") and message.id != "eventlogs.E033"
    ]

    assert ours == []


@pytest.mark.postgresql
@pytest.mark.django_db
def test_postgresql_is_not_checked(monkeypatch):
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "charset", "utf8")

    assert found(mysql.check_charsets) == []
    assert found(mysql.check_mysql, databases=["default"]) == []


def test_e041_a_charset_that_lacks_characters(monkeypatch):
    monkeypatch.setattr(connection, "vendor", "mysql")
    options = connection.settings_dict["OPTIONS"]

    monkeypatch.setitem(options, "charset", "utf8mb4")
    assert found(mysql.check_charsets) == []
    monkeypatch.setitem(options, "charset", "utf8")
    assert found(mysql.check_charsets) == ["eventlogs.E041"]


class Summary(models.Model):
    """A read model of a project."""

    log_id = LogIdField(primary_key=True)

    class Meta:
        app_label = "tests_of_mysql_checks"

    def __str__(self):
        return str(self.log_id)


@pytest.mark.mariadb
class TestDatabase:
    @pytest.mark.parametrize(
        ("table", "column", "kind"),
        [
            ("eventlogs_idempotencykey", "key", "varchar(255) COLLATE {} NOT NULL"),
            ("eventlogs_event", "idempotency_key", "varchar(255) COLLATE {} NULL"),
            ("eventlogs_eventlog", "log_type", "varchar(63) COLLATE {} NOT NULL"),
            ("eventlogs_appliedversion", "log_id", "varchar(90) COLLATE {} NOT NULL"),
        ],
    )
    def test_e042_a_column_of_another_collation_is_named(
        self, transactional_db, table, column, kind
    ):
        alter = f"ALTER TABLE `{table}` MODIFY `{column}` {kind}"

        with altered(alter.format("utf8mb4_general_ci"), alter.format(MARIADB_COLLATION)):
            [message] = mysql.check_mysql(databases=["default"])

        assert message.id == "eventlogs.E042"
        assert f"{table}.{column} has the collation utf8mb4_general_ci" in message.msg
        assert message.hint == f"Run: {alter.format(MARIADB_COLLATION)};"
        assert found(mysql.check_mysql, databases=["default"]) == []

    def test_e042_applies_to_read_models_too(self, transactional_db, monkeypatch):
        monkeypatch.setattr(mysql, "_models", lambda alias: [Summary])
        with connection.schema_editor() as editor:
            editor.create_model(Summary)
        assert found(mysql.check_mysql, databases=["default"]) == []
        drop = "DROP TABLE tests_of_mysql_checks_summary"
        alter = "ALTER TABLE tests_of_mysql_checks_summary CONVERT TO CHARACTER SET latin1"

        with altered(alter, drop):
            assert found(mysql.check_mysql, databases=["default"]) == ["eventlogs.E042"]

    def test_e043_a_table_without_transactions(self, transactional_db):
        engine = "ALTER TABLE eventlogs_event ENGINE = {}"

        with altered(engine.format("MyISAM"), engine.format("InnoDB")):
            [message] = mysql.check_mysql(databases=["default"])

        assert message.id == "eventlogs.E043"
        assert "eventlogs_event has the engine MyISAM" in message.msg

    def test_e044_an_sql_mode_that_truncates_values(self, db):
        strict = "SET sql_mode = 'STRICT_TRANS_TABLES'"

        with altered("SET sql_mode = 'NO_ENGINE_SUBSTITUTION'", strict):
            assert found(mysql.check_mysql, databases=["default"]) == ["eventlogs.E044"]

    def test_w045_statements_may_be_too_large(self, db, settings):
        settings.EVENTLOGS = {"MAX_EVENT_BYTES": 2**28}

        [message] = mysql.check_mysql(databases=["default"])

        assert message.id == "eventlogs.W045"
        assert "may need 1,074,790,400" in message.msg

    def test_w046_mysql_is_not_tested(self, db, monkeypatch):
        monkeypatch.setitem(connections["default"].__dict__, "mysql_is_mariadb", False)

        assert "eventlogs.W046" in found(mysql.check_mysql, databases=["default"])

    def test_tables_that_are_not_migrated_yet_are_no_finding(self, db, monkeypatch):
        monkeypatch.setattr(Summary._meta, "db_table", "nowhere")
        monkeypatch.setattr(mysql, "_models", lambda alias: [Summary])

        assert found(mysql.check_mysql, databases=["default"]) == []
