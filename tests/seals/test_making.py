"""Making a seal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from eventlogs.exceptions import SealUnavailable
from eventlogs.feed.reader import Feed
from eventlogs.models import Event
from eventlogs.operations.erasure import erase
from eventlogs.seals import Seal, make_seal
from eventlogs.seals.documents import replace
from eventlogs.seals.keys import Trusted
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.merkle import Tree
from tests.accounts import Account, Deposited, Opened
from tests.seals.histories import PUBLIC, logs

pytestmark = pytest.mark.feed


def test_a_seal_stands_over_all_events(accounts_of_three):
    leaves: list[Leaf] = []

    seal = make_seal(tell=leaves.append)

    tree = Tree()
    for leaf in leaves:
        tree.add(leaf.text)
    assert seal.root == tree.root().hex()
    assert (seal.position, seal.logs, seal.events) == (accounts_of_three[1].position, 3, 7)
    assert (seal.unchained, seal.erased, seal.previous) == (0, 0, None)
    assert abs(seal.moment - timezone.now()) < timedelta(minutes=1)
    assert Trusted([PUBLIC]).why_not(seal) is None


def test_a_seal_names_the_one_before_it(accounts_of_three):
    first = make_seal()

    assert make_seal(previous=first).previous == first.digest


def test_logs_without_a_chain_are_counted(accounts_of_three, owner):
    logs().filter(pk=accounts_of_three[0].log_id.uuid).update(head=None)

    seal = make_seal()

    assert (seal.logs, seal.unchained) == (2, 1)


def test_without_chained_logs_there_is_no_seal(sealing, settings, db):
    settings.EVENTLOGS = {**settings.EVENTLOGS, "CHAIN": False}
    Account.logs.create(Opened(owner="A"))

    with pytest.raises(SealUnavailable, match="no log has a chain"):
        make_seal()


def test_without_a_key_there_is_no_seal(settings, db):
    settings.EVENTLOGS = {}

    with pytest.raises(SealUnavailable, match="--new-key"):
        make_seal()


def test_a_database_that_ends_before_the_last_seal_is_not_sealed(accounts_of_three):
    seal = make_seal()

    with pytest.raises(SealUnavailable, match="an older backup"):
        make_seal(previous=replace(seal, position=seal.position + 1_000_000))


def test_sealing_goes_on_when_the_log_with_the_newest_event_is_erased(
    accounts_of_three, transactional_db, attested
):
    first = make_seal()
    erase(accounts_of_three[1].log_id, by="ada", reason="asked for")

    second = make_seal(previous=first)

    assert (second.position, second.erased) == (first.position, 1)
    assert second.root == first.root
    assert attested(first, second).is_proved


def test_an_open_transaction_is_refused(accounts_of_three):
    with transaction.atomic(), pytest.raises(SealUnavailable, match="a transaction is open"):
        make_seal()


@pytest.fixture
def seal_meanwhile(sealing, transactional_db, elsewhere):
    """A function that makes a seal while an event with a lower position waits for its commit."""

    def run() -> Seal:
        state = Account.logs.create(Opened(owner="A"))
        other = Account.logs.create(Opened(owner="B"))

        def meanwhile() -> Seal:
            Account.logs.append(other, Deposited(amount=2))
            return make_seal()

        with transaction.atomic():
            Account.logs.append(state, Deposited(amount=1))
            return elsewhere(meanwhile)

    return run


@pytest.mark.postgresql
@pytest.mark.fence
def test_an_event_that_can_still_be_committed_is_not_passed_over(seal_meanwhile, attested):
    seal = seal_meanwhile()

    assert (seal.logs, seal.events) == (2, 2)
    assert attested(seal).is_proved


@pytest.mark.postgresql
@pytest.mark.fence
def test_a_broken_version_that_seals_the_last_position_cannot_be_proved(
    seal_meanwhile, attested, monkeypatch
):
    def last(_: Feed) -> int:
        return Event.objects.order_by("-position").values_list("position", flat=True)[0]

    monkeypatch.setattr(Feed, "settled", last)
    seal = seal_meanwhile()

    assert (seal.logs, seal.events) == (2, 3)
    assert not attested(seal).is_proved


def test_its_time_is_that_of_the_database(accounts_of_three, monkeypatch):
    monkeypatch.setattr("django.utils.timezone.now", lambda: datetime(2000, 1, 1, tzinfo=UTC))

    assert make_seal().moment.year > 2000


@pytest.mark.fence
def test_a_seal_takes_few_queries(accounts_of_three, django_assert_max_num_queries):
    with django_assert_max_num_queries(15):  # two of them about archived logs, two about moved ones
        make_seal()
