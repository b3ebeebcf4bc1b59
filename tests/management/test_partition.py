"""``eventlogs partition``: what it says of a table that it replaces, or does not."""

from __future__ import annotations

import io
import json

import pytest
from django.core.management import CommandError, call_command

from eventlogs.operations import partitioning
from eventlogs.operations.partitioning import copying
from tests.operations.partitioning.logs import fill, partitions, sql
from tests.projections.crashes import kill_this_process, killed_in


def run(*arguments, alias="default"):
    """Return what the command prints, and its notes."""
    out, err = io.StringIO(), io.StringIO()
    call_command(
        "eventlogs", "partition", *arguments, database=alias, stdout=out, stderr=err, no_color=True
    )
    return out.getvalue().strip(), err.getvalue().strip()


@pytest.mark.postgresql
@pytest.mark.fence
def test_partitions_and_back(second_database):
    partitioning.partition(0, using=second_database)
    fill(second_database)

    text, _ = run("--partitions", "3", alias=second_database)
    assert text == "The table of events is partitioned into 3 now: 24 events were copied."
    assert partitions(second_database) == 3

    text, _ = run("--partitions", "3", alias=second_database)
    assert text == "The table of events is partitioned into 3 already."

    text, _ = run("--undo", "--json", alias=second_database)
    assert json.loads(text) == {
        "database": second_database,
        "partitions": 0,
        "copied": 24,
        "swapped": True,
    }
    assert partitions(second_database) == 0
    assert run("--undo", alias=second_database)[0] == "The table of events is one table already."
    run(alias=second_database)
    assert partitions(second_database) == 16


@pytest.mark.postgresql
@pytest.mark.fence
def test_a_copy_is_given_up(second_database, monkeypatch):
    partitioning.partition(0, using=second_database)
    fill(second_database)
    with monkeypatch.context() as dying:
        dying.setattr(copying, "mirror", kill_this_process)
        assert killed_in(lambda: run("--partitions", "3", alias=second_database))

    with pytest.raises(CommandError, match="a copy into 3 partitions was begun"):
        run("--partitions", "4", alias=second_database)
    text, _ = run("--abandon", alias=second_database)
    assert text == "The copy was given up. The table is as it was."
    assert run("--abandon", alias=second_database)[0] == "No copy was begun."
    text, _ = run("--abandon", "--json", alias=second_database)
    assert json.loads(text) == {"database": second_database, "abandoned": False}


@pytest.mark.postgresql
@pytest.mark.fence
def test_what_is_in_the_way_is_said_with_what_to_do(second_database):
    partitioning.partition(0, using=second_database)
    sql(second_database, "CREATE VIEW seen AS SELECT * FROM eventlogs_event")

    with pytest.raises(CommandError) as caught:
        run(alias=second_database)

    assert str(caught.value) == (
        f"The table of events in {second_database!r} was not replaced: the view or rule seen reads "
        "it. Drop it, and create it again afterwards."
    )
    assert caught.value.returncode == 2


@pytest.mark.sqlite
@pytest.mark.django_db
def test_only_postgresql_has_partitions():
    with pytest.raises(CommandError, match="sqlite has no such partitions"):
        run()


@pytest.mark.django_db
@pytest.mark.parametrize("number", ["1", "257", "many"])
def test_a_number_that_makes_no_sense(number):
    with pytest.raises(CommandError):
        run("--partitions", number)
