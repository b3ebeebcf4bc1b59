"""Refreshers: which jobs are submitted to them, when, and how settings name them."""

from __future__ import annotations

import importlib
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import django
import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from eventlogs import AlwaysCache, LogManager
from eventlogs.caches.backends import statistics
from eventlogs.caches.counters import counters
from eventlogs.reductions.reader import Refresh
from eventlogs.reductions.worker import worker
from eventlogs.reductions.writes import CacheWrite
from eventlogs.refreshers import (
    BaseRefresher,
    ImmediateRefresher,
    MessageRefresher,
    ThreadRefresher,
    refresh_by_names,
    refresher_for,
    sent_key,
)
from eventlogs.testing import MemoryStore, RecordingCache
from eventlogs.utils.names import dotted
from tests.accounts import Account, Deposited, Opened

IMMEDIATE = "eventlogs.refreshers.ImmediateRefresher"


class Recording(BaseRefresher):
    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append(job)


class Broken(BaseRefresher):
    def submit(self, job):
        raise RuntimeError("secret")


class Sending(MessageRefresher):
    def __init__(self):
        super().__init__()
        self.sent = []
        self.is_down = False

    def send(self, message):
        if self.is_down:
            raise ConnectionError("amqp://user:secret@broker")
        self.sent.append(message)


@pytest.fixture(autouse=True)
def _from_zero():
    counters.reset()
    yield
    assert worker.flush(5)
    caches["default"].clear()


@pytest.fixture
def refresher():
    return Recording()


@pytest.fixture
def accounts(refresher):
    return LogManager(Account, using="default", refresher=refresher)


def test_a_refresher_gets_no_job_in_a_transaction_that_never_commits(db, accounts, refresher):
    state = accounts.create(Opened("Ada"))

    accounts.reduce(state.log_id)

    assert refresher.jobs == []


def test_a_refresher_gets_a_write_for_each_reduce_that_folded_new_events(
    transactional_db, accounts, refresher
):
    state = accounts.create(Opened("Ada"))
    assert refresher.jobs == []

    accounts.reduce(state.log_id)
    (first,) = refresher.jobs
    assert isinstance(first, CacheWrite)
    assert first()
    accounts.reduce(state.log_id)
    assert refresher.jobs == [first]

    state = accounts.append(state, Deposited(1))
    accounts.reduce(state.log_id)
    second = refresher.jobs[-1]
    assert second()
    assert not first()
    assert (first.key, first.aggregate) == (second.key, Account)
    accounts.reduce(state.log_id)
    assert len(refresher.jobs) == 2


def test_a_transaction_keeps_no_more_jobs_than_a_queue(transactional_db, refresher, monkeypatch):
    """A job holds its entry in memory until the commit."""
    monkeypatch.setattr("eventlogs.cache_jobs.MAX_JOBS", 5)
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    with transaction.atomic():
        for _ in range(8):
            accounts.create(Opened("Ada"))

    assert len(refresher.jobs) == 5
    assert statistics()["errors"]["dropped"] == 3


def test_other_hooks_of_the_transaction_are_no_jobs(transactional_db, refresher, monkeypatch):
    monkeypatch.setattr("eventlogs.cache_jobs.MAX_JOBS", 5)
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    with transaction.atomic():
        for _ in range(5):
            transaction.on_commit(lambda: None)
            accounts.create(Opened("Ada"))

    assert len(refresher.jobs) == 5


def test_a_transaction_keeps_no_more_bytes_of_entries(transactional_db, refresher, monkeypatch):
    accounts = LogManager(Account, refresher=refresher)
    log_ids = [accounts.create(Opened("Ada")).log_id for _ in range(8)]
    accounts.reduce(log_ids[0])
    entry = len(refresher.jobs.pop().entry)
    monkeypatch.setattr("eventlogs.cache_jobs.MAX_JOBS_BYTES", int(5.5 * entry))

    with transaction.atomic():
        for log_id in log_ids[:2]:
            accounts.reduce(log_id)
        # A savepoint that is rolled back gives room again.
        with suppress(KeyError), transaction.atomic():
            for log_id in log_ids[2:5]:
                accounts.reduce(log_id)
            raise KeyError
        transaction.on_commit(lambda: None)
        for log_id in log_ids[2:]:
            accounts.reduce(log_id)

    assert len(refresher.jobs) == 5
    assert statistics()["errors"]["dropped"] == 3


