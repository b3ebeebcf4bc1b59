"""Health: one answer for every problem, as JSON, within its limits."""

from __future__ import annotations

import json

import pytest
from django.db import connection, transaction
from django.utils.connection import ConnectionDoesNotExist

from eventlogs import health
from eventlogs.models import Event
from eventlogs.operations.health import read_models
from tests.operations.health.wrong import (
    NAME,
    acts,
    declare,
    hold,
    lock_table,
    of,
    one,
    pay,
    work,
)

# A healthy project


@pytest.mark.feed
def test_an_empty_project_is_healthy(db):
    found = health()

    assert found.is_healthy
    assert [each.code for each in found.findings] == [
        "cache"
    ]  # a cache in the memory of one process
    assert found.using == "default"


@pytest.mark.mariadb
@pytest.mark.fence
def test_without_a_feed_the_projections_that_need_one_are_named(db):
    found = health()

    assert found.is_healthy
    assert NAME in one(found, "feed").message


@pytest.mark.feed
def test_a_project_at_work_is_healthy_and_has_its_figures(transactional_db):
    state = pay()
    runner = work()

    found = health()

    runner.close()
    assert found.is_healthy
    assert found.figures["newest_position"] == found.figures["settled_position"] == state.position
    figures = found.projections[NAME]
    assert (figures["is_running"], figures["parked"], figures["events_behind"]) == (1, 0, 0)


@pytest.mark.feed
@pytest.mark.fence
def test_the_number_of_queries_does_not_depend_on_events_and_findings(
    db, django_assert_max_num_queries
):
    health()  # fills the caches of values that are read once
    pay(20)
    hold(50)
    for number in range(5):
        declare(f"elsewhere:{number}:x")

    with django_assert_max_num_queries(46):
        health()


def test_the_whole_answer_is_json(db):
    hold(2)

    found = health().as_json()

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["healthy"], found["database"]) == (False, "default")
    first = found["findings"][0]
    assert (first["code"], first["level"], first["subject"]) == ("parked", "act", NAME)
    assert first["since"] == "2026-11-23T12:00:00Z"
    assert first["figures"]["logs"] == 2


def test_an_unknown_alias_is_an_error_of_the_caller():
    with pytest.raises(ConnectionDoesNotExist):
        health(using="nowhere")


def test_the_limits_are_those_of_the_settings_unless_they_are_given(db, settings):
    hold(2)
    assert acts(health()) == ["parked"]
    assert acts(health(max_parked=2)) == []

    settings.EVENTLOGS = {"HEALTH": {"MAX_PARKED": 2}}
    assert acts(health()) == []
    assert acts(health(max_parked=1)) == ["parked"]


@pytest.mark.parametrize("is_in_a_transaction", [True, False])
def test_a_check_that_fails_is_a_finding_and_the_others_are_run(
    transactional_db, monkeypatch, is_in_a_transaction
):
    def fail(*args, **kwargs):
        with connection.cursor() as cursor:
            cursor.execute("SELECT secret_column FROM eventlogs_event")

    hold()
    monkeypatch.setattr(read_models, "statuses", fail)
    if is_in_a_transaction:
        with transaction.atomic():
            found = health()
            assert Event.objects.count() == 0  # the caller's transaction is usable
    else:
        found = health()

    codes = acts(found)
    assert "parked" in codes
    assert len(codes) == 2
    assert "secret" not in json.dumps(found.as_json())


@pytest.mark.postgresql
def test_the_health_check_writes_nothing_and_waits_for_no_lock(transactional_db, monkeypatch):
    monkeypatch.setattr("eventlogs.operations.health.look.PATIENCE", 0.2)
    with lock_table("eventlogs_parkedevent"):
        found = health()

    assert {each.code for each in found.findings if each.must_act} == {"unknown"}
    assert "took longer" in of(found, "unknown")[0].message
