"""
The read model of payments: what lists and searches ask.

A row for each payment, made of its events by ``projections``. Nothing else writes it, and it can
be made anew at any time.
"""

from __future__ import annotations

from django.db import models

from eventlogs import LogIdField


class PaymentSummary(models.Model):
    """A payment, as far as lists want to know. Amounts are minor units."""

    class Status(models.TextChoices):
        """How far a payment has come."""

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
    outstanding = models.BigIntegerField(default=0)  # authorized, and not captured
    requested_at = models.DateTimeField()
    changed_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "payment summaries"
        indexes = [
            # Ids are in the order of their making: the newest of a status are at its end.
            models.Index(fields=["status", "log_id"], name="payments_by_status"),
        ]

    def __str__(self) -> str:
        return str(self.log_id)
