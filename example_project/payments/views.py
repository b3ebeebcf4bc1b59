"""
The payments API.

A request that changes a payment may carry an idempotency key and a precondition:

    Idempotency-Key: "…"     a retry gets the response of the first request, even if the payment
                             has changed since; another request with the same key gets 422
    If-Match: "…"            the ETag of the payment that the caller saw; 412 if it has changed

Responses are not stored. The response is the payment *as of the version* that the request led to,
which stays the same as long as the log exists. A refused request (409, 412) stores nothing, not
even its key, and can be sent again with the same key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.db.models import Count, Sum
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils.cache import get_conditional_response
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from eventlogs import (
    ConcurrentAppend,
    EventRecord,
    IdempotencyKeyReused,
    IdempotencyKeyUndecided,
    InvalidLogId,
    LogNotFound,
    LogState,
    Reduction,
    TransactionMustRetry,
    VersionNotReached,
)
from example_project.payments import deciders
from example_project.payments.deciders import PaymentRefused
from example_project.payments.events import Payment, Requested
from example_project.payments.http import (
    Fields,
    Problem,
    choice,
    fingerprint,
    flag,
    idempotency_key,
    moment,
    read_fields,
    whole_number,
)
from example_project.payments.models import PaymentSummary

MAX_AMOUNT = 1_000_000_000_000  # minor units; sums stay exact in every JSON parser
MAX_APPROVAL_CODE = 64  # characters
MAX_LIMIT = 100  # events or payments of a page

payments = Payment.logs
NAMES = {each.cls: each.name for each in Payment.event_types}


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
@method_decorator(csrf_exempt, name="dispatch")
class Api(View):
    """A view that turns errors into problems."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Respond, and turn errors on which the caller can act into problems."""
        try:
            return super().dispatch(request, *args, **kwargs)
        except Exception as error:
            if problem := problem_of(error):
                return problem.response()
            raise

    def http_method_not_allowed(self, *args: Any, **kwargs: Any) -> HttpResponse:
        """Respond with 405."""
        allowed = ", ".join(
            method.upper() for method in self.http_method_names if hasattr(self, method)
        )
        raise Problem(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"This address accepts {allowed}.",
            headers={"Allow": allowed},
        )


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
        if outstanding := flag(request, "outstanding"):
            rows = rows.filter(outstanding__gt=0)
        limit = whole_number(request, "limit", least=1, most=MAX_LIMIT) or MAX_LIMIT
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
            {"payments": [summary_as_json(row) for row in found[:limit]], "next": following}
        )

    def post(self, request: HttpRequest) -> JsonResponse:
        """Create a payment: 201."""
        values = read_fields(request, {"amount": amount})
        key = idempotency_key(request)
        metadata = {"request": fingerprint(request, values)}
        if key is None:
            state = payments.create(Requested(**values), metadata=metadata)
        else:
            state, _ = payments.get_or_create(
                Requested(**values), idempotency_key=key, metadata=metadata
            )
            refuse_reuse(state, key, metadata)
        response = answer(state, HTTPStatus.CREATED)
        response["Location"] = reverse("payments:show", args=[str(state.log_id)])
        return response


class Totals(Api):
    """Outstanding amounts, by status."""

    def get(self, request: HttpRequest) -> JsonResponse:
        """Return sums over the read model."""
        rows = (
            PaymentSummary.objects.values("status")
            .annotate(payments=Count("pk"), amount_outstanding=Sum("outstanding"))
            .order_by("status")
        )
        return JsonResponse({"totals": list(rows)})


class Command(Api):
    """A change of one payment: ``decider`` gets the ``fields`` of the body as arguments."""

    decider: Callable[..., Iterator[Any]]
    fields: ClassVar[Fields]

    def post(self, request: HttpRequest, payment_id: str) -> JsonResponse:
        """Change the payment: 200."""
        log_id = payments.parse_id(payment_id)
        values = read_fields(request, self.fields)
        key = idempotency_key(request)
        metadata = {"request": fingerprint(request, values)}

        def decide(payment: Payment) -> Iterator[Any]:
            # Compare here, with the version to which execute() appends, not before.
            seen = LogState(log_id, payment.version, payment.position)
            if not seen.matches(request.headers.get("If-Match")):
                raise Problem(
                    HTTPStatus.PRECONDITION_FAILED,
                    "The payment has changed. Get it again. If the request still applies, send "
                    "it with the new ETag, quotes included.",
                )
            return self.decider(payment, **values)

        state = payments.execute(log_id, decide, idempotency_key=key, metadata=metadata)
        if key is not None:
            refuse_reuse(state, key, metadata)
        return answer(state)


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

    def get(self, request: HttpRequest, payment_id: str) -> HttpResponseBase | None:
        """Show the current payment, or as of ``?version=2`` or ``?at=2026-01-31T12:00:00Z``."""
        log_id = payments.parse_id(payment_id)
        version = whole_number(request, "version", least=1)
        at = moment(request, "at")
        if version is not None and at is not None:
            raise Problem(HTTPStatus.BAD_REQUEST, "Give either version or at, not both.")
        reduction = payments.reduce(log_id, version=version, at=at)
        # 304 if the ETag matches If-None-Match.
        return get_conditional_response(
            request, etag=reduction.etag, response=representation(reduction)
        )


