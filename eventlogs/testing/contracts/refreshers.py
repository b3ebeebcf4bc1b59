"""The contract of refreshers, which write cached reductions."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest
from django.db import transaction

from eventlogs.aggregates import Aggregate
from eventlogs.caches.backends import statistics
from eventlogs.events import EventRecord, event
from eventlogs.events.codec import EventReader
from eventlogs.ids import LogId
from eventlogs.logs import LogManager
from eventlogs.reductions.reader import Reading, ReductionReader, Refresh
from eventlogs.reductions.worker import worker
from eventlogs.refreshers import BaseRefresher
from eventlogs.testing.memory import MemoryStore
from eventlogs.testing.recording import RecordingCache

FORK_PATIENCE: Final = 60.0  # seconds after which a fork that does not end is killed


# With names that no project uses: registering these must be no clash with its own events.
@event("eventlogs_contract.opened")
@dataclass(frozen=True, slots=True)
class Opened:
    owner: str


@event("eventlogs_contract.deposited")
@dataclass(frozen=True, slots=True)
class Deposited:
    amount: int


@dataclass
class Account(Aggregate, log_type="eventlogs_contract", events=[Opened, Deposited]):
    owner: str = ""
    balance: int = 0

    def apply(self, record: EventRecord) -> None:
        match record.event:
            case Opened(owner=owner):
                self.owner = owner
            case Deposited(amount=amount):
                self.balance += amount


def reductions(
    store: MemoryStore | None = None, cache: RecordingCache | None = None
) -> ReductionReader[Account]:
    """Return the reader of cached reductions of accounts, by default as the settings say."""
    return ReductionReader(
        Account,
        using="default",
        events=EventReader(Account.event_types),
        store=store,
        cache=cache,
        policy=None,
    )


def exit_of_fork(job: Callable[[], object]) -> int:
    """Call ``job`` in a fork of this process, and return how that ends: 0 where it returned."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    until = time.monotonic() + FORK_PATIENCE
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the fork did not end within {FORK_PATIENCE:.0f} s")
        time.sleep(0.01)


