"""The contract of refreshers."""

from __future__ import annotations

import os

import pytest
from django.db import transaction

from eventlogs import LogId, LogManager
from eventlogs.caches.backends import statistics
from eventlogs.reductions.reader import Reading, Refresh
from eventlogs.reductions.worker import worker
from eventlogs.refreshers import BaseRefresher
from eventlogs.testing import MemoryStore, RecordingCache
from tests.accounts import Account, Deposited, Opened
from tests.processes import exit_of_fork


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

    def cached(self, accounts: LogManager[Account], log_id: LogId) -> int | None:
        return accounts._reductions().versions([log_id]).get(log_id)

    def read(self, accounts: LogManager[Account], log_id: LogId) -> Reading[Account]:
        reductions = accounts._reductions()
        return reductions.read(log_id, reductions.store)

    # After all jobs, the entry is at the newest version.

    def test_a_reduction_is_cached_after_all_jobs(self, refresher, accounts, log_id):
        accounts.reduce(log_id)
        self.rest(refresher)

        assert self.cached(accounts, log_id) == 3

    def test_a_reduction_with_newer_events_is_cached_after_all_jobs(
        self, refresher, accounts, log_id
    ):
        accounts.reduce(log_id)
        self.rest(refresher)
        LogManager(Account).append(log_id, Deposited(3), expected_version=3)

        accounts.reduce(log_id)
        self.rest(refresher)

        assert self.cached(accounts, log_id) == 4

    def test_appended_events_are_cached_after_all_jobs(self, refresher, accounts):
        state = accounts.create(Opened("Ada"))
        for amount in range(1, 10):
            state = accounts.append(state, Deposited(amount))
        self.rest(refresher)

        assert self.cached(accounts, state.log_id) == 10
        before = statistics()["hits"]
        assert accounts.reduce(state.log_id).aggregate.balance == 45
        assert statistics()["hits"] == before + 1

    def test_an_append_after_all_jobs_is_cached_as_well(self, refresher, accounts):
        state = accounts.create(Opened("Ada"))
        self.rest(refresher)
        accounts.append(state, Deposited(1))
        self.rest(refresher)

        assert self.cached(accounts, state.log_id) == 2

    # An entry is never replaced by an older one; jobs may come twice, late or never.

    def test_an_older_entry_that_comes_late_changes_nothing(self, refresher, accounts, log_id):
        older = self.read(accounts, log_id).job
        LogManager(Account).append(log_id, Deposited(3), expected_version=3)
        newer = self.read(accounts, log_id).job

        for job in (newer, older, older):
            refresher.submit(job)
            self.rest(refresher)
            assert self.cached(accounts, log_id) == 4

    def test_an_entry_that_comes_twice_changes_nothing(self, refresher, accounts, log_id):
        job = self.read(accounts, log_id).job
        for _ in range(2):
            refresher.submit(job)
            refresher.submit(job)
            self.rest(refresher)
            assert self.cached(accounts, log_id) == 3

    def test_a_refresh_that_comes_twice_or_late_changes_nothing(self, refresher, accounts, log_id):
        job = Refresh(accounts._reductions(), log_id)
        refresher.submit(job)
        refresher.submit(job)
        self.rest(refresher)
        assert self.cached(accounts, log_id) == 3

        LogManager(Account).append(log_id, Deposited(3), expected_version=3)
        accounts.reduce(log_id)
        refresher.submit(job)
        self.rest(refresher)

        assert self.cached(accounts, log_id) == 4

    def test_lost_jobs_change_no_answers(self, accounts, log_id):
        for _ in range(3):
            assert self.read(accounts, log_id).reduction.aggregate.balance == 3

    def test_a_refresh_of_a_log_that_does_not_exist_does_nothing(self, refresher, accounts):
        log_id = accounts.new_id()
        refresher.submit(Refresh(accounts._reductions(), log_id))
        self.rest(refresher)

        assert self.cached(accounts, log_id) is None

    # Failures are not raised to a caller.

    def test_a_cache_that_fails_fails_neither_writer_nor_reader(self, refresher, transactional_db):
        cache = RecordingCache()
        cache.is_down = True
        accounts = LogManager(Account, cache=cache, refresher=refresher, refresh_on_append=True)

        state = accounts.create(Opened("Ada"))
        state = accounts.append(state, Deposited(5))

        assert accounts.reduce(state.log_id).aggregate.balance == 5
        self.rest(refresher)

    def test_a_fold_that_fails_fails_no_writer(self, refresher, accounts, monkeypatch):
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

        assert self.cached(accounts, state.log_id) == 3

    # Transactions

    def test_inside_of_a_transaction_nothing_is_done_before_the_commit(self, refresher, accounts):
        with transaction.atomic():
            state = accounts.create(Opened("Ada"))
            accounts.reduce(state.log_id)
            self.rest(refresher)
            assert self.cached(accounts, state.log_id) is None

        self.rest(refresher)
        assert self.cached(accounts, state.log_id) == 1

    def test_after_a_rollback_nothing_is_done(self, refresher, accounts, log_id):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            accounts.append(log_id, Deposited(5), expected_version=3)
            accounts.reduce(log_id)
            raise ZeroDivisionError

        self.rest(refresher)
        assert self.cached(accounts, log_id) is None

    # Processes

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
    def test_a_forked_process_does_its_own_jobs(self, refresher):
        accounts = LogManager(
            Account,
            store=MemoryStore(),  # no connection of the parent's is used in the child
            cache=RecordingCache(),
            refresher=refresher,
            refresh_on_append=True,
        )
        state = accounts.create(Opened("Ada"))
        self.rest(refresher)  # its thread, if it has one, is not in the child

        def append() -> None:
            appended = accounts.append(state, Deposited(1))
            self.rest(refresher)
            assert self.cached(accounts, appended.log_id) == 2

        assert exit_of_fork(append) == 0
        accounts.append(state, Deposited(1), Deposited(2))
        self.rest(refresher)
        assert self.cached(accounts, state.log_id) == 3


class MessageRefresherContract(RefresherContract):
    """For refreshers that send messages: define ``broken`` as well, whose broker is down."""

    @pytest.fixture
    def broken(self) -> BaseRefresher:
        raise NotImplementedError

    def test_a_broker_that_is_down_fails_no_writer(self, broken, transactional_db, caplog):
        accounts = LogManager(Account, refresher=broken, refresh_on_append=True)
        before = statistics()["errors"]["unsent"]

        state = accounts.create(Opened("Ada"))
        assert worker.flush(20)

        assert accounts.reduce(state.log_id).version == 1
        assert statistics()["errors"]["unsent"] == before + 1
        assert "could not be sent" in caplog.text
