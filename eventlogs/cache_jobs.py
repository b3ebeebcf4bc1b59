"""Jobs for the cache that wait for the commit of the transaction that is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from eventlogs.reductions.reader import Refresh
from eventlogs.reductions.writes import CacheWrite
from eventlogs.refreshers import BaseRefresher, submit

# Limits on the jobs that wait for one commit: they hold their entries in memory.
MAX_JOBS: Final = 1_000
MAX_JOBS_BYTES: Final = 16_000_000

Job = CacheWrite | Refresh
AnyRefresher = str | Mapping[str, Any] | BaseRefresher | None  # None: that of the settings


def submit_after_commit(job: Job, refresher: AnyRefresher, connection: BaseDatabaseWrapper) -> bool:
    """
    Submit a job to the refresher, after the commit where a transaction is open.

    Return False for a job that is dropped, because too many wait for the commit.
    """
    if not connection.in_atomic_block:
        submit(job, refresher=refresher)
        return True
    hook = AfterCommit(job, refresher, connection.run_on_commit)
    if hook.number > MAX_JOBS or hook.total > MAX_JOBS_BYTES:
        return False
    # Robust: the application's own hooks run, even where this one fails.
    transaction.on_commit(hook, using=connection.alias, robust=True)
    return True


class AfterCommit:
    """
    A job that is submitted after a commit, and how many wait for the commit, in bytes as well.

    A savepoint that is rolled back takes its hooks out of the list. They are the last ones, so
    the numbers of the last hook that is left are right.
    """

    def __init__(self, job: Job, refresher: AnyRefresher, hooks: list[tuple[Any, ...]]) -> None:
        self.__qualname__ = type(self).__qualname__  # by which Django names a hook that failed
        self._job = job
        self._refresher = refresher
        ahead = (hook for _, hook, *_ in reversed(hooks) if isinstance(hook, AfterCommit))
        before = next(ahead, None)
        size = len(job.entry) if isinstance(job, CacheWrite) else 0
        self.number: int = 1 + (before.number if before is not None else 0)
        self.total: int = size + (before.total if before is not None else 0)

    def __call__(self) -> None:
        """Submit the job."""
        submit(self._job, refresher=self._refresher)