class RefresherContract:
    """
    Derive from it, and define the fixture ``refresher``.

    ``rest`` returns once all that was submitted is done, also by other processes. The tests
    commit; their cache is ``CACHES["default"]``, which is empty for each test.
    """

    @pytest.fixture
    def refresher(self) -> BaseRefresher:
        raise NotImplementedError

    def rest(self, refresher: BaseRefresher) -> None:
        assert worker.flush(10)

    @pytest.fixture
    def accounts(self, refresher: BaseRefresher, transactional_db: None) -> LogManager[Account]:
        return LogManager(Account, refresher=refresher, refresh_on_append=True)

    @pytest.fixture
    def log_id(self, accounts: LogManager[Account]) -> LogId:
        """A log of three events that is not cached."""
        quiet = LogManager(Account, refresh_on_append=False)
        return quiet.create(Opened("Ada"), Deposited(1), Deposited(2)).log_id

    def cached(self, log_id: LogId) -> int | None:
        """Return the version of a log that is cached, or None."""
        return reductions().versions([log_id]).get(log_id)

    def read(self, log_id: LogId) -> Reading[Account]:
        """Read a log, and return the job that writes the cache, undone."""
        reader = reductions()
        return reader.read(log_id, reader.store)

    # After all jobs, the entry is at the newest version.

    def test_a_reduction_is_cached_after_all_jobs(self, refresher, accounts, log_id) -> None:
        accounts.reduce(log_id)
        self.rest(refresher)

        assert self.cached(log_id) == 3

    def test_a_reduction_with_newer_events_is_cached_after_all_jobs(
        self, refresher, accounts, log_id
    ) -> None:
        accounts.reduce(log_id)
        self.rest(refresher)
        LogManager(Account).append(log_id, Deposited(3), expected_version=3)

        accounts.reduce(log_id)
        self.rest(refresher)

        assert self.cached(log_id) == 4

    def test_appended_events_are_cached_after_all_jobs(self, refresher, accounts) -> None:
        state = accounts.create(Opened("Ada"))
        for amount in range(1, 10):
            state = accounts.append(state, Deposited(amount))
        self.rest(refresher)

        assert self.cached(state.log_id) == 10
        before = statistics()["hits"]
        assert accounts.reduce(state.log_id).aggregate.balance == 45
        assert statistics()["hits"] == before + 1

    def test_an_append_after_all_jobs_is_cached_as_well(self, refresher, accounts) -> None:
        state = accounts.create(Opened("Ada"))
        self.rest(refresher)
        accounts.append(state, Deposited(1))
        self.rest(refresher)

        assert self.cached(state.log_id) == 2

    # An entry is never replaced by an older one; jobs may come twice, late or never.

    def test_an_older_entry_that_comes_late_changes_nothing(
        self, refresher, accounts, log_id
    ) -> None:
        older = self.read(log_id).job
        LogManager(Account).append(log_id, Deposited(3), expected_version=3)
        newer = self.read(log_id).job

        for job in (newer, older, older):
            refresher.submit(job)
            self.rest(refresher)
            assert self.cached(log_id) == 4

    def test_an_entry_that_comes_twice_changes_nothing(self, refresher, accounts, log_id) -> None:
        job = self.read(log_id).job
        for _ in range(2):
            refresher.submit(job)
            refresher.submit(job)
            self.rest(refresher)
            assert self.cached(log_id) == 3

    def test_a_refresh_that_comes_twice_or_late_changes_nothing(
        self, refresher, accounts, log_id
    ) -> None:
        job = Refresh(reductions(), log_id)
        refresher.submit(job)
        refresher.submit(job)
        self.rest(refresher)
        assert self.cached(log_id) == 3

        LogManager(Account).append(log_id, Deposited(3), expected_version=3)
        accounts.reduce(log_id)
        refresher.submit(job)
        self.rest(refresher)

        assert self.cached(log_id) == 4

    def test_lost_jobs_change_no_answers(self, accounts, log_id) -> None:
        for _ in range(3):
            assert self.read(log_id).reduction.aggregate.balance == 3

    def test_a_refresh_of_a_log_that_does_not_exist_does_nothing(self, refresher, accounts) -> None:
        log_id = accounts.new_id()
        refresher.submit(Refresh(reductions(), log_id))
        self.rest(refresher)

        assert self.cached(log_id) is None

    # Failures are not raised to a caller.

    def test_a_cache_that_fails_fails_neither_writer_nor_reader(
        self, refresher, transactional_db
    ) -> None:
        cache = RecordingCache()
        cache.is_down = True
        accounts = LogManager(Account, cache=cache, refresher=refresher, refresh_on_append=True)

        state = accounts.create(Opened("Ada"))
        state = accounts.append(state, Deposited(5))

        assert accounts.reduce(state.log_id).aggregate.balance == 5
        self.rest(refresher)

    def test_a_fold_that_fails_fails_no_writer(self, refresher, accounts, monkeypatch) -> None:
        def fail(self, record):
            raise SystemExit

        state = accounts.create(Opened("Ada"))
        self.rest(refresher)
        with monkeypatch.context() as patch:
            patch.setattr(Account, "apply", fail)
            state = accounts.append(state, Deposited(5))
            self.rest(refresher)
        accounts.append(state, Deposited(6))
        self.rest(refresher)

        assert self.cached(state.log_id) == 3

    # Transactions

    def test_inside_of_a_transaction_nothing_is_done_before_the_commit(
        self, refresher, accounts
    ) -> None:
        with transaction.atomic():
            state = accounts.create(Opened("Ada"))
            accounts.reduce(state.log_id)
            self.rest(refresher)
            assert self.cached(state.log_id) is None

        self.rest(refresher)
        assert self.cached(state.log_id) == 1

    def test_after_a_rollback_nothing_is_done(self, refresher, accounts, log_id) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            accounts.append(log_id, Deposited(5), expected_version=3)
            accounts.reduce(log_id)
            raise ZeroDivisionError

        self.rest(refresher)
        assert self.cached(log_id) is None

    # Processes

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
    def test_a_forked_process_does_its_own_jobs(self, refresher) -> None:
        # In memory: no connection of the parent's is used in the child.
        store, cache = MemoryStore(), RecordingCache()
        accounts = LogManager(
            Account, store=store, cache=cache, refresher=refresher, refresh_on_append=True
        )
        reader = reductions(store, cache)
        state = accounts.create(Opened("Ada"))
        self.rest(refresher)  # its thread, if it has one, is not in the child

        def append() -> None:
            appended = accounts.append(state, Deposited(1))
            self.rest(refresher)
            assert reader.versions([appended.log_id]) == {state.log_id: 2}

        assert exit_of_fork(append) == 0
        accounts.append(state, Deposited(1), Deposited(2))
        self.rest(refresher)
        assert reader.versions([state.log_id]) == {state.log_id: 3}


class MessageRefresherContract(RefresherContract):
    """For refreshers that send messages: define ``broken`` as well, whose broker is down."""

    @pytest.fixture
    def broken(self) -> BaseRefresher:
        raise NotImplementedError

    def test_a_broker_that_is_down_fails_no_writer(self, broken, transactional_db, caplog) -> None:
        accounts = LogManager(Account, refresher=broken, refresh_on_append=True)
        before = statistics()["errors"]["unsent"]

        state = accounts.create(Opened("Ada"))
        assert worker.flush(20)

        assert accounts.reduce(state.log_id).version == 1
        assert statistics()["errors"]["unsent"] == before + 1
        assert "could not be sent" in caplog.text