def test_a_job_of_a_turn_waits_for_its_commit(transactional_db, refresher):
    accounts = LogManager(Account, refresher=refresher)
    log_id = accounts.create(Opened("Ada")).log_id
    seen = []

    def decide(account: Account) -> Deposited:
        seen.append(list(refresher.jobs))
        return Deposited(1)

    accounts._contended.add(log_id)
    accounts.execute(log_id, decide)

    assert seen == [[]]
    assert len(refresher.jobs) == 1


@pytest.mark.parametrize("as_setting", [True, False])
def test_a_refresher_gets_a_refresh_for_each_append_with_refresh_on_append(
    transactional_db, refresher, settings, as_setting
):
    if as_setting:
        settings.EVENTLOGS = {"REFRESH_ON_APPEND": True}
        accounts = LogManager(Account, refresher=refresher)
    else:
        accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    state = accounts.create(Opened("Ada"))
    accounts.append(state, Deposited(5))

    assert refresher.jobs == [Refresh(accounts._reductions(), state.log_id)] * 2
    assert refresher.jobs[-1]()
    accounts.reduce(state.log_id)
    assert statistics()["hits"] == 1


def test_a_manager_may_override_refresh_on_append(transactional_db, refresher, settings):
    settings.EVENTLOGS = {"REFRESH_ON_APPEND": True}
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=False)

    accounts.create(Opened("Ada"))

    assert refresher.jobs == []


def test_a_refresher_gets_the_jobs_of_a_transaction_after_the_commit(transactional_db, refresher):
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    with transaction.atomic():
        accounts.create(Opened("Ada"))
        assert refresher.jobs == []

    assert len(refresher.jobs) == 1


def test_a_refresher_gets_no_job_after_a_rollback(transactional_db, refresher):
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        accounts.create(Opened("Ada"))
        raise ZeroDivisionError

    assert refresher.jobs == []


def test_after_a_rollback_to_a_savepoint_a_refresher_gets_the_jobs_of_committed_work(
    transactional_db, refresher
):
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    with transaction.atomic():
        kept = accounts.create(Opened("Ada"))
        with transaction.atomic():
            inner = accounts.create(Opened("Bob"))
            accounts.reduce(inner.log_id)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            accounts.append(kept, Deposited(1))
            accounts.reduce(kept.log_id)
            raise ZeroDivisionError
        assert refresher.jobs == []

    first, second, write = refresher.jobs
    assert [first.log_id, second.log_id] == [kept.log_id, inner.log_id]
    assert write.key == accounts._reductions().key(inner.log_id)


def test_a_refresher_that_cannot_be_made_fails_no_caller_and_is_logged(
    transactional_db, settings, caplog
):
    settings.EVENTLOGS = {
        "REFRESHER": {"BACKEND": "eventlogs.refreshers.ThreadRefresher", "OPTIONS": {"queue": "x"}},
        "REFRESH_ON_APPEND": True,
    }
    accounts = LogManager(Account)

    state = accounts.create(Opened("Ada"))

    assert accounts.reduce(state.log_id).version == 1
    assert statistics()["errors"]["failed"] == 2
    assert "ThreadRefresher has no option 'queue'" in caplog.text