class Events(Api):
    """The events of a payment."""

    def get(self, request: HttpRequest, payment_id: str) -> JsonResponse:
        """List a page of events; ``next`` is the next page's address, or null."""
        log_id = payments.parse_id(payment_id)
        start = whole_number(request, "start", least=0)
        limit = whole_number(request, "limit", least=1, most=MAX_LIMIT) or MAX_LIMIT
        backwards = flag(request, "reverse")
        page = payments.load(log_id, start=start, limit=limit, reverse=backwards)
        if not page and not payments.exists(log_id):
            raise LogNotFound(log_id)
        following = None
        if page.next_start is not None:
            query = {"start": page.next_start, "limit": limit, "reverse": str(backwards).lower()}
            following = f"{request.path}?{urlencode(query)}"
        return JsonResponse(
            {
                "payment": str(log_id),
                "events": [as_json(record) for record in page],
                "next": following,
            }
        )


# Answers


def answer(state: LogState, status: HTTPStatus = HTTPStatus.OK) -> JsonResponse:
    """Return the payment as of ``state``, for the first request and all of its retries."""
    return representation(payments.reduce(state.log_id, version=state.version), status)


def representation(
    reduction: Reduction[Payment], status: HTTPStatus = HTTPStatus.OK
) -> JsonResponse:
    """Return a payment as JSON, with its ETag."""
    payment = reduction.aggregate
    return JsonResponse(
        {
            "id": str(reduction.log_id),
            "version": reduction.version,
            "amount_requested": payment.amount_requested,
            "amount_approved": payment.amount_approved,
            "amount_captured": payment.amount_captured,
            "amount_refunded": payment.amount_refunded,
            "amount_outstanding": payment.amount_outstanding,
        },
        status=status,
        headers={"ETag": reduction.etag},
    )


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


def as_json(record: EventRecord) -> dict[str, Any]:
    """Return an event with its current fields and name, even if it was stored with older ones."""
    return {
        "index": record.index,
        "type": NAMES.get(type(record.event), record.type),
        "data": asdict(record.event),
        "recorded_at": record.recorded_at.isoformat(),  # with microseconds, for use in ?at=
    }


def refuse_reuse(state: LogState, key: str, metadata: Mapping[str, Any]) -> None:
    """
    Raise IdempotencyKeyReused if the key was used for another request that led to ``state``.

    The events are not enough to know: two different requests can lead to equal events, and a
    decider can yield other events for the same request. So the metadata of the events have the
    fingerprint of their request, stored with them in one append.
    """
    [last] = payments.load(state.log_id, start=state.version - 1, limit=1)
    if last.idempotency_key == key and last.metadata.get("request") != metadata["request"]:
        raise IdempotencyKeyReused(key, log_id=state.log_id, index=state.version - 1)


def problem_of(error: Exception) -> Problem | None:
    """Return the problem for an error on which the caller can act, or None for other errors."""
    match error:
        case Problem():
            return error
        case InvalidLogId():
            return Problem(HTTPStatus.BAD_REQUEST, "The address does not have the id of a payment.")
        case LogNotFound():
            return Problem(HTTPStatus.NOT_FOUND, "There is, or was then, no such payment.")
        case VersionNotReached():
            return Problem(HTTPStatus.NOT_FOUND, "The payment has not reached that version.")
        case PaymentRefused():
            return Problem(HTTPStatus.CONFLICT, str(error), kind="refused")
        case IdempotencyKeyReused():
            return Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "This Idempotency-Key was used for another request. Use a new key for a new "
                "request.",
                kind="key-reused",
            )
        case IdempotencyKeyUndecided():
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "A new version of this API is being deployed. Send the request again with the "
                "same Idempotency-Key.",
                headers={"Retry-After": "10"},
            )
        case ConcurrentAppend():
            return Problem(
                HTTPStatus.CONFLICT,
                "Other requests changed the payment first. Send the request again with the same "
                "Idempotency-Key.",
                kind="lost-race",
            )
        case TransactionMustRetry():
            return Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The database is busy. Send the request again with the same Idempotency-Key.",
                headers={"Retry-After": "1"},
            )
    return None
