"""The feed: all events in the order of positions, and only what is settled."""

from __future__ import annotations

from itertools import pairwise

import pytest

from eventlogs import Feed, FeedPage
from tests.accounts import Account, Deposited, Opened, Parcel, Sent

COMMITS = pytest.mark.django_db(transaction=True, available_apps=["eventlogs"])


@COMMITS
def test_the_feed_holds_the_events_of_all_logs_in_the_order_of_positions():
    ada = Account.logs.create(Opened("ada"), Deposited(5))
    parcel = Parcel.logs.create(Sent("bob"))
    Account.logs.append(ada, Deposited(7))

    page = Feed().read()

    assert isinstance(page, FeedPage)
    assert [record.event for record in page] == [
        Opened("ada"),
        Deposited(5),
        Sent("bob"),
        Deposited(7),
    ]
    assert [record.log_id for record in page] == [
        ada.log_id,
        ada.log_id,
        parcel.log_id,
        ada.log_id,
    ]
    assert all(one.position < other.position for one, other in pairwise(page))
    assert (page.next_after, page.more) == (page[-1].position, False)
    assert Feed().settled() == page[-1].position
    assert Feed().holding_back() == []
