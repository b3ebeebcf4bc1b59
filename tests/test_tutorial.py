"""
The tutorial, done as a reader does it: every command and every file of docs/tutorial.md.

- A paragraph that ends in "Create `a/file.py`:", "Replace all of `a/file.py`:" or "Add to the end
  of `a/file.py`:" is about the ``python`` block below it.
- A ``console`` block is typed into a terminal: the first one, or the one that the paragraph above
  names ("In a second terminal:"). Terminals are real: a shell behind a pseudo-terminal.
- "Stop the server in the second terminal with Ctrl-C." is done, too.
- "Open <http://…>" is a request of a browser that has logged in to the admin.

Each command must end with 0, or with what ``<!-- exit code N -->`` says. What a page shows as its
output is compared line by line; "…" is any text, and a line of "…" any lines. Ids of logs on the
page stand for those that the real output has in their places, and are replaced in what is typed.

eventlogs itself is installed from this checkout. PostgreSQL is the server of the tests.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, Request, build_opener

import pytest
from django.db import connection

import eventlogs
from tests.processes import ROOT
from tests.servers import PostgreSQL

pexpect = pytest.importorskip("pexpect")

pytestmark = pytest.mark.postgresql

PAGE = ROOT / "docs" / "tutorial.md"
PATIENCE = 180  # seconds, for pip
PROMPT = "<ready:{}>"
PORTS = ("8000", "8001")  # of the page
ORDINALS = {"first": 0, "second": 1, "third": 2}

BLOCK = re.compile(
    r"(?:^<!-- exit code (?P<code>\d+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
    r"|(?P<prose>^(?!```|<!-- exit)[^\n]+$)",
    re.DOTALL | re.MULTILINE,
)
FILE = re.compile(
    r"\b(?P<verb>[Cc]reate|[Rr]eplace all of|Add to the end of) `(?P<path>[\w/.]+)`:$"
)
TERMINAL = re.compile(r"\b[Ii]n (?:a|the) (?P<which>first|second|third) terminal\b[^.]*:$")
STOP = re.compile(r"[Ss]top the \w+ in the (?P<which>second|third) terminal with Ctrl-C\.")
OPEN = re.compile(r"\bOpen <(?P<url>http://[^>]+)>")
LOG_ID = re.compile(r"booking_[0-9a-hjkmnp-tv-z]{26}")


@dataclass(frozen=True)
class Command:
    """A line that is typed, and the lines that the page shows below it."""

    line: str
    shown: list[str]
    code: int


def commands_of(text: str, code: int) -> Iterator[Command]:
    """Yield the commands of a block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, *shown = part.rstrip("\n").split("\n")
        while line.endswith("\\"):
            line = f"{line[:-1]}{shown.pop(0).strip()}"
        yield Command(line, shown, code)


class Ids:
    """The ids of logs on the page, and the real ones that they stand for."""

    def __init__(self) -> None:
        self.real: dict[str, str] = {}

    def pattern(self, shown: list[str], *, complete: bool) -> str:
        """Return a regular expression of an output; ids that are not known yet are groups."""
        self.new: list[str] = []
        parts = []
        for line in shown:
            if line == "…":
                parts.append(r"(?:[^\n]*\n)*?")
                continue
            pieces = re.split(rf"(…|{LOG_ID.pattern})", line)
            parts.append("".join(map(self._piece, pieces)) + r"[ ]*\n")
        return "".join(parts) + (r"\Z" if complete else "")

    def _piece(self, piece: str) -> str:
        if piece == "…":
            return r"[^\n]*?"
        if not LOG_ID.fullmatch(piece):
            return re.escape(piece)
        if piece in self.real:
            return re.escape(self.real[piece])
        if piece in self.new:
            return rf"(?P={piece})"
        self.new.append(piece)
        return rf"(?P<{piece}>{LOG_ID.pattern})"

    def learn(self, found: re.Match[str]) -> None:
        """Remember the ids of an output."""
        self.real |= {name: found[name] for name in self.new}

    def typed(self, line: str) -> str:
        """Return a line with the real ids."""
        return LOG_ID.sub(lambda shown: self.real[shown[0]], line)


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self, directory: Path, environment: dict[str, str], ids: Ids) -> None:
        self.ids = ids
        self.shell = pexpect.spawn(
            "bash",
            ["--norc", "--noprofile"],
            cwd=str(directory),
            env=environment,
            encoding="utf-8",
            echo=False,
            dimensions=(50, 500),
            timeout=PATIENCE,
        )
        self.shell.sendline("unset PROMPT_COMMAND; PS2=''; PS1='<ready':'$?>'")
        self.shell.expect_exact(PROMPT.format(0))

    def run(self, command: Command) -> None:
        """Type a command, wait until it ends, and compare its output."""
        self.shell.sendline(self.ids.typed(command.line))
        self.shell.expect(r"<ready:(\d+)>")
        output = str(self.shell.before).replace("\r\n", "\n").replace("\r", "")
        assert self.shell.match[1] == str(command.code), f"$ {command.line}\n{output}"
        if command.shown:
            self._compare(command, output.rstrip("\n") + "\n", complete=True)

    def start(self, command: Command) -> None:
        """Type a command that keeps running, and wait until it has printed what is shown."""
        self.shell.sendline(self.ids.typed(command.line))
        pattern = self.ids.pattern(command.shown, complete=False).replace(r"[ ]*\n", r"[ ]*\r\n")
        self.shell.expect(pattern.replace(r"[^\n]*\n", r"[^\n]*\r\n"))

    def stop(self) -> None:
        """Press Ctrl-C, and wait for the prompt."""
        self.shell.sendintr()
        self.shell.expect(r"<ready:(\d+)>")

    def close(self) -> None:
        """End the shell and what runs in it."""
        self.shell.close(force=True)

    def _compare(self, command: Command, output: str, *, complete: bool) -> None:
        pattern = self.ids.pattern(command.shown, complete=complete)
        found = re.match(pattern, output)
        shown = "\n".join(command.shown)
        assert found, f"$ {command.line}\n--- shown\n{shown}\n--- printed\n{output}"
        self.ids.learn(found)


