"""The events that are measured: a payment with a reference, about 60 bytes of JSON."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings

from eventlogs import Aggregate, EventRecord, LogManager, event


@event("benchmark.requested")
@dataclass(frozen=True, slots=True)
class Requested:
    amount: int
    reference: str


@event("benchmark.authorized")
@dataclass(frozen=True, slots=True)
class Authorized:
    amount: int
    approval_code: str


@event("benchmark.captured")
@dataclass(frozen=True, slots=True)
class Captured:
    amount: int
    reference: str


@event("benchmark.refunded")
@dataclass(frozen=True, slots=True)
class Refunded:
    amount: int
    reference: str


@dataclass
class Payment(Aggregate, log_type="benchmark", events=[Requested, Authorized, Captured, Refunded]):
    authorized: int = 0
    captured: int = 0
    refunded: int = 0

    def apply(self, record: EventRecord) -> None:
        match record.event:
            case Captured(amount=amount):
                self.captured += amount
            case Refunded(amount=amount):
                self.refunded += amount
            case Authorized(amount=amount):
                self.authorized += amount


CAPTURED = Captured(amount=4_000, reference="till 7, receipt 20231")


def cached_payments() -> LogManager[Payment]:
    """Return a manager whose cache all processes share, where there is Redis."""
    return LogManager(
        Payment,
        cache="redis" if "redis" in settings.CACHES else "default",
        refresher="eventlogs.refreshers.ImmediateRefresher",
    )
