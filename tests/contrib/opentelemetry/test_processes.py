"""A request in one process, and its reactor in a real worker: their spans are linked."""

from __future__ import annotations

import json

import pytest

from tests.contrib.installed import environ
from tests.processes import Program, output_of

pytestmark = [pytest.mark.feed, pytest.mark.django_db(transaction=True)]

PROCESSES = "tests.contrib.opentelemetry.processes"
APP = "eventlogs.contrib.opentelemetry"


def test_the_span_of_a_reactor_in_a_worker_links_to_the_request_in_another_process():
    printed = output_of("-m", PROCESSES, "request", environ=environ(APP))
    spans = {each["name"]: each for each in map(json.loads, printed.splitlines())}
    request, append = spans["POST /accounts"], spans["create account"]
    assert append["parent_id"] == request["context"]["span_id"]

    with Program("-m", PROCESSES, "work", environ=environ(APP)) as worker:
        line = worker.line()
        while not line.startswith("{"):
            line = worker.line()
        reaction = json.loads(line)
        worker.terminate()
        worker.ended()

    assert reaction["name"] == "react letters-of-a-worker"
    assert [each["context"] for each in reaction["links"]] == [append["context"]]
    assert reaction["links"][0]["context"]["trace_id"] == request["context"]["trace_id"]
    assert reaction["parent_id"] is None