class Browser:
    """What a browser does to see pages of the admin."""

    def __init__(self, ports: dict[str, str]) -> None:
        self.ports = ports
        self.cookies = CookieJar()
        self.opener = build_opener(HTTPCookieProcessor(self.cookies))

    def open(self, url: str) -> None:
        """Open a page, and log in if that asks for it."""
        url = with_ports(url, self.ports)
        with self.opener.open(url) as answer:
            login, page = answer.url, answer.read().decode()
        if "/login/" in login:
            (token,) = set(re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page))
            form = {"username": "ann", "password": "guesthouse", "csrfmiddlewaretoken": token}
            with self.opener.open(Request(login, urlencode(form).encode())) as answer:
                login, page = answer.url, answer.read().decode()
        assert login == url, f"{url} led to {login}"
        assert "site-name" in page


def with_ports(text: str, ports: dict[str, str]) -> str:
    """Return a text with free ports in place of those of the page."""
    for shown, free in ports.items():
        text = text.replace(f":{shown}", f":{free}")
    return re.sub(r"(manage.py runserver)$", rf"\1 {ports['8000']}", text)


def free_ports() -> dict[str, str]:
    """Return a free port for each port of the page."""
    sockets = [socket.socket() for _ in PORTS]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = {shown: str(each.getsockname()[1]) for shown, each in zip(PORTS, sockets, strict=True)}
    for each in sockets:
        each.close()
    return ports


def wheel_of_the_checkout(directory: Path) -> tuple[Path, str]:
    """Build a wheel, with a version that no package index has; return its directory and version."""
    copy = directory / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "eventlogs", copy / "eventlogs", ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    version = f"{eventlogs.__version__}+checkout"
    module = copy / "eventlogs" / "__init__.py"
    line = f'__version__ = "{eventlogs.__version__}"'
    assert line in module.read_text()
    module.write_text(module.read_text().replace(line, f'__version__ = "{version}"'))
    venv.create(directory / "builder", with_pip=True)
    pip = [str(directory / "builder" / "bin" / "python"), "-m", "pip", "wheel", "--quiet"]
    options = ["--no-deps", "--wheel-dir", str(directory / "wheels")]
    subprocess.run([*pip, *options, str(copy)], check=True)
    return directory / "wheels", version


