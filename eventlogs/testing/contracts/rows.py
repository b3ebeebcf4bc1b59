"""The contract of the rows of stores that keep events in the tables of this package."""

from __future__ import annotations

from collections.abc import Callable

from django.db.models import QuerySet

from eventlogs.ids import LogId
from eventlogs.models import Event
from eventlogs.stores import BaseStore
from eventlogs.testing.contracts.stores import append, new_key
from eventlogs.values import LogState


class RowContract:
    """Subclass it with a fixture ``store``, which keeps its events in the default database."""

    def test_every_event_has_the_type_of_its_log(self, store: BaseStore) -> None:
        """Each way to append fills the column, and readers use it instead of the log's column."""
        ways: list[Callable[[LogId], LogState]] = [
            lambda log_id: append(store, log_id, 1, expected=0),
            lambda log_id: append(store, log_id, 1, expected=1),
            lambda log_id: append(store, log_id, 1, expected=None),
            lambda log_id: append(store, log_id, 1, expected=3, key=new_key()),
            lambda log_id: append(store, log_id, 1, expected=None, key=new_key()),
            lambda log_id: append(store, log_id, *range(600), expected=5),
        ]
        log_ids = [LogId.new("account"), LogId.new("parcel")]
        for log_id in log_ids:
            for way in ways:
                state = way(log_id)
            append(store, log_id, 1, expected=605, position=state.position)

        for log_id in log_ids:
            rows = QuerySet[Event](Event, using="default").filter(log_id=log_id.uuid)
            assert rows.count() == 606
            assert set(rows.values_list("log_type", "log__log_type")) == {(log_id.log_type,) * 2}
