"""Deadlines: code that takes too long is interrupted, and other timers are kept."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress

import pytest

from eventlogs.projections.deadlines import HandlerTimedOut, deadline


def armed():
    return any(signal.getitimer(signal.ITIMER_REAL))


def test_code_that_takes_too_long_is_interrupted():
    begun = time.monotonic()
    with pytest.raises(HandlerTimedOut), deadline(0.05):
        time.sleep(10)

    assert time.monotonic() - begun < 1
    assert not armed()


def test_code_that_ends_in_time_is_not_interrupted():
    before = signal.getsignal(signal.SIGALRM)
    with deadline(0.05):
        assert signal.getsignal(signal.SIGALRM) is not before
    time.sleep(0.1)

    assert not armed()
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_error_inside_is_raised_and_the_timer_is_stopped():
    with pytest.raises(ZeroDivisionError), deadline(0.05):
        raise ZeroDivisionError
    assert not armed()


def test_the_interruption_cannot_be_caught_as_an_exception():
    with pytest.raises(HandlerTimedOut), deadline(0.05), suppress(Exception):
        time.sleep(10)


def test_code_that_swallows_the_interruption_is_interrupted_again():
    times = []
    with suppress(HandlerTimedOut), deadline(0.05):
        for _ in range(2):
            try:
                time.sleep(5)
            except HandlerTimedOut:
                times.append(1)
    assert len(times) == 2
    assert not armed()


def test_another_thread_has_no_deadline():
    done = []

    def work():
        with deadline(0.01):
            time.sleep(0.05)
        done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def test_a_timer_of_other_code_is_kept():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with deadline(0.01):
            time.sleep(0.2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rang == [1]


def test_an_alarm_that_comes_at_the_very_end_leaves_no_timer_running(monkeypatch):
    setitimer = signal.setitimer
    calls = []

    def alarm_before_it_is_stopped(which, seconds, *interval):
        calls.append(seconds)
        if len(calls) == 2:
            raise HandlerTimedOut
        return setitimer(which, seconds, *interval)

    monkeypatch.setattr(signal, "setitimer", alarm_before_it_is_stopped)
    with pytest.raises(HandlerTimedOut), deadline(5):
        pass
    assert not armed()