@pytest.fixture
def environment(tmp_path: Path, django_db_setup: None) -> dict[str, str]:
    """The environment of a reader with Python, pip and PostgreSQL."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (programs / "python3").chmod(0o755)
    wheels, version = wheel_of_the_checkout(tmp_path)
    (tmp_path / "constraints.txt").write_text(f"eventlogs=={version}\n")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "DJANGO", "EVENTLOGS", "PYTEST", "PYTHON", "VIRTUAL_ENV"))
    }
    server = connection.settings_dict
    postgresql = {
        "PGHOST": server["HOST"],
        "PGPORT": server["PORT"],
        "PGUSER": server["USER"],
        "PGPASSWORD": server["PASSWORD"],
    }
    paths = [str(programs), str(PostgreSQL.find_programs()), os.environ["PATH"]]
    return {
        **kept,
        **{name: str(value) for name, value in postgresql.items() if value},
        "HOME": str(tmp_path),
        "PATH": os.pathsep.join(paths),
        # Where the tutorial asks for eventlogs, pip takes this checkout.
        "PIP_CONSTRAINT": str(tmp_path / "constraints.txt"),
        "PIP_FIND_LINKS": f"{os.environ.get('PIP_FIND_LINKS', '')} {wheels}".strip(),
        "PIP_PROGRESS_BAR": "off",
        "TERM": "dumb",
        "VIRTUAL_ENV_DISABLE_PROMPT": "1",
        "NO_COLOR": "1",
        "DJANGO_COLORS": "nocolor",
        "LANG": "C.UTF-8",
    }


@pytest.fixture
def database(environment: dict[str, str]) -> Iterator[str]:
    """The name of a database, which is dropped in the end."""
    name = f"guesthouse_{os.getpid()}"
    yield name
    subprocess.run(["dropdb", "--if-exists", "--force", name], check=True, env=environment)


class Reader:
    """A person who does what the page says."""

    def __init__(self, home: Path, environment: dict[str, str], database: str) -> None:
        self.home = home
        self.environment = environment
        self.database = database
        self.ids = Ids()
        self.ports = free_ports()
        self.terminals: dict[int, Terminal] = {}
        self.browser = Browser(self.ports)
        self.done: list[str] = []

    def follow(self, page: str) -> None:
        """Do everything, from top to bottom."""
        prose = ""
        for block in BLOCK.finditer(page):
            if block["prose"] is not None:
                prose = block["prose"]
                self.do(prose)
            elif block["language"] == "python":
                self.write(prose, block["text"])
            else:
                assert block["language"] == "console", block["language"]
                self.type(prose, self.real(block["text"]), int(block["code"] or 0))

    def real(self, text: str) -> str:
        """Return a text with this run's ports and database."""
        text = "\n".join(with_ports(line, self.ports) for line in text.split("\n"))
        text = text.replace("PGDATABASE=guesthouse", f"PGDATABASE={self.database}")
        return text.replace("createdb guesthouse", f"createdb {self.database}")

    def do(self, prose: str) -> None:
        """Do what a paragraph says."""
        for stop in STOP.finditer(prose):
            self.terminals[ORDINALS[stop["which"]]].stop()
            self.done.append(stop[0])
        for found in OPEN.finditer(prose):
            self.browser.open(found["url"])
            self.done.append(found[0])

    def write(self, prose: str, text: str) -> None:
        """Write the file that the paragraph above a block names."""
        found = FILE.search(prose)
        assert found, f"The paragraph above names no file: {prose!r}"
        path = self.home / "guesthouse" / found["path"]
        verb = found["verb"].lower()
        assert path.exists() == (verb != "create"), found[0]
        before = path.read_text() + "\n\n" if verb == "add to the end of" else ""
        path.write_text(before + text)
        self.done.append(found[0])

    def type(self, prose: str, text: str, code: int) -> None:
        """Type the commands of a block into its terminal."""
        found = TERMINAL.search(prose)
        number = ORDINALS[found["which"]] if found else 0
        if number not in self.terminals:
            self.terminals[number] = Terminal(self.home, self.environment, self.ids)
        terminal = self.terminals[number]
        commands = list(commands_of(text, code))
        for command in commands:
            # The last command in another terminal is a server: it keeps running.
            if number and command is commands[-1]:
                terminal.start(command)
            else:
                terminal.run(command)
            self.done.append(command.line)

    def close(self) -> None:
        """End all terminals."""
        for terminal in self.terminals.values():
            terminal.close()


@pytest.fixture
def reader(tmp_path: Path, environment: dict[str, str], database: str) -> Iterator[Any]:
    home = tmp_path / "home"
    home.mkdir()
    reader = Reader(home, environment, database)
    yield reader
    reader.close()


def test_the_tutorial_works_as_it_is_written(reader: Reader):
    page = PAGE.read_text(encoding="utf-8")

    reader.follow(page)

    # Nothing on the page was passed over.
    typed = len(re.findall(r"^\$ ", page, re.MULTILINE))
    files = len(re.findall(r"^```python$", page, re.MULTILINE))
    stops, opened = len(re.findall("Ctrl-C", page)), len(re.findall(r"Open <", page))
    assert len(reader.done) == typed + files + stops + opened
