"""The system checks of projections, each by its id."""

from __future__ import annotations

from functools import partial

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models.functions import Now

from eventlogs import LogIdField, Projection, Publisher
from eventlogs.checks import projections as checks
from eventlogs.models import ProjectionState
from eventlogs.projections import base
from example_project.payments.projections import PaymentSummaries
from tests.checks.messages import found
from tests.tables import Table


@pytest.mark.feed
@pytest.mark.django_db
def test_w030_rows_of_another_version():
    check = partial(checks.check_rebuilds, databases=["default"])
    assert found(check) == []
    PaymentSummaries.catch_up()
    assert found(check) == []

    ProjectionState.objects.update(version=0)
    assert found(check) == ["eventlogs.W030"]
    assert found(checks.check_rebuilds) == []  # the database is not to be asked

    PaymentSummaries.rebuild()
    assert found(check) == []


@pytest.mark.feed
def test_e031_rows_that_a_log_id_cannot_find(monkeypatch):
    monkeypatch.setattr(PaymentSummaries, "model", ContentType)
    assert found(checks.check_projections) == ["eventlogs.E031"]

    monkeypatch.setattr(PaymentSummaries, "key", lambda self, record: 1)
    assert found(checks.check_projections) == []


@pytest.mark.feed
def test_e032_rows_in_another_database(settings):
    class Elsewhere:
        def db_for_write(self, model, **hints):
            return "other" if model is PaymentSummaries.model else None

    settings.DATABASE_ROUTERS = [Elsewhere()]

    assert found(checks.check_projections) == ["eventlogs.E032"]


def test_e033_a_database_without_a_feed(monkeypatch):
    monkeypatch.setattr(checks, "has_feed", lambda using: False)

    assert set(found(checks.check_projections)) == {"eventlogs.E033"}


def test_e033_does_not_apply_to_inline_projections(monkeypatch):
    monkeypatch.setattr(checks, "has_feed", lambda using: False)
    monkeypatch.setattr(base, "projections", {"payment-summary": PaymentSummaries})
    monkeypatch.setattr(PaymentSummaries, "mode", "inline")

    assert found(checks.check_projections) == []


@pytest.mark.feed
@pytest.mark.parametrize("reads_from", [{"default": "unknown"}, {"default": "default"}])
def test_e054_a_replica_that_is_no_other_database(monkeypatch, reads_from):
    class Published(Publisher):
        name = "published"

    Published.reads_from = reads_from
    monkeypatch.setattr(base, "projections", {"published": Published})

    [message] = checks.check_projections(app_configs=None)

    assert message.id == "eventlogs.E054"
    assert f"Publisher 'published' has reads_from = {reads_from!r}" in message.msg


@pytest.fixture
def declare(monkeypatch):
    """A function that declares projections, and no others, each with a model."""

    def only(**models):
        found = {
            name: type(name, (Projection,), {"model": model, "name": name})
            for name, model in models.items()
        }
        monkeypatch.setattr(base, "projections", found)

    return only


class ReadModel(models.Model):
    log_id = LogIdField(primary_key=True)

    class Meta:
        app_label = "tests_of_checks"

    def __str__(self):
        return str(self.log_id)


class Proxy(ReadModel):
    class Meta:
        app_label = "tests_of_checks"
        proxy = True


class Inherited(ReadModel):
    class Meta:
        app_label = "tests_of_checks"


class Clocked(Table):
    log_id = LogIdField(primary_key=True)
    at = models.DateTimeField(db_default=Now())
    state = models.CharField(max_length=9, db_default="new")

    class Meta:
        app_label = "tests_of_checks"

    def __str__(self):
        return self.state


def test_e037_a_database_default_that_differs_each_time(declare):
    declare(clocked=Clocked)

    [message] = checks.check_read_models(app_configs=None)

    assert message.id == "eventlogs.E037"
    assert "Clocked.at" in message.msg


@pytest.mark.parametrize("other", [ReadModel, Proxy])
def test_e038_two_projections_of_one_table(declare, other):
    declare(one=ReadModel, two=other)

    [message] = checks.check_read_models(app_configs=None)

    assert message.id == "eventlogs.E038"
    assert "'one' and 'two'" in message.msg


def test_e039_a_read_model_that_inherits_the_table_of_another(declare):
    declare(one=ReadModel, two=Inherited)

    assert found(checks.check_read_models) == ["eventlogs.E038", "eventlogs.E039"]


def test_read_models_with_their_own_tables_have_no_findings(declare):
    declare(one=Proxy, two=PaymentSummaries.model)

    assert found(checks.check_read_models) == []
