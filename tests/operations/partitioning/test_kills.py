"""A process that partitions is killed at each step: nothing is lost, and the next call goes on."""

from __future__ import annotations

import pytest

from eventlogs import ANY
from eventlogs.operations import partitioning
from eventlogs.operations.partitioning import copying, running, tables
from eventlogs.stores import erasing
from tests.accounts import Deposited, Opened
from tests.operations.partitioning.logs import (
    accounts,
    check_whole,
    everything,
    fill,
    leftovers,
    partitions,
    sql,
)
from tests.projections.crashes import after, before, killed_in

pytestmark = [pytest.mark.postgresql, pytest.mark.fence]


STEPS = [
    pytest.param(lambda m: after(m, tables, "make_copy"), id="the copy is made"),
    pytest.param(lambda m: after(m, copying, "note_changes"), id="before the begin's commit"),
    pytest.param(lambda m: before(m, running, "_copy"), id="begun"),
    pytest.param(lambda m: after(m, copying, "copy_batch", call=2), id="a batch, uncommitted"),
    pytest.param(lambda m: before(m, copying, "copy_batch", call=3), id="two batches"),
    pytest.param(lambda m: after(m, copying, "mirror"), id="the mirror, uncommitted"),
    pytest.param(lambda m: before(m, running, "_swap_when_ready"), id="all is copied"),
    pytest.param(lambda m: after(m, copying, "copy_noted"), id="noted logs, uncommitted"),
    pytest.param(lambda m: after(m, copying, "compare", call=2), id="a part is compared"),
    pytest.param(lambda m: before(m, running, "_wait_for_older"), id="before the wait"),
    pytest.param(lambda m: before(m, tables, "swap"), id="locked"),
    pytest.param(lambda m: before(m, tables, "guard_events"), id="renamed"),
    pytest.param(lambda m: after(m, tables, "swap"), id="before the swap's commit"),
    pytest.param(lambda m: before(m, running, "_remove"), id="swapped"),
    pytest.param(lambda m: after(m, tables, "drop"), id="the old table is dropped, uncommitted"),
    pytest.param(lambda m: after(m, running, "_remove"), id="removed, uncommitted"),
    pytest.param(lambda m: before(m, tables, "name_sequence"), id="before the sequence is named"),
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("wanted", [3, 0])
def test_killed_while_partitioning(monkeypatch, second_database, wanted, step):
    alias = second_database
    erased, kept, *_ = fill(alias)
    partitioning.partition(0 if wanted else 2, using=alias)
    monkeypatch.setattr(copying, "BATCH", 5)
    logs = accounts(alias)

    with monkeypatch.context() as dying:
        step(dying)
        assert killed_in(lambda: partitioning.partition(wanted, using=alias))

    # Life goes on before the next call.
    check_whole(alias)
    logs.append(kept, Deposited(1), expected_version=ANY)
    logs.create(*[Opened("grace")] * 7)
    erasing.erase(alias, erased, by="grace", reason="order 7")
    there = everything(alias)

    partitioning.partition(wanted, using=alias)

    assert partitions(alias) == wanted
    assert everything(alias) == there
    assert leftovers(alias) == []
    check_whole(alias)
    position = "SELECT pg_get_serial_sequence('eventlogs_event', 'position')"
    assert sql(alias, position) == [("public.eventlogs_event_position_seq",)]


@pytest.mark.parametrize("step", STEPS[2:11])
def test_a_copy_of_a_killed_process_is_given_up(monkeypatch, second_database, step):
    alias = second_database
    partitioning.partition(0, using=alias)
    fill(alias)
    there = everything(alias)
    monkeypatch.setattr(copying, "BATCH", 5)
    with monkeypatch.context() as dying:
        step(dying)
        assert killed_in(lambda: partitioning.partition(3, using=alias))

    assert partitioning.abandon(using=alias)

    assert leftovers(alias) == []
    assert partitions(alias) == 0
    assert everything(alias) == there
    accounts(alias).create(Opened("ada"))
    check_whole(alias)
    assert (
        sql(alias, "SELECT 1 FROM pg_trigger WHERE tgname LIKE 'eventlogs_partition%%'", ()) == []
    )
