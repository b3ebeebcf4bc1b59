"""The view of this package, and that of django-prometheus, have all metrics."""

from __future__ import annotations

import pytest

from tests.contrib.installed import environ
from tests.processes import output_of

pytestmark = pytest.mark.django_db(transaction=True)

OURS = "eventlogs.contrib.prometheus.views.metrics"
THEIRS = "django_prometheus.exports.ExportToDjangoView"

SCRAPE = """
import sys, django
django.setup()
from django.test import RequestFactory
from django.utils.module_loading import import_string
from tests.accounts import Account, Opened
for owner in sys.argv[2:]:
    Account.logs.create(Opened(owner))
answer = import_string(sys.argv[1])(RequestFactory().get("/metrics"))
assert answer.status_code == 200
assert answer["Content-Type"].startswith("text/plain"), answer["Content-Type"]
print(answer.content.decode())
"""

ONE = 'eventlogs_appends_total{database="default",log_type="account",outcome="appended"} 1.0'
UP = 'eventlogs_up{database="default"} 1.0'


def scrape(view, *owners, apps=("eventlogs.contrib.prometheus",), **variables):
    return output_of("-c", SCRAPE, view, *owners, environ=environ(*apps, **variables))


def test_the_view_has_all_metrics():
    printed = scrape(OURS, "ada")

    assert ONE in printed
    assert UP in printed


@pytest.mark.postgresql  # django-prometheus is installed there
def test_the_view_of_django_prometheus_has_all_metrics():
    printed = scrape(THEIRS, "ada", apps=("django_prometheus", "eventlogs.contrib.prometheus"))

    assert ONE in printed
    assert UP in printed
    assert "django_" in printed


def test_processes_that_share_a_directory_are_added_up(tmp_path):
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    scrape(OURS, "ada", "eve", **shared)

    printed = scrape(OURS, "bob", **shared)

    assert ONE.replace("1.0", "3.0") in printed
    assert UP in printed
