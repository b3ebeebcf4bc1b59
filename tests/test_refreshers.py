"""Refreshers: when they are told, of what, and that nobody waits for them."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import django
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from eventlogs import AlwaysCache, LogManager
from eventlogs.caches.backends import cache_for, statistics
from eventlogs.caches.counters import counters
from eventlogs.reductions.worker import worker
from eventlogs.refreshers import (
    BaseRefresher,
    ImmediateRefresher,
    MessageRefresher,
    ThreadRefresher,
    label,
    refresh_by_names,
    refresher_for,
    told_key,
)
from eventlogs.testing import MemoryStore, RecordingCache
from tests.accounts import Account, Deposited, Opened

IMMEDIATE = "eventlogs.refreshers.ImmediateRefresher"


class Recording(BaseRefresher):
    def __init__(self):
        self.told = []

    def refresh(self, request):
        self.told.append(request)


class Broken(BaseRefresher):
    def refresh(self, request):
        raise RuntimeError("secret")


class Sending(MessageRefresher):
    def __init__(self):
        self.sent = []
        self.is_down = False

    def send(self, aggregate, log_id, using, cache):
        if self.is_down:
            raise ConnectionError("amqp://user:secret@broker")
        self.sent.append((aggregate, log_id, using, cache))


@pytest.fixture(autouse=True)
def _from_zero():
    counters.reset()
    yield
    assert worker.flush(5)
    cache_for("default").cache._cache.clear()  # type: ignore[attr-defined]


@pytest.fixture
def refresher():
    return Recording()


@pytest.fixture
def accounts(refresher):
    return LogManager(Account, using="default", refresher=refresher)


def test_it_is_told_after_a_reduce_that_folded_something_new(db, accounts, refresher):
    state = accounts.create(Opened("Ada"))
    assert refresher.told == []

    with transaction.atomic():
        pass
    accounts.reduce(state.log_id)
    worker.flush(5)
    accounts.reduce(state.log_id)

    # Inside of the test's transaction, which never commits, it is not told at all.
    assert refresher.told == []


def test_what_it_is_told(transactional_db, accounts, refresher):
    state = accounts.create(Opened("Ada"))

    accounts.reduce(state.log_id)
    worker.flush(5)
    accounts.reduce(state.log_id)
    state = accounts.append(state, Deposited(1))
    accounts.reduce(state.log_id)

    full, newer = refresher.told
    assert (full.log_id, full.using, full.aggregate) == (state.log_id, "default", Account)
    assert full.is_kept
    assert not newer.is_kept
    assert newer.entry is not None
    newer()
    accounts.reduce(state.log_id)
    assert len(refresher.told) == 2


@pytest.mark.parametrize("as_setting", [True, False])
def test_it_is_told_after_an_append_if_wanted(transactional_db, refresher, settings, as_setting):
    if as_setting:
        settings.EVENTLOGS = {"REFRESH_ON_APPEND": True}
        accounts = LogManager(Account, refresher=refresher)
    else:
        accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    state = accounts.create(Opened("Ada"))
    accounts.append(state, Deposited(5))

    assert [request.log_id for request in refresher.told] == [state.log_id] * 2
    assert all(request.entry is None for request in refresher.told)
    refresher.told[-1]()
    accounts.reduce(state.log_id)
    assert statistics()["hits"] == 1


def test_a_manager_may_refuse_what_the_setting_says(transactional_db, refresher, settings):
    settings.EVENTLOGS = {"REFRESH_ON_APPEND": True}
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=False)

    accounts.create(Opened("Ada"))

    assert refresher.told == []


def test_inside_of_a_transaction_it_is_told_after_the_commit(transactional_db, refresher):
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    with transaction.atomic():
        accounts.create(Opened("Ada"))
        assert refresher.told == []

    assert len(refresher.told) == 1


def test_after_a_rollback_it_is_not_told(transactional_db, refresher):
    accounts = LogManager(Account, refresher=refresher, refresh_on_append=True)

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        accounts.create(Opened("Ada"))
        raise ZeroDivisionError

    assert refresher.told == []


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


def test_outside_of_a_transaction_its_failure_is_nobodys_either(transactional_db):
    accounts = LogManager(Account, refresher=Broken(), refresh_on_append=True)

    state = accounts.create(Opened("Ada"))

    assert accounts.reduce(state.log_id).version == 1


def test_the_thread_writes_what_was_folded(transactional_db):
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


def test_a_full_queue_drops_and_counts(transactional_db, monkeypatch):
    monkeypatch.setattr(worker, "capacity", 0)
    accounts = LogManager(Account, refresher=ThreadRefresher(), refresh_on_append=True)

    state = accounts.create(Opened("Ada"))

    assert accounts.reduce(state.log_id).version == 1
    assert statistics()["errors"]["dropped"] >= 1


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

    def test_the_worker_takes_the_flag_down_and_refreshes(self, accounts, refresher):
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

    def test_the_flag_is_taken_down_before_the_log_is_read(self, accounts, monkeypatch):
        state = accounts.create(Opened("Ada"))
        worker.flush(5)
        reducer = accounts._reducer()
        flag = told_key(reducer.key(state.log_id))
        assert reducer.cache.get(flag) is not None
        seen = []
        refresh = type(reducer).refresh

        def look(self, log_id, store):
            seen.append(self.cache.get(flag))
            return refresh(self, log_id, store)

        monkeypatch.setattr(type(reducer), "refresh", look)
        refresh_by_names(label(Account), str(state.log_id), "default")

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
    def test_what_a_worker_could_not_know_of_is_done_here(self, refresher, options, db):
        accounts = LogManager(Account, refresher=refresher, refresh_on_append=True, **options)
        if "store" not in options:
            return  # told after the commit, which the test's transaction does not have

        state = accounts.create(Opened("Ada"))
        worker.flush(5)

        assert refresher.sent == []
        accounts.reduce(state.log_id)
        assert statistics()["hits"] == 1

    def test_the_cache_of_a_manager_travels_by_its_alias(self, refresher, transactional_db):
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

        assert not refresh_by_names(label(Account), str(log_id), "default")

    def test_what_no_repetition_would_mend_is_counted(self, transactional_db, monkeypatch):
        accounts = LogManager(Account, refresher=IMMEDIATE)
        state = accounts.create(Opened("Ada"))
        monkeypatch.setattr("eventlogs.events.codec.registry.by_name", lambda name: None)
        monkeypatch.setattr(Account, "event_types", ())

        assert not refresh_by_names(label(Account), str(state.log_id), "default")
        assert statistics()["errors"]["failed"] == 1

    def test_an_apply_that_exits_does_not_end_the_worker(self, transactional_db, monkeypatch):
        """Celery would deliver the message again, to the next worker that it ends."""
        state = LogManager(Account, refresher=IMMEDIATE).create(Opened("Ada"))

        def leave(self, record):
            raise SystemExit

        monkeypatch.setattr(Account, "apply", leave)

        assert not refresh_by_names(label(Account), str(state.log_id), "default")
        assert statistics()["errors"]["failed"] == 1


def test_a_refresher_is_named_by_its_path_and_made_once():
    one = refresher_for("eventlogs.refreshers.ThreadRefresher")

    assert isinstance(one, ThreadRefresher)
    assert refresher_for("eventlogs.refreshers.ThreadRefresher") is one
    assert refresher_for(one) is one
    assert refresher_for() is one


def test_the_setting_names_the_refresher(settings):
    settings.EVENTLOGS = {"REFRESHER": IMMEDIATE}

    assert isinstance(refresher_for(), ImmediateRefresher)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nowhere.Refresher", ImportError),
        ("eventlogs.refreshers.Missing", ImportError),
        ("eventlogs.testing.MemoryStore", TypeError),
    ],
)
def test_anything_else_is_no_refresher(path, error):
    with pytest.raises(error):
        refresher_for(path)


@pytest.mark.skipif(django.VERSION >= (6, 0), reason="Django has django.tasks")
def test_without_django_tasks_the_error_says_what_to_use():
    with pytest.raises(ImproperlyConfigured, match=r"Django 6\.0"):
        refresher_for("eventlogs.refreshers.TasksRefresher")


@pytest.mark.skipif(django.VERSION < (6, 0), reason="django.tasks came with Django 6.0")
def test_tasks_refresh(transactional_db, settings):
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
