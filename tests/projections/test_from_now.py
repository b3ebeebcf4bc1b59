"""A reactor passes over history permanently, also beside a running worker."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from eventlogs import Reactor
from eventlogs.feed.reader import Feed
from eventlogs.models import Checkpoint, Event, ParkedEvent, ProjectionState, SkippedEvent
from eventlogs.projections import leases
from eventlogs.projections.batches import Advancer
from eventlogs.projections.leases import LeaseLost
from eventlogs.projections.starting import begin, lease_partition
from tests.accounts import Account, Deposited, Opened, Withdrawn
from tests.projections import readmodels
from tests.projections.readmodels import Letters, reactions

pytestmark = pytest.mark.usefixtures("tables")


@pytest.fixture
def _known():
    """Commands know the projections of the tests, too."""
    with readmodels.declaring(readmodels.DECLARED):
        yield


def command(*arguments):
    out, err = StringIO(), StringIO()
    call_command("eventlogs", *arguments, stdout=out, stderr=err)
    return out.getvalue() + err.getvalue()


def test_settled_events_are_passed_over_and_later_ones_are_not():
    ada = Account.logs.create(Opened("ada"), Deposited(5), Withdrawn(1))

    found = Letters.pass_over()
    ada = Account.logs.append(ada, Deposited(7))
    Letters.catch_up()

    assert (found.events, found.waiting) == (2, 0)
    *_, before, last = Event.objects.for_log(ada.log_id).order_by("index")
    assert (found.position, last.position) == (before.position, ada.position)
    assert reactions == [("account.deposited", ada.position)]


def test_only_new_events_are_counted_and_no_checkpoint_moves_back():
    Account.logs.create(Deposited(5))
    Letters.catch_up()
    before = Checkpoint.objects.get().position

    assert Letters.pass_over().events == 0
    assert Checkpoint.objects.get().position == before


def test_a_dry_run_changes_nothing():
    Account.logs.create(Deposited(5))

    assert Letters.pass_over(dry_run=True).events == 1
    assert not ProjectionState.objects.exists()
    Letters.catch_up()
    assert len(reactions) == 1


def test_a_reactor_that_begins_now_has_nothing_to_pass_over(monkeypatch):
    monkeypatch.setattr(Letters, "start", Reactor.NOW)
    Account.logs.create(Deposited(5))

    assert Letters.pass_over(dry_run=True).events == 0


def test_held_events_are_passed_over_and_failed_ones_are_recorded_as_skipped():
    ada = Account.logs.create(Deposited(5), Withdrawn(1))
    readmodels.fail_on(Deposited)
    Letters.catch_up()
    Account.logs.append(ada, Withdrawn(2))  # held behind the first
    readmodels.reset()

    found = Letters.pass_over()
    Letters.retry()
    Letters.catch_up()

    assert found.waiting == 1
    assert reactions == []
    assert not ParkedEvent.objects.exists()
    assert SkippedEvent.objects.get().index == 0


def test_a_worker_that_has_a_lease_loses_it():
    Account.logs.create(*[Deposited(n) for n in range(1, 6)])
    begin(Letters, "default")
    taken = lease_partition(Letters, 0, using="default", owner=leases.new_owner())
    worker = Advancer(Letters(), taken, Feed())

    def before(record):
        if record.event.amount == 2:
            readmodels.reset()
            Letters.pass_over()

    readmodels.behaviour["before"] = before
    with pytest.raises(LeaseLost):
        worker.step()

    assert len(reactions) == 2  # the handler of the current event was called
    Letters.catch_up()
    assert len(reactions) == 2


@pytest.mark.usefixtures("_known")
def test_the_command_acts_only_with_yes():
    Account.logs.create(Deposited(5), Withdrawn(1))

    out = StringIO()
    with pytest.raises(CommandError, match="--yes") as caught:
        call_command("eventlogs", "project", "letters", "--from-now", stdout=out)
    assert caught.value.returncode == 2
    assert "2 events would be passed over" in out.getvalue()
    assert not ProjectionState.objects.exists()

    [line] = command("project", "letters", "--from-now", "--yes", "--json").splitlines()
    found = json.loads(line)
    assert (found["projection"], found["done"], found["events"]) == ("letters", True, 2)
    assert "0 events passed over" in command("project", "letters", "--from-now", "--yes")
    command("project", "letters", "--once")
    assert reactions == []


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize(
    ("arguments", "why"), [(["balances"], "keeps rows"), ([], "Name the reactors")]
)
def test_a_projection_with_rows_cannot_pass_over_events(arguments, why):
    with pytest.raises(CommandError, match=why):
        command("project", *arguments, "--from-now", "--yes")


@pytest.mark.usefixtures("_known")
def test_an_import_names_the_reactors_that_would_react_to_it(second_alias, tmp_path):
    using = second_alias
    Account.logs.create(Deposited(5))
    path = tmp_path / "old.jsonl"
    command("export", str(path))

    said = command("import", str(path), "--database", using)
    assert f"project letters --from-now --database {using}" in said

    command("project", "letters", "--from-now", "--yes", "--database", using)
    assert Letters.catch_up(using=using) == 0
    assert reactions == []
    assert "--from-now" not in command("import", str(path), "--database", using)
