"""The projection that writes the read model of payments. Run it: manage.py eventlogs project."""

from __future__ import annotations

from eventlogs import EventRecord, Projection, handles, projection
from example_project.payments.events import Authorized, Captured, Refunded, Requested
from example_project.payments.models import PaymentSummary


@projection("payment-summary", version=1)
class PaymentSummaries(Projection):
    """One row for each payment."""

    log_types = ["payment"]
    model = PaymentSummary
    mode = Projection.ASYNC

    @handles(Requested)
    def requested(self, row: PaymentSummary, record: EventRecord) -> None:
        """Start a row."""
        row.requested += record.event.amount
        row.requested_at = record.recorded_at
        self.settle(row, record)

    @handles(Authorized)
    def authorized(self, row: PaymentSummary, record: EventRecord) -> None:
        """Add an authorized amount."""
        row.authorized += record.event.amount
        self.settle(row, record)

    @handles(Captured)
    def captured(self, row: PaymentSummary, record: EventRecord) -> None:
        """Add a captured amount."""
        row.captured += record.event.amount
        self.settle(row, record)

    @handles(Refunded)
    def refunded(self, row: PaymentSummary, record: EventRecord) -> None:
        """Add a refunded amount."""
        row.refunded += record.event.amount
        self.settle(row, record)

    def settle(self, row: PaymentSummary, record: EventRecord) -> None:
        """Compute the fields that depend on the amounts."""
        row.changed_at = record.recorded_at
        row.outstanding = row.authorized - row.captured
        status = PaymentSummary.Status
        if row.captured and row.refunded >= row.captured:
            row.status = status.REFUNDED
        elif row.captured and not row.outstanding:
            row.status = status.CAPTURED
        elif row.authorized:
            row.status = status.AUTHORIZED
        else:
            row.status = status.REQUESTED
