"""
The read model of payments, for lists and searches.

It has one row for each payment, which the projection in ``projections`` writes from its events.
Nothing else writes these rows, and they can be rebuilt at any time.
"""

from __future__ import annotations

from django.db import models

from eventlogs import LogIdField


class PaymentSummary(models.Model):
    """A row of the list of payments. Amounts are minor units."""

    class Status(models.TextChoices):
        """The last step of a payment."""

        REQUESTED = "requested"
        AUTHORIZED = "authorized"
        CAPTURED = "captured"  # all of what was authorized
        REFUNDED = "refunded"  # all of what was captured

    log_id = LogIdField(primary_key=True)
    status = models.CharField(max_length=20, choices=Status, default=Status.REQUESTED)
    requested = models.BigIntegerField(default=0)
    authorized = models.BigIntegerField(default=0)
    captured = models.BigIntegerField(default=0)
    refunded = models.BigIntegerField(default=0)
    outstanding = models.BigIntegerField(default=0)  # authorized and not captured
    requested_at = models.DateTimeField()
    changed_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "payment summaries"
        indexes = [
            # Newer ids sort last, so the newest payments of a status are at the end of its range.
            models.Index(fields=["status", "log_id"], name="payments_by_status"),
        ]

    def __str__(self) -> str:
        return str(self.log_id)