def test_without_a_thread_reducing_and_appending_continue(transactional_db, monkeypatch):
    def start(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    accounts = LogManager(Account, refresher=ThreadRefresher(), refresh_on_append=True)
    monkeypatch.setattr(worker, "_thread", None)
    monkeypatch.setattr("threading.Thread.start", start)
    state = accounts.create(Opened("Ada"))

    assert accounts.reduce(state.log_id).version == 1
    assert statistics()["errors"]["failed"] >= 1


def test_hooks_of_the_application_run_when_ours_fails(transactional_db, caplog):
    ran = []
    accounts = LogManager(Account, refresher=Broken(), refresh_on_append=True)

    with transaction.atomic():
        transaction.on_commit(lambda: ran.append("before"))
        accounts.create(Opened("Ada"))
        transaction.on_commit(lambda: ran.append("after"))

    assert ran == ["before", "after"]
    assert statistics()["errors"]["failed"] == 1
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_outside_of_a_transaction_its_failure_is_not_raised_either(transactional_db):
    accounts = LogManager(Account, refresher=Broken(), refresh_on_append=True)

    state = accounts.create(Opened("Ada"))

    assert accounts.reduce(state.log_id).version == 1


def test_the_thread_writes_new_reductions(transactional_db):
    accounts = LogManager(Account, refresher="eventlogs.refreshers.ThreadRefresher")
    state = accounts.create(Opened("Ada"))

    accounts.reduce(state.log_id)
    accounts.append(state, Deposited(1))
    accounts.reduce(state.log_id)
    assert worker.flush(5)
    accounts.reduce(state.log_id)

    assert statistics()["hits"] == 1
    assert statistics()["refreshes"] in (1, 2)  # the second may have taken the first's place


def test_the_thread_reads_the_log_after_an_append(transactional_db):
    accounts = LogManager(
        Account, refresher="eventlogs.refreshers.ThreadRefresher", refresh_on_append=True
    )
    state = accounts.create(Opened("Ada"))
    accounts.append(state, Deposited(5))
    assert worker.flush(10)

    assert accounts.reduce(state.log_id).aggregate.balance == 5
    assert statistics()["hits"] == 1


def test_a_full_queue_drops_and_counts(transactional_db):
    refresher = ThreadRefresher(capacity=1, delay=60)
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    states = [accounts.create(Opened("Ada")) for _ in range(3)]

    assert all(accounts.reduce(state.log_id).version == 1 for state in states)
    assert statistics()["errors"]["dropped"] >= 2


def test_the_immediate_one_is_done_when_the_call_returns(transactional_db):
    accounts = LogManager(Account, refresher=IMMEDIATE, refresh_on_append=True)
    state = accounts.create(Opened("Ada"))

    accounts.reduce(state.log_id)

    assert statistics()["hits"] == 1


class TestMessages:
    @pytest.fixture
    def refresher(self):
        return Sending()

    @pytest.fixture
    def accounts(self, refresher, transactional_db):
        return LogManager(Account, refresher=refresher, refresh_on_append=True)

    def test_there_is_one_message_for_many_appends(self, accounts, refresher):
        state = accounts.create(Opened("Ada"))
        for _ in range(50):
            state = accounts.append(state, Deposited(1))
            worker.flush(5)

        assert refresher.sent == [("tests.accounts.Account", str(state.log_id), "default", None)]

    def test_the_receiver_clears_the_flag_and_refreshes(self, accounts, refresher):
        state = accounts.create(Opened("Ada"))
        worker.flush(5)

        assert refresh_by_names(*refresher.sent[0])
        state = accounts.append(state, Deposited(1))
        worker.flush(5)

        assert len(refresher.sent) == 2
        assert refresh_by_names(*refresher.sent[1])
        assert not refresh_by_names(*refresher.sent[1])
        accounts.reduce(state.log_id)
        assert statistics()["hits"] == 1

    def test_the_flag_is_cleared_before_the_log_is_read(self, accounts, monkeypatch):
        state = accounts.create(Opened("Ada"))
        worker.flush(5)
        reader = accounts._reductions()
        flag = sent_key(reader.key(state.log_id))
        assert reader.cache.get(flag) is not None
        seen = []
        refresh = type(reader).refresh

        def look(self, log_id):
            seen.append(self.cache.get(flag))
            return refresh(self, log_id)

        monkeypatch.setattr(type(reader), "refresh", look)
        refresh_by_names(dotted(Account), str(state.log_id), "default")

        assert seen == [None]

    def test_a_message_that_cannot_be_sent_is_counted_and_sent_with_the_next(
        self, accounts, refresher, caplog
    ):
        refresher.is_down = True
        state = accounts.create(Opened("Ada"))
        worker.flush(5)
        assert statistics()["errors"]["unsent"] == 1
        assert "secret" not in caplog.text

        refresher.is_down = False
        accounts.append(state, Deposited(1))
        worker.flush(5)

        assert len(refresher.sent) == 1

    @pytest.mark.parametrize(
        "options",
        [{"store": MemoryStore()}, {"cache": RecordingCache()}, {"caching_policy": AlwaysCache()}],
        ids=lambda options: next(iter(options)),
    )
    def test_a_job_that_a_worker_could_not_rebuild_is_done_in_this_process(
        self, refresher, options, db
    ):
        accounts = LogManager(Account, refresher=refresher, refresh_on_append=True, **options)
        if "store" not in options:
            return  # jobs are submitted after the commit, which the test's transaction lacks

        state = accounts.create(Opened("Ada"))
        worker.flush(5)

        assert refresher.sent == []
        accounts.reduce(state.log_id)
        assert statistics()["hits"] == 1

    def test_the_message_names_the_cache_of_a_manager_by_its_alias(
        self, refresher, transactional_db
    ):
        accounts = LogManager(Account, refresher=refresher, refresh_on_append=True, cache="default")
        accounts.create(Opened("Ada"))
        worker.flush(5)

        assert refresher.sent[0][3] == "default"


class TestByNames:
    def test_an_unknown_class_is_logged_and_dropped(self, db, caplog):
        assert not refresh_by_names("nowhere.Missing", "account_x", "default")
        assert not refresh_by_names("example_project.payments.nowhere.Missing", "x", "default")
        assert "nowhere.Missing" in caplog.text

    def test_the_module_of_an_app_is_imported(self, db, monkeypatch, scratch_registry):
        imported = []
        monkeypatch.setattr(
            "eventlogs.refreshers.import_module", lambda name: imported.append(name)
        )

        refresh_by_names("example_project.payments.later.Later", "x", "default")
        refresh_by_names("os.Later", "x", "default")

        assert imported == ["example_project.payments.later"]

    def test_a_log_that_does_not_exist_has_nothing_to_refresh(self, db):
        log_id = LogManager(Account).new_id()

        assert not refresh_by_names(dotted(Account), str(log_id), "default")

    def test_a_failure_that_a_retry_cannot_repair_is_counted(self, transactional_db, monkeypatch):
        accounts = LogManager(Account, refresher=IMMEDIATE)
        state = accounts.create(Opened("Ada"))
        monkeypatch.setattr("eventlogs.events.codec.registry.by_name", lambda name: None)
        monkeypatch.setattr(Account, "event_types", ())

        assert not refresh_by_names(dotted(Account), str(state.log_id), "default")
        assert statistics()["errors"]["failed"] == 1

    def test_system_exit_in_apply_does_not_end_the_worker(self, transactional_db, monkeypatch):
        """Celery would deliver the message again, to the next worker that it ends."""
        state = LogManager(Account, refresher=IMMEDIATE).create(Opened("Ada"))

        def leave(self, record):
            raise SystemExit

        monkeypatch.setattr(Account, "apply", leave)

        assert not refresh_by_names(dotted(Account), str(state.log_id), "default")
        assert statistics()["errors"]["failed"] == 1


THREAD = "eventlogs.refreshers.ThreadRefresher"


def test_a_refresher_is_named_by_its_path_and_made_once():
    one = refresher_for(THREAD)

    assert isinstance(one, ThreadRefresher)
    assert refresher_for(THREAD) is one
    assert refresher_for(one) is one
    assert refresher_for() is one


def test_a_dict_names_the_backend_and_its_options():
    one = refresher_for({"BACKEND": THREAD, "OPTIONS": {"capacity": 5, "delay": 0.25}})

    assert isinstance(one, ThreadRefresher)
    assert (one.capacity, one.delay) == (5, 0.25)
    assert refresher_for({"BACKEND": THREAD, "OPTIONS": {"delay": 0.25, "capacity": 5}}) is one
    assert refresher_for({"BACKEND": THREAD, "OPTIONS": {"capacity": 6}}) is not one
    default: Any = refresher_for({"BACKEND": THREAD})
    assert default.capacity == 1_000


@pytest.mark.parametrize(
    "named", [IMMEDIATE, {"BACKEND": IMMEDIATE}, {"BACKEND": IMMEDIATE, "OPTIONS": {}}]
)
def test_the_setting_or_the_manager_names_the_refresher(transactional_db, settings, named):
    manager = LogManager(Account, refresher=named)
    state = manager.create(Opened("Ada"))
    manager.reduce(state.log_id)
    assert manager._reductions().versions([state.log_id]) == {state.log_id: 1}

    settings.EVENTLOGS = {"REFRESHER": named}
    assert isinstance(refresher_for(), ImmediateRefresher)


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ("nowhere.Refresher", ImportError),
        ("eventlogs.refreshers.Missing", ImportError),
        ("eventlogs.testing.MemoryStore", TypeError),
        ("eventlogs.refreshers.refresher_for", TypeError),
        ({"BACKEND": "eventlogs.testing.MemoryStore"}, TypeError),
        ({"OPTIONS": {}}, TypeError),
        ({"BACKEND": THREAD, "OPTIONS": ["capacity"]}, TypeError),
        (17, TypeError),
    ],
)
def test_another_value_is_refused_as_a_refresher(named, error):
    with pytest.raises(error):
        refresher_for(named)


