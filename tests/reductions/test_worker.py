"""Work in the background: a short queue and one thread."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread, current_thread
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from django.db import InterfaceError, connections

from eventlogs.reductions.worker import Worker, runs_threads
from tests.overriding import override
from tests.processes import exit_of_fork, output_of, until


@pytest.fixture
def queue():
    made = Worker()
    yield made
    assert made.flush(5)


@pytest.fixture
def blocked(queue):
    """Keep the queue's thread busy, until the event is set."""
    started, go_on = Event(), Event()

    def job():
        started.set()
        assert go_on.wait(10)

    assert queue.submit("blocker", job)
    assert started.wait(5)
    yield go_on
    go_on.set()


def test_a_job_is_refused_if_no_thread_can_start_and_the_next_one_starts_a_thread(
    queue, monkeypatch
):
    """At a limit of the system, or when the interpreter shuts down."""
    done = []
    with monkeypatch.context() as limited:
        limited.setattr(Thread, "start", _no_thread)
        with pytest.raises(RuntimeError):
            queue.submit("a", lambda: done.append("refused"))

    assert not queue.is_queued("a")
    assert queue.flush(0)
    assert queue.submit("b", lambda: done.append("done"))
    assert queue.flush(5)
    assert done == ["done"]


def _no_thread(thread):
    raise RuntimeError("can't start new thread")


def test_jobs_are_done_in_their_order_by_one_thread(queue):
    done = []
    for name in "abc":
        queue.submit(name, lambda name=name: done.append((name, current_thread().name)))

    assert queue.flush(5)

    assert done == [("a", "eventlogs"), ("b", "eventlogs"), ("c", "eventlogs")]


def test_a_job_replaces_one_with_the_same_key(queue, blocked):
    done = []
    queue.submit("a", lambda: done.append("first"))
    queue.submit("a", lambda: done.append("second"))
    blocked.set()

    assert queue.flush(5)

    assert done == ["second"]


def test_a_full_queue_refuses_jobs_with_new_keys(queue, blocked):
    assert all(queue.submit(name, lambda: None, capacity=3) for name in "abc")

    assert not queue.submit("d", lambda: None, capacity=3)
    assert queue.submit("a", lambda: None, capacity=3)
    assert queue.submit("d", lambda: None, capacity=4)


def test_a_job_is_queued_until_it_begins(queue, blocked):
    queue.submit("a", lambda: None)

    assert queue.is_queued("a")
    assert not queue.is_queued("blocker")
    blocked.set()
    assert queue.flush(5)
    assert not queue.is_queued("a")


def test_a_job_that_raises_is_logged_without_its_text_and_the_next_one_is_done(queue, caplog):
    done = Event()

    def fail():
        raise ValueError("secret")

    queue.submit("a", fail)
    queue.submit("b", done.set)

    assert queue.flush(5)
    assert done.is_set()
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_system_exit_in_a_job_does_not_end_the_thread(queue, error, caplog):
    """Jobs queued behind it are done by the same thread, without a further job to start one."""
    threads = []

    def leave():
        threads.append(current_thread())
        raise error

    go_on = Event()
    queue.submit("blocker", lambda: go_on.wait(10))
    queue.submit("a", leave)
    queue.submit("b", lambda: threads.append(current_thread()))
    go_on.set()

    assert queue.flush(5)
    assert len(threads) == 2
    assert threads[0] is threads[1]
    assert error.__name__ in caplog.text


def test_a_connection_that_cannot_be_closed_does_not_end_the_thread(queue, connected, monkeypatch):
    _, job = connected
    done = Event()

    def fail():
        job()
        wrapper = connections["default"]
        close = wrapper.close

        def refuse():
            override(wrapper, close=close)
            raise InterfaceError("the connection is lost")

        override(wrapper, close=refuse)

    queue.submit("a", fail)
    queue.submit("b", done.set)

    assert queue.flush(5)
    assert done.is_set()
    queue.submit("c", connections.close_all)
    assert queue.flush(5)


@pytest.mark.postgresql
def test_a_pooled_connection_is_given_back_at_once(queue, second_database):
    """With a pool of one connection, a request that comes next would wait for it."""
    connections[second_database].close()
    settings = connections.databases[second_database]
    settings["OPTIONS"] = {
        **settings["OPTIONS"],
        "pool": {"min_size": 1, "max_size": 1, "timeout": 3},  # seconds
    }
    settings["CONN_MAX_AGE"] = 0  # Django requires it with a pool
    del connections[second_database]
    used = []

    def job():
        with connections[second_database].cursor() as cursor:
            cursor.execute("SELECT 1")
            used.append(cursor.fetchone())

    try:
        queue.submit("a", job)
        assert queue.flush(5)

        job()  # in this thread

        assert used == [(1,), (1,)]
    finally:
        connections[second_database].close()
        connections[second_database].close_pool()  # type: ignore[attr-defined]


def test_flush_gives_up_after_its_timeout(queue, blocked):
    assert not queue.flush(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("fork", [os.fork, ctypes.CDLL(None).fork], ids=["in Python", "in C"])
def test_a_forked_process_starts_afresh(queue, blocked, fork):
    """In C as uWSGI forks: Python's hooks are not called, and the thread seems to be alive."""

    def work() -> None:
        assert not queue.is_queued("a")
        assert queue.flush(1)
        done = Event()
        queue.submit("b", done.set)
        assert done.wait(5)

    queue.submit("a", lambda: None)

    assert exit_of_fork(work, fork=fork) == 0


# uWSGI


@pytest.mark.parametrize(
    ("options", "run"),
    [
        ({"processes": b"4", "master": True}, False),
        ({"enable-threads": True}, True),
        ({"enable-threads": b"true"}, True),
        ({b"enable-threads": True}, True),
        ({"enable-threads": b"false"}, False),
        ({"threads": b"1"}, False),
        ({"threads": b"2"}, True),
        ({"threads": [b"1", b"4"]}, True),
        ({"gevent": b"100"}, True),
    ],
)
def test_in_uwsgi_threads_run_if_its_options_say_so(monkeypatch, options, run):
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options))

    assert runs_threads() is run


