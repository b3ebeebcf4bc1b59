"""Forks of the test's own process, for code that must survive a fork."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

from tests.processes.waiting import until


def exit_of_fork(job: Callable[[], object], *, fork: Callable[[], int] = os.fork) -> int:
    """
    Call ``job`` in a fork of this process, and return how that ends.

    0 stands for a job that returned, 1 for one that raised an error, which is printed, and -9 for
    one that was ended by signal 9. A fork that does not end is killed.
    """
    child = fork()
    if child == 0:
        code = 1
        try:
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    statuses: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            statuses.append(status)
        return bool(pid)

    try:
        until(has_ended, seconds=60, what="the end of a fork")
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(statuses[0])
