"""``eventlogs heartbeat``: once, and until it is stopped."""

from __future__ import annotations

import signal

import pytest
from django.core.management import CommandError

from eventlogs.feed.reader import HEARTBEAT
from eventlogs.models import Checkpoint
from tests.accounts import Account, Deposited, Opened
from tests.processes import until


def position() -> int | None:
    rows = Checkpoint.objects.filter(projection=HEARTBEAT)
    return rows.values_list("position", flat=True).first()


@pytest.mark.feed
def test_once_stores_the_settled_position(account, run, run_json):
    state = Account.logs.create(Opened(owner="Bob"))

    assert run_json("heartbeat", "--once") == {"position": state.position}
    assert position() == state.position
    assert run("heartbeat", "--once") == f"Replicas may read up to position {state.position:,}.\n"


@pytest.mark.feed
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_goes_on_until_a_signal(start, stop):
    state = Account.logs.create(Opened(owner="Ada"))
    process = start("heartbeat", "--every", "0.02")
    line = process.line()

    state = Account.logs.append(state, Deposited(amount=1))
    until(lambda: position() == state.position)
    process.send_signal(stop)
    process.ended()

    assert line.endswith("Stop with Ctrl-C or SIGTERM.")
    assert process.error_text == ""


@pytest.mark.parametrize("seconds", ["0", "0.001", "soon", "nan", "1e30"])
def test_another_time_between_two_looks_is_refused(db, run, seconds):
    with pytest.raises(CommandError, match=r"is not a number of seconds of at least 0\.01"):
        run("heartbeat", "--every", seconds)


@pytest.mark.mariadb
@pytest.mark.fence
def test_a_database_without_a_feed_has_no_heartbeat(db, run):
    with pytest.raises(CommandError, match="cannot be read"):
        run("heartbeat", "--once")
