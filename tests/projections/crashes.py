"""Processes that die in the middle of something."""

from __future__ import annotations

import os
import signal

from django.db import connections


def killed_in(call):
    """Make a call in a process of its own, and return the signal that ended it."""
    connections.close_all()
    child = os.fork()
    if child == 0:
        try:
            call()
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def kill_me(*_, **__):
    """Die here and now."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_on(number):
    """Return a function that lets the process die when it is called so many times."""
    calls = []

    def count(*_, **__):
        calls.append(1)
        if len(calls) == number:
            kill_me()

    return count