@pytest.mark.parametrize(
    ("named", "text"),
    [
        (
            {"BACKEND": THREAD, "OPTIONS": {"queue": "reductions"}},
            "eventlogs.refreshers.ThreadRefresher has no option 'queue'. Its options: "
            "'capacity', 'delay'.",
        ),
        (
            {"BACKEND": IMMEDIATE, "OPTIONS": {"delay": 1}},
            "eventlogs.refreshers.ImmediateRefresher has no option 'delay'. Its options: none.",
        ),
        (
            {"BACKEND": THREAD, "OPTIONS": {"capacity": 0}},
            "The refresher's option 'capacity' is 0. It must be an int from 1 to 1,000,000.",
        ),
        (
            {"BACKEND": THREAD, "OPTIONS": {"delay": "1"}},
            "The refresher's option 'delay' is '1'. It must be a number from 0 to 3,600.",
        ),
        (
            {"BACKEND": THREAD, "CAPACITY": 5},
            "A refresher has no key 'CAPACITY'. Its keys are 'BACKEND' and 'OPTIONS'.",
        ),
    ],
)
def test_an_option_that_a_refresher_does_not_accept_is_named(named, text):
    with pytest.raises(ImproperlyConfigured) as caught:
        refresher_for(named)

    assert str(caught.value) == text


@pytest.mark.skipif(django.VERSION >= (6, 0), reason="Django has django.tasks")
def test_without_django_tasks_the_error_says_what_to_use():
    with pytest.raises(ImproperlyConfigured, match=r"Django 6\.0"):
        refresher_for("eventlogs.refreshers.TasksRefresher")


@pytest.mark.skipif(django.VERSION < (6, 0), reason="django.tasks came with Django 6.0")
def test_tasks_refresher_refreshes(transactional_db, settings):
    settings.TASKS = {"default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"}}
    accounts = LogManager(
        Account, refresher="eventlogs.refreshers.TasksRefresher", refresh_on_append=True
    )

    state = accounts.create(Opened("Ada"))
    assert worker.flush(10)

    accounts.reduce(state.log_id)
    assert statistics()["hits"] == 1


@pytest.mark.skipif(find_spec("celery") is None, reason="Celery is not installed")
def test_the_tasks_of_celery_are_found_by_their_names():
    tasks = importlib.import_module("eventlogs.tasks")

    assert tasks.refresh_reduction.name == "eventlogs.refresh_reduction"
    assert tasks.sweep_reductions.name == "eventlogs.sweep_reductions"
