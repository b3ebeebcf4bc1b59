from __future__ import annotations

import json
import signal

import pytest
from django.core.management import CommandError

from eventlogs import Feed
from eventlogs.feed.tokens import Token
from eventlogs.models import Event
from tests.accounts import Account, Deposited, Opened, Parcel, Sent


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def indexes(text: str) -> list[int]:
    return [each["index"] for each in lines(text)]


def test_the_newest_events_are_shown_oldest_first(account, run):
    assert indexes(run("tail", "--json")) == [0, 1, 2]
    assert indexes(run("tail", "--json", "-n", 2)) == [1, 2]
    assert run("tail", "-n", 0) == ""


def test_a_line_names_the_event_and_its_log(account, run):
    last = run("tail").splitlines()[-1]

    for part in ("account.withdrawn", f"{account} 2", '{"amount": 30}', "by grace"):
        assert part in last


def test_events_can_be_filtered(account, run):
    parcel = Parcel.logs.create(Sent(to="Rome")).log_id

    assert [e["log_id"] for e in lines(run("tail", "--json", "--log-type", "parcel"))] == [
        str(parcel)
    ]
    assert [e["log_id"] for e in lines(run("tail", "--json", "--log", parcel))] == [str(parcel)]
    assert indexes(run("tail", "--json", "--type", "account.deposited")) == [1]
    assert indexes(
        run("tail", "--json", "--type", "account.opened", "--type", "account.withdrawn")
    ) == [0, 2]
    assert run("tail", "--type", "account.opened", "--log", parcel) == ""


@pytest.mark.feed
def test_all_events_after_a_position_are_shown(account, run):
    first = Event.objects.first().position
    parcel = Parcel.logs.create(Sent(to="Rome")).log_id

    assert indexes(run("tail", "--json", "--after", first)) == [1, 2, 0]
    assert indexes(run("tail", "--json", "--after", first, "--log", account)) == [1, 2]
    assert indexes(run("tail", "--json", "--after", first, "--log", parcel)) == [0]


@pytest.mark.feed
def test_more_than_a_page_after_a_position_is_shown(account, run, settings):
    settings.EVENTLOGS = {"PAGE_SIZE": 2}
    Account.logs.append(account, *[Deposited(amount=1)] * 7, expected_version=3)

    assert indexes(run("tail", "--json", "--after", 0)) == list(range(10))


@pytest.mark.feed
def test_all_events_after_a_checkpoint_are_shown(account, run, settings):
    settings.EVENTLOGS = {"PAGE_SIZE": 2}
    checkpoint = Feed().read(limit=1).checkpoint
    Account.logs.append(account, *[Deposited(amount=1)] * 4, expected_version=3)

    assert indexes(run("tail", "--json", "--after", checkpoint)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.feed
def test_a_checkpoint_of_another_history_is_a_mistake(account, run):
    token = Token.parse(Feed().checkpoint())
    other = token._replace(witnesses=(token.witnesses[0]._replace(digest=bytes(16)),))

    for command in ("tail", "export"):
        with pytest.raises(CommandError, match="is not of the history of the database 'default'"):
            run(command, "--after", str(other))


@pytest.mark.parametrize("after", ["last", "-1", "1.5"])
def test_other_text_than_a_position_or_a_checkpoint_is_a_mistake(account, run, after):
    wrong = r"is not an int of at least 0\.|is neither a position nor a checkpoint of the feed\."
    for command in ("tail", "export"):
        with pytest.raises(CommandError, match=wrong):
            run(command, f"--after={after}")


@pytest.mark.feed
def test_a_position_of_another_database_is_a_mistake(account, run):
    with pytest.raises(CommandError, match="cannot be read"):
        run("tail", "--after", 2**60)


@pytest.mark.mariadb
@pytest.mark.fence
@pytest.mark.parametrize("option", ["--follow", "--after=0"])
def test_without_a_feed_the_error_says_what_works(account, run, option):
    with pytest.raises(CommandError, match="without --follow and --after works, and so do `show`"):
        run("tail", option)


@pytest.mark.feed
def test_new_events_are_followed_until_ctrl_c(start):
    state = Account.logs.create(Opened(owner="Ada"))
    parcel = Parcel.logs.create(Sent(to="Rome"))
    program = start("tail", "--follow", "--json", "--log", state.log_id)
    first = json.loads(program.line())
    assert (first["log_id"], first["index"]) == (str(state.log_id), 0)

    Parcel.logs.append(parcel, Sent(to="Oslo"))
    for n in range(3):
        state = Account.logs.append(state, Deposited(amount=n))
    seen = [json.loads(program.line())["index"] for _ in range(3)]
    program.send_signal(signal.SIGINT)

    assert (seen, program.ended(code=130)) == ([1, 2, 3], "")
    assert program.error_text.strip() == "Interrupted."


@pytest.mark.feed
def test_a_closed_pipe_ends_following(start):
    state = Account.logs.create(Opened(owner="Ada"))
    program = start("tail", "--follow", "--json")
    program.line()
    program.stop_reading()

    for n in range(3):
        state = Account.logs.append(state, Deposited(amount=n))

    program.ended(code=141)
    assert program.error_text == ""