def test_outside_of_uwsgi_threads_run(monkeypatch):
    assert runs_threads()
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace())  # a package of a project's own
    assert runs_threads()


def test_without_threads_the_caller_does_the_job_and_one_warning_is_logged(
    queue, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt={"master": True}))
    done = []

    def fail():
        raise ValueError("secret")

    for key in "abc":
        assert queue.submit(key, lambda: done.append(current_thread()), delay=0.5)
    assert queue.submit("d", fail)

    assert done == [current_thread()] * 3
    assert queue.flush(0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "Set enable-threads = true" in said[0]
    assert said[1] == "A job in the background failed: ValueError"


SITE = """
import sqlite3, sys
from dataclasses import dataclass
import django
from django.conf import settings
settings.configure(
    SECRET_KEY="x", USE_TZ=True, INSTALLED_APPS=["django.contrib.contenttypes", "eventlogs"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": FILE,
                           "OPTIONS": {"transaction_mode": "IMMEDIATE"}}},
    LOGGING={"version": 1, "disable_existing_loggers": False,
             "root": {"level": "WARNING"}},
)
django.setup()
from django.core.management import call_command
from eventlogs.reductions.worker import worker
from eventlogs.caches import statistics
from tests.accounts import Account, Opened
call_command("migrate", verbosity=0)
from django.db import connections
worker.submit("before the fork", lambda: None)  # its thread is gone in the workers
connections.close_all()


def application(environ, start_response):
    if environ["PATH_INFO"] == "/new":
        log_id = Account.logs.create(Opened("ada")).log_id
    else:
        log_id = environ["PATH_INFO"][1:]
    Account.logs.reduce(log_id)
    start_response("200 OK", [])
    return [f"{log_id} {statistics()['hits']}".encode()]
"""


@pytest.mark.skipif(shutil.which("uwsgi") is None, reason="uWSGI is not installed")
@pytest.mark.parametrize("options", [[], ["--enable-threads"]], ids=["without", "with threads"])
def test_a_worker_of_uwsgi_writes_the_cache(tmp_path, options):
    site = tmp_path / "site.py"
    site.write_text(SITE.replace("FILE", repr(str(tmp_path / "db.sqlite3"))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    root = Path(__file__).parents[1]
    server = subprocess.Popen(
        [
            *("uwsgi", "--http-socket", address, "--master", "--die-on-term"),
            *("--home", sys.prefix, "--pythonpath", str(root), "--wsgi-file", str(site), *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:

        def get(path: str) -> list[str]:
            answers: list[list[str]] = []

            def is_answered() -> bool:
                with suppress(OSError), urlopen(f"http://{address}/{path}", timeout=10) as answer:
                    answers.append(answer.read().decode().split())
                return bool(answers)

            until(is_answered, seconds=30)
            return answers[0]

        log_id, _ = get("new")
        if not options:  # the first request wrote it before it answered
            assert get(log_id)[1] == "1"  # hits
        until(lambda: get(log_id)[1] != "0", seconds=30)
    finally:
        server.terminate()
        out, _ = server.communicate(timeout=30)
    assert ("Set enable-threads = true" in out) == (not options)


def test_queued_jobs_are_done_before_the_process_ends(tmp_path):
    written = tmp_path / "written"
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "import django\n"
        "django.setup()\n"
        "from eventlogs.reductions.worker import worker\n"
        "worker.submit('a', lambda: time.sleep(0.2))\n"
        f"worker.submit('b', Path({str(written)!r}).touch)\n"
    )

    output_of("-c", script)

    assert written.exists()


@pytest.fixture
def connected(monkeypatch, transactional_db):
    """The thread's database connections, after jobs that use one."""
    seen = []

    def job():
        connections["default"].ensure_connection()
        seen.append(connections["default"].connection)

    return seen, job


def test_a_connection_to_a_test_database_is_closed_at_once(queue, connected):
    seen, job = connected
    for _ in range(2):
        queue.submit("a", job)
        assert queue.flush(5)

    assert seen[0] is not seen[1]


def test_a_connection_is_kept_for_the_next_job_unless_it_had_an_error(
    queue, connected, monkeypatch
):
    seen, job = connected
    monkeypatch.setattr("eventlogs.reductions.worker.TEST_DATABASE_PREFIX", "nothing")
    settings = connections["default"].settings_dict
    monkeypatch.setitem(settings, "TEST", {**settings["TEST"], "NAME": None})

    def fail():
        job()
        connections["default"].errors_occurred = True

    for each in (job, fail, job):
        queue.submit("a", each)
        assert queue.flush(5)
    queue.submit("a", connections.close_all)
    assert queue.flush(5)

    assert seen[0] is seen[1]
    assert seen[1] is not seen[2]


def test_a_connection_is_closed_when_there_was_nothing_to_do(queue, connected, monkeypatch):
    seen, job = connected
    monkeypatch.setattr("eventlogs.reductions.worker.TEST_DATABASE_PREFIX", "nothing")
    monkeypatch.setattr("eventlogs.reductions.worker.LINGER", 0.05)
    settings = connections["default"].settings_dict
    monkeypatch.setitem(settings, "TEST", {**settings["TEST"], "NAME": None})

    for _ in range(2):
        queue.submit("a", job)
        assert queue.flush(5)
        time.sleep(0.5)

    assert seen[0] is not seen[1]
