"""
Deadlines: a handler that hangs is interrupted, and its event counts as failed.

The interruption is a signal (``SIGALRM``), which Python handles in the main thread and nowhere
else (https://docs.python.org/3/library/signal.html). In another thread, and on systems without
that signal, there is no deadline: there, the lease runs out, and another worker takes over.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class HandlerTimedOut(BaseException):
    """
    A handler took too long.

    It is a BaseException, so that it interrupts a handler that catches Exception.
    """


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise HandlerTimedOut inside of the block when it takes longer than ``seconds``."""
    possible = hasattr(signal, "setitimer")
    if not possible or threading.current_thread() is not threading.main_thread():
        yield
        return
    if any(signal.getitimer(signal.ITIMER_REAL)):
        yield  # another timer is running, e.g. a test's
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise HandlerTimedOut

    before = signal.signal(signal.SIGALRM, interrupt)
    # Repeat the alarm: an error that is raised in a destructor or callback is swallowed.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        # Again: the alarm may have come just before the timer was stopped.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
