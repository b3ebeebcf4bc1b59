"""
``manage.py`` with a signal at a bad moment: python -m tests.management.signalled MOMENT DATABASE …

MOMENT is "birth" (a worker is told to stop before it has handlers of its own), "fork" (the parent
is, before it has noted its first worker) or "later" (workers get half a second to end).
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

from tests.management.manage import main


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hurry() -> None:
    vars(import_module("eventlogs.management.subcommands.project"))["GRACE"] = 0.5


if __name__ == "__main__":
    moment = sys.argv.pop(1)
    if moment == "birth":
        os.register_at_fork(after_in_child=stop)
    elif moment == "fork":
        os.register_at_fork(after_in_parent=stop)
    main(hurry if moment == "later" else lambda: None)
