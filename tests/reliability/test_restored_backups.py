"""
A restored backup of the events does not bring a forgotten person back.

The keys are in another database, as docs/privacy.md advises: here the events are in the second
database, and the keys in the default one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from django.core.cache import caches as django_caches
from django.db import connections

from eventlogs import LogManager
from eventlogs.models import Event, SubjectKey
from eventlogs.operations.forgetting import forget, forget_again
from eventlogs.operations.jsonl import (
    export_pages_of_a_moment,
    footer,
    header,
    import_lines,
)
from eventlogs.privacy import DatabaseKeyStore, memory
from eventlogs.reductions.worker import worker
from eventlogs.stores import store_for
from tests.guests import SETTINGS, Guest, Joined
from tests.operations.everywhere import places
from tests.operations.guest_rows import KNOWN, InlineNamed, InlineNames
from tests.projections.tables import made

ADA, NAME = "member:1", "Countess Lovelace"


class KeysOfTests(DatabaseKeyStore):
    """Keys in the default database."""

    def __init__(self):
        super().__init__(using="default")


@pytest.fixture
def events(second_database, settings):
    settings.EVENTLOGS = {
        **SETTINGS,
        "CACHE": "default",
        "KEY_STORE": {"BACKEND": f"{__name__}.KeysOfTests"},
    }
    memory.clear()
    django_caches["default"].clear()
    with made(InlineNamed, using=second_database), KNOWN.declared("guests-inline"):
        yield second_database
    assert worker.flush(5)
    memory.clear()
    django_caches["default"].clear()


def dump(alias: str, file: Path) -> None:
    """Write a backup of a database."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        connection.close()
        shutil.copy(str(connection.settings_dict["NAME"]), file)
        return
    run("pg_dump", alias, "--file", str(file))


def restore(alias: str, file: Path) -> None:
    """Replace a database by a backup."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        connection.close()
        shutil.copy(file, str(connection.settings_dict["NAME"]))
        return
    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE")
        cursor.execute("CREATE SCHEMA public")
    store_for.cache_clear()
    connection.close()
    run("psql", alias, "--quiet", "--set", "ON_ERROR_STOP=1", "--file", str(file))


def run(program: str, alias: str, *arguments: str) -> None:
    settings = connections[alias].settings_dict
    where = {"HOST": "PGHOST", "PORT": "PGPORT", "USER": "PGUSER", "PASSWORD": "PGPASSWORD"}
    environ = {name: str(settings[key]) for key, name in where.items() if settings[key]}
    subprocess.run(
        [program, "--dbname", str(settings["NAME"]), *arguments],
        check=True,
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
    )


needs_programs = pytest.mark.skipif(
    "EVENTLOGS_TEST_DATABASE" in os.environ
    and os.environ["EVENTLOGS_TEST_DATABASE"] == "postgresql"
    and not (shutil.which("pg_dump") and shutil.which("psql")),
    reason="needs pg_dump and psql",
)
not_mariadb = pytest.mark.skipif(
    os.environ.get("EVENTLOGS_TEST_DATABASE") == "mariadb", reason="dumps SQLite and PostgreSQL"
)


@needs_programs
@not_mariadb
def test_a_restored_backup_of_the_events_does_not_bring_a_person_back(events, tmp_path):
    guests = LogManager(Guest, using=events)
    log_id = guests.create(Joined(ADA, NAME), metadata={"ip": NAME, "person": ADA}).log_id
    assert InlineNamed._default_manager.using(events).get().name == NAME
    assert InlineNames.mode == InlineNames.INLINE
    backup = tmp_path / "backup"
    dump(events, backup)

    # The backup has the row of the read model, and no event with the name.
    assert places(NAME, using=events) == [InlineNamed._meta.db_table, *cached()]
    forget(ADA)
    assert places(NAME, using=events) == []
    assert Event.objects.using(events).filter(type="eventlogs_forgetting.forgotten").count() == 1
    if connections[events].vendor == "postgresql":  # SQLite's file has the bytes of deleted rows
        dump(events, tmp_path / "after")
        assert NAME in backup.read_text()
        assert NAME not in (tmp_path / "after").read_text()

    restore(events, backup)
    store_for.cache_clear()
    assert Event.objects.using(events).filter(type="eventlogs_forgetting.forgotten").count() == 0
    assert guests.reduce(log_id).aggregate.name == "erased"
    assert guests.load(log_id)[0].metadata["ip"] is None
    assert places(NAME, using=events) == [InlineNamed._meta.db_table]
    assert SubjectKey.objects.using("default").get(subject=ADA).wrapped is None

    done = forget_again(by="grace")

    assert (done.logs, done.new_receipts, done.rows) == (1, 1, {"guests-inline": 1})
    assert places(NAME, using=events) == []
    assert InlineNamed._default_manager.using(events).get().name == "erased"


# pytest-django makes the tables of the default database because of this mark: the other tests
# cannot have it, as they use a database that Django did not make for tests.
@pytest.mark.django_db
def test_the_keys_are_in_the_default_database():
    store = KeysOfTests()

    assert store.using == "default"
    assert store.find(ADA) is None


def cached() -> list[str]:
    return [each for each in places(NAME) if each.startswith("cache")]


def test_who_is_forgotten_is_found_in_a_database_that_imported_their_events(events, settings):
    """An import has ciphertext; the logs of a subject are noted on the way."""
    with made(InlineNamed):
        guests = LogManager(Guest)
        log_id = guests.create(Joined(ADA, NAME)).log_id
        pages = export_pages_of_a_moment("default", logs=[log_id])
        exported = [line for page in pages for line in page.lines]
        assert not [line for line in exported if NAME in line]
        lines = [header(after=0), *exported, footer(events=1, until=1)]

        import_lines(store_for(events), [line.encode() for line in lines])
        imported = LogManager(Guest, using=events)
        assert imported.reduce(log_id).aggregate.name == NAME
        done = forget(ADA)

        assert (done.logs, done.new_receipts) == (2, 2)  # of each database
        assert imported.reduce(log_id).aggregate.name == "erased"
        assert places(NAME, using=events) == []
        assert places(NAME) == []
