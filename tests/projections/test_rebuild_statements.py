"""A rebuild that is killed before any of its statements: no row is missing afterwards."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from django.db import connection

from eventlogs.models import ProjectionState
from eventlogs.projections import checkpoints, shadow_tables
from eventlogs.projections import rebuild as rebuilding
from tests.accounts import Account, Deposited, Opened
from tests.overriding import override
from tests.projections.crashes import die_on, killed_in
from tests.projections.readmodels import Balance, Balances, balances, replayed

pytestmark = [pytest.mark.feed, pytest.mark.usefixtures("tables")]

MOST = 100  # statements of a part of a rebuild


def rebuild_killed_before(statement: int, part: str) -> None:
    """Rebuild, and die before a statement of one method."""
    die, original = die_on(statement), getattr(rebuilding._ShadowRebuild, part)

    def execute(run: Any, *arguments: Any) -> Any:
        die()
        return run(*arguments)

    def watched(self: Any, *arguments: Any) -> Any:
        with connection.execute_wrapper(execute):
            return original(self, *arguments)

    override(rebuilding._ShadowRebuild, **{part: watched})
    Balances.rebuild()


@pytest.mark.parametrize("part", ["_prepare", "_swap"])
def test_a_rebuild_that_is_killed_before_any_statement_is_done_by_the_next_one(part):
    states = [Account.logs.create(Opened("ada"), Deposited(1), Deposited(2)) for _ in range(3)]
    Balances.catch_up()
    for statement in range(1, MOST):
        states[0] = Account.logs.append(states[0], Deposited(1))
        Balances.catch_up()
        Balance.objects.update(balance=99)
        is_killed = killed_in(partial(rebuild_killed_before, statement, part))
        if is_killed:
            Balances.rebuild()
        assert balances() == replayed(*states)
        assert sorted(seen()) == sorted(state.version for state in states)
        assert Balances.catch_up() == 0
        if not is_killed:
            break

    assert 8 < statement < MOST - 1


@pytest.mark.mariadb
def test_the_end_of_a_rebuild_leaves_the_table_of_the_next_one(monkeypatch, elsewhere):
    """On MariaDB a rebuild removes its table after its commit, when another one may have begun."""
    state = Account.logs.create(Opened("ada"), Deposited(1), Deposited(2))
    commits_by_itself = shadow_tables.commits_by_itself
    others: list[int] = []

    def another() -> None:
        with pytest.raises(KeyboardInterrupt):
            Balances.rebuild(tell=interrupt)

    def answer(database: Any) -> bool:
        if not others and ProjectionState.objects.exclude(rebuilt_at=None).exists():
            others.append(1)
            elsewhere(another)
        return commits_by_itself(database)

    monkeypatch.setattr(shadow_tables, "commits_by_itself", answer)
    Balances.rebuild()

    assert others == [1]
    assert Balances.rebuild() == 0  # the rows are there
    assert balances() == replayed(state)


def seen() -> list[int]:
    return list(Balance.objects.values_list("seen", flat=True))


def forget_nothing(name: str, *, using: str) -> None:
    """Leave the checkpoints of an earlier rebuild."""


@pytest.mark.mariadb
def test_a_broken_version_that_forgets_no_checkpoints_before_it_makes_the_table(monkeypatch):
    """Its new table lacks the rows up to the old checkpoints."""
    monkeypatch.setattr(checkpoints, "forget_rebuild", forget_nothing)

    state = Account.logs.create(Opened("ada"), Deposited(1), Deposited(2))
    Balances.catch_up()
    with pytest.raises(KeyboardInterrupt):
        Balances.rebuild(tell=interrupt)
    shadow_tables.drop(Balance, "default")
    Balances.rebuild()

    assert balances() != replayed(state)


def interrupt(progress: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.mariadb
def test_rows_of_another_database_that_refer_to_rows_are_kept():
    state = Account.logs.create(Opened("ada"), Deposited(1))
    Balances.catch_up()
    name = connection.settings_dict["NAME"]
    own, other = f"`{name}`.`{Balance._meta.db_table}`", f"`{name}_other`"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {other}")
        try:
            cursor.execute(f"CREATE TABLE {other}.referring LIKE {own}")
            cursor.execute(
                f"ALTER TABLE {other}.referring ADD FOREIGN KEY (log_id)"
                f" REFERENCES {own} (log_id) ON DELETE CASCADE"
            )
            cursor.execute(f"INSERT INTO {other}.referring SELECT * FROM {own}")

            Balances.rebuild()

            cursor.execute(f"SELECT balance FROM {other}.referring")
            assert cursor.fetchall() == ((1,),)
        finally:
            cursor.execute(f"DROP DATABASE {other}")
    assert balances() == replayed(state)
