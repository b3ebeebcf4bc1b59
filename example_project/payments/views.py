"""
The payments API.

A request that changes a payment may carry an idempotency key and a precondition:

    Idempotency-Key: "…"     a retry gets the response of the first request, even if the payment
                             has changed since; another request with the same key gets 422
    If-Match: "…"            the ETag of the payment that the caller saw; 412 if it has changed

The example has no authentication. In a real API, check first that the caller may use the payment:
an id and a key are no permission. All callers of this example share their keys. If yours have
accounts, pass the id of the account: ``ChangeRequest(request, caller=…)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.db.models import Count, Sum
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from eventlogs import InvalidLogId, Reduction
from eventlogs.contrib.http import (
    ChangeRequest,
    Problem,
    Problems,
    event_as_json,
    events_page,
    reduce_for,
    with_etag,
)
from example_project.payments import deciders
from example_project.payments.deciders import PaymentRefused
from example_project.payments.events import Payment, Requested
from example_project.payments.http import Fields, choice, page_size, read_fields
from example_project.payments.models import PaymentSummary

MAX_AMOUNT = 1_000_000_000_000  # minor units; sums stay exact in every JSON parser
MAX_APPROVAL_CODE = 64  # characters
MAX_LIMIT = 100  # events or payments of a page
PRIVATE = {"Cache-Control": "private, no-cache"}  # as with_etag() has it

payments = Payment.logs

problems = Problems(
    {
        PaymentRefused: lambda error: Problem(409, str(error), kind="refused"),
        InvalidLogId: lambda _: Problem(400, "The address does not have the id of a payment."),
    },
    types="urn:example:payments:",
)
problem_of = problems.problem_of


# The fields of bodies


def amount(value: Any) -> int:
    """Read an amount of minor units."""
    if type(value) is not int or not 1 <= value <= MAX_AMOUNT:
        raise ValueError(f"is required: a whole number of minor units, from 1 to {MAX_AMOUNT}")
    return value


def approval_code(value: Any) -> str | None:
    """Read the optional code that a bank returns with an authorization."""
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_APPROVAL_CODE:
        raise ValueError(f"may be null, or a string of 1 to {MAX_APPROVAL_CODE} characters")
    if not value.isascii() or not value.isprintable():
        raise ValueError("must have printable ASCII characters only")
    return value


# The views


# The API has no sessions. It does not identify callers by cookies, so another site cannot misuse a
# cookie (https://docs.djangoproject.com/en/stable/ref/csrf/).
@problems
@method_decorator(csrf_exempt, name="dispatch")
class Api(View):
    """A view that turns errors into problems."""


class Payments(Api):
    """All payments."""

    def get(self, request: HttpRequest) -> JsonResponse:
        """
        List payments from the read model, newest first; ``next`` is the next page's address.

        ``?status=refunded`` selects a status, ``?outstanding=true`` payments with an outstanding
        amount. The rows are usually a few milliseconds behind the events.
        """
        rows = PaymentSummary.objects.order_by("-log_id")
        status = choice(request, "status", PaymentSummary.Status.values)
        if status is not None:
            rows = rows.filter(status=status)
        outstanding = choice(request, "outstanding", ["true", "false"]) == "true"
        if outstanding:
            rows = rows.filter(outstanding__gt=0)
        limit = page_size(request, most=MAX_LIMIT)
        if before := request.GET.get("before"):
            rows = rows.filter(log_id__lt=payments.parse_id(before))
        found = list(rows[: limit + 1])
        following = None
        if len(found) > limit:
            query = {"before": str(found[limit - 1].log_id), "limit": str(limit)}
            query |= {"status": status} if status else {}
            query |= {"outstanding": "true"} if outstanding else {}
            following = f"{request.path}?{urlencode(query)}"
        return JsonResponse(
            {"payments": [summary_as_json(row) for row in found[:limit]], "next": following},
            headers=PRIVATE,
        )

    def post(self, request: HttpRequest) -> HttpResponseBase:
        """Create a payment: 201."""
        values = read_fields(request, {"amount": amount})
        created = ChangeRequest(request).create(payments, Requested(**values))
        location = reverse("payments:show", args=[str(created.log_id)])
        response = JsonResponse(representation(created), status=201)
        return with_etag(request, response, created, location=location)


class Totals(Api):
    """Outstanding amounts, by status."""

    def get(self, request: HttpRequest) -> JsonResponse:
        """Return sums over the read model."""
        rows = (
            PaymentSummary.objects.values("status")
            .annotate(payments=Count("pk"), amount_outstanding=Sum("outstanding"))
            .order_by("status")
        )
        return JsonResponse({"totals": list(rows)}, headers=PRIVATE)


class Command(Api):
    """A change of one payment: ``decider`` gets the ``fields`` of the body as arguments."""

    decider: Callable[..., Iterator[Any]]
    fields: ClassVar[Fields]

    def post(self, request: HttpRequest, payment_id: str) -> HttpResponseBase:
        """Change the payment: 200."""
        payments.parse_id(payment_id)
        values = read_fields(request, self.fields)
        changed = ChangeRequest(request).execute(payments, payment_id, self.decider, **values)
        return with_etag(request, JsonResponse(representation(changed)), changed)


class Authorize(Command):
    """Authorize an amount."""

    decider = staticmethod(deciders.authorize)
    fields: ClassVar[Fields] = {"amount": amount, "approval_code": approval_code}


class Capture(Command):
    """Capture a part of the authorized amount."""

    decider = staticmethod(deciders.capture)
    fields: ClassVar[Fields] = {"amount": amount}


class Refund(Command):
    """Refund a part of the captured amount."""

    decider = staticmethod(deciders.refund)
    fields: ClassVar[Fields] = {"amount": amount}


class OnePayment(Api):
    """One payment."""

    def get(self, request: HttpRequest, payment_id: str) -> HttpResponseBase:
        """Show the current payment, or as of ``?version=2`` or ``?at=2026-01-31T12:00:00Z``."""
        reduction = reduce_for(request, payments, payment_id)
        return with_etag(request, JsonResponse(representation(reduction)), reduction)


class Events(Api):
    """The events of a payment."""

    def get(self, request: HttpRequest, payment_id: str) -> JsonResponse:
        """List a page of events; ``next`` is the next page's address, or null."""
        page = events_page(request, payments, payment_id, max_limit=MAX_LIMIT)
        events = [event_as_json(record) for record in page.events]
        return JsonResponse(
            {"payment": payment_id, "events": events, "next": page.next}, headers=page.headers
        )


# Answers


def representation(reduction: Reduction[Payment]) -> dict[str, Any]:
    """Return a payment as a JSON value."""
    payment = reduction.aggregate
    return {
        "id": str(reduction.log_id),
        "version": reduction.version,
        "amount_requested": payment.amount_requested,
        "amount_approved": payment.amount_approved,
        "amount_captured": payment.amount_captured,
        "amount_refunded": payment.amount_refunded,
        "amount_outstanding": payment.amount_outstanding,
    }


def summary_as_json(row: PaymentSummary) -> dict[str, Any]:
    """Return a row of the read model with the names of the other responses."""
    return {
        "id": str(row.log_id),
        "status": row.status,
        "amount_requested": row.requested,
        "amount_approved": row.authorized,
        "amount_captured": row.captured,
        "amount_refunded": row.refunded,
        "amount_outstanding": row.outstanding,
        "requested_at": row.requested_at.isoformat(),
        "changed_at": row.changed_at.isoformat(),
    }
