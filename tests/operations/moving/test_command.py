"""``manage.py eventlogs move``."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from eventlogs import ANY, health
from eventlogs.management.mistakes import FINDINGS, NOT_DONE
from eventlogs.models import LogMove
from eventlogs.operations.moving import steps
from eventlogs.operations.verification import ErasureVerifier, Scope
from example_project.shards import ShardRouter
from tests.accounts import Deposited
from tests.operations.moving.logs import account, accounts, is_live, states
from tests.projections.crashes import after, killed_in
from tests.test_routers import said


def answer(*arguments: str) -> Any:
    out = StringIO()
    call_command("eventlogs", "move", *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_logs_are_moved(shards):
    first, second = shards.aliases
    logs = [account(shards, events=1) for _ in range(2)]
    places = ("--from", first, "--to", second)

    text = said("move", *map(str, logs), *places, "--by", "grace")

    assert text == "".join(f"{each} was moved to {second}, with 1 event.\n" for each in logs)
    assert [shards.of(each) for each in logs] == [second, second]
    assert {each.moved_by for each in LogMove.objects.using(second)} == {"grace"}
    assert said("move", str(logs[0]), *places) == (
        f"{logs[0]} was moved to {second} before, with 1 event.\n"
    )
    assert answer(str(logs[0]), "--from", second, "--to", first) == {
        "from": second,
        "to": first,
        "logs": [
            {
                "log_id": str(logs[0]),
                "events": 1,
                "is_new": True,
                "rows": [],
                "to_rebuild": [],
                "unmade": [],
            }
        ],
        "routed_to_source": [],
    }


def test_a_router_that_does_not_know_of_the_move_is_a_finding(shards, monkeypatch):
    first, second = shards.aliases
    log_id = account(shards)

    class Nothing:
        def database_of(self, log_id, home):
            return home

    monkeypatch.setattr(ShardRouter, "moved", Nothing())

    with pytest.raises(CommandError) as caught:
        said("move", str(log_id), "--from", first, "--to", second)

    assert caught.value.returncode == FINDINGS
    assert str(caught.value) == (
        f"The router still sends 1 log to {first!r}, where they take no events: let it send them "
        f"to {second!r}."
    )


def test_what_was_not_moved_is_an_error(shards):
    first, second = shards.aliases
    log_id = account(shards)
    missing = shards.new_id(first)

    with pytest.raises(CommandError) as caught:
        said("move", str(log_id), str(missing), "--from", first, "--to", second)
    assert caught.value.returncode == NOT_DONE
    assert str(caught.value).startswith(f"{missing} does not exist.")
    assert str(caught.value).endswith(" 1 log was moved before.")
    for wrong in (
        (str(log_id), "--from", first, "--to", first),
        (str(log_id), "--from", first, "--to", second, "--database", second),
        (str(log_id), "--from", first, "--to", second, "--by", " "),
        (str(log_id), "--from", second, "--to", first, "--abandon"),
    ):
        with pytest.raises(CommandError) as caught:
            said("move", *wrong)
        assert caught.value.returncode == NOT_DONE


def test_an_interrupted_move_is_abandoned_or_finished(shards, monkeypatch):
    first, second = shards.aliases
    log_id = account(shards)
    places = (str(log_id), "--from", first, "--to", second)
    verifier = ErasureVerifier()

    with monkeypatch.context() as dying:
        after(dying, steps, "leave")
        assert killed_in(lambda: said("move", *places))
    assert list(verifier.verify(Scope(using=first))) == []
    LogMove.objects.using(first).update(begun_at=timezone.now() - timedelta(hours=1))
    [finding] = verifier.verify(Scope(using=first))
    assert (finding.check, finding.subject) == ("moves", str(log_id))
    [stopped] = [each for each in health(using=first).findings if each.code == "move-stopped"]
    assert (stopped.subject, stopped.figures) == (str(log_id), {"logs": 1})
    assert stopped.command == f"manage.py eventlogs move {log_id} --from {first} --to {second}"
    assert said("move", *places, "--abandon") == f"{log_id} stays in {first}, and takes events.\n"
    assert is_live(log_id, first)
    assert accounts.append(log_id, Deposited(1), expected_version=ANY).version == 5

    with monkeypatch.context() as dying:
        after(dying, steps, "leave")
        assert killed_in(lambda: said("move", *places))
    assert answer(*places)["logs"][0]["events"] == 5
    assert (states(log_id, first), states(log_id, second)) == (["left"], ["arrived"])

    with monkeypatch.context() as dying:
        after(dying, steps, "announce")
        assert killed_in(lambda: said("move", str(log_id), "--from", second, "--to", first))
    assert answer(str(log_id), "--from", second, "--to", first, "--abandon") == {
        "from": second,
        "to": first,
        "abandoned": [str(log_id)],
    }
    assert states(log_id, first) == ["left"]
