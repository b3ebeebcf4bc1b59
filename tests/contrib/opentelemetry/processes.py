"""
What a web process and a worker do: python -m tests.contrib.opentelemetry.processes request|work

Each ended span is a line of JSON on standard output.
"""

from __future__ import annotations

import sys

import django

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def main(what: str) -> None:
    django.setup()
    from django.core.management import call_command
    from django.http import HttpRequest, HttpResponse
    from django.test import RequestFactory
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    from eventlogs.middleware import EventContextMiddleware
    from eventlogs.projections import Reactor, handles, projection
    from tests.accounts import Account, Opened

    exporter = ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    @projection("letters-of-a-worker")
    class Letters(Reactor):
        log_types = ["account"]

        @handles(Opened)
        def write(self, record: object) -> None: ...

    def view(request: HttpRequest) -> HttpResponse:
        with trace.get_tracer("web").start_as_current_span("POST /accounts"):
            Account.logs.create(Opened("ada"))
        return HttpResponse()

    if what == "request":
        request = RequestFactory().post("/accounts", headers={"traceparent": TRACEPARENT})
        EventContextMiddleware(view)(request)
    else:
        call_command("eventlogs", "project", Letters.name)


if __name__ == "__main__":
    main(sys.argv[1])
