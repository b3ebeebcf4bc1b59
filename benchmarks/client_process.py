"""
A client process of a contest, which lives as long as its team: ``python -m``, with a setup.

It imports nothing but the standard library before its setup, because it also runs in the
environments of other packages. Its parent writes a line of JSON for each thing to do, and reads
one line of JSON for each that is done::

    {"prepare": "module:function", "arguments": []}       → {"ready": true}
    {"run": "module:function", "begin": 12.5, "end": 13.5} → {"done": 812, "failed": 0, …}

``function`` is called once, and returns what is measured: a function that is called over and over
(one that returns False has failed), or an object with ``window(end)``, which works until
``time.monotonic()`` is ``end`` and returns how many it has done, and how many have failed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

# Calls to connect and prepare; fewer of those that take long, but more than psycopg prepares after.
WARM_UP, LEAST_WARM_UP = 20, 6
LONG_WARM_UP = 1.0  # seconds


def find(name: str) -> Any:
    """Return the function that "module:function" names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


class Calls:
    """A function that is called over and over."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        begin = time.monotonic()
        for number in range(WARM_UP):
            if number >= LEAST_WARM_UP and time.monotonic() - begin > LONG_WARM_UP:
                break
            call()

    def window(self, end: float) -> tuple[int, int]:
        """Call until the end; return how often it has worked and failed."""
        call, now = self.call, time.monotonic
        done = failed = 0
        while now() < end:
            if call() is False:
                failed += 1
            else:
                done += 1
        return done, failed


def answer(request: dict[str, Any], prepared: dict[str, Any]) -> dict[str, Any]:
    """Run the command of a line."""
    if "prepare" in request:
        name = request["prepare"]
        made = find(name)(*request["arguments"])
        prepared[request["as"]] = made if hasattr(made, "window") else Calls(made)
        return {"ready": True}
    work = prepared[request["run"]]
    time.sleep(max(0.0, request["begin"] - time.monotonic()))
    cpu, begin = time.process_time(), time.monotonic()
    done, failed = work.window(request["end"])
    return {
        "done": done,
        "failed": failed,
        "seconds": time.monotonic() - begin,
        "cpu": time.process_time() - cpu,
    }


def main() -> None:
    """Answer lines until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us, by closing stdin
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of other code is no answer
    prepared: dict[str, Any] = {}
    try:
        if sys.argv[1:] and sys.argv[1]:
            find(sys.argv[1])()
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line), prepared)), file=out, flush=True)
    except Exception:
        print(json.dumps({"error": traceback.format_exc(limit=-4)}), file=out, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
