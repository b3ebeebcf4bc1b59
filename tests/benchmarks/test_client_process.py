"""The client processes of contests: started once, told what to do by lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

WORK = """
import time

calls = []

def half_fails():
    def call():
        calls.append(1)
        print("what a work prints is no answer")
        return len(calls) % 2 == 0
    return call

class Windowed:
    def window(self, end):
        return 7, 3

def broken():
    raise RuntimeError("it cannot be made")
"""


class Client:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client process that finds the module `work`."""
    (tmp_path / "work.py").write_text(WORK)
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.client_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        yield Client(process)


def window(seconds: float = 0.1) -> dict[str, float]:
    begin = time.monotonic()
    return {"begin": begin, "end": begin + seconds}


def test_a_function_is_called_over_and_over_and_false_is_a_failure(client):
    assert client.ask(prepare="work:half_fails", arguments=[], **{"as": "x"}) == {"ready": True}

    found = {"done": 0, "failed": 0}
    while found["failed"] < 5:  # on a busy machine a window may be over before it begins
        answer = client.ask(run="x", **window())
        found = {name: found[name] + answer[name] for name in found}

    assert abs(found["done"] - found["failed"]) <= 1


def test_an_object_with_a_window_counts_by_itself(client):
    client.ask(prepare="work:Windowed", arguments=[], **{"as": "x"})

    found = client.ask(run="x", **window(0))

    assert (found["done"], found["failed"]) == (7, 3)


def test_an_error_is_an_answer_and_ends_the_client(client):
    found = client.ask(prepare="work:broken", arguments=[], **{"as": "x"})

    assert found["error"].rstrip().endswith("RuntimeError: it cannot be made")
    assert client.process.wait(30) == 1


def test_a_client_ends_with_its_input(client):
    client.process.stdin.close()

    assert client.process.wait(30) == 0
