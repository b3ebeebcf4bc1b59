"""The read model of fines: the costs, payments and status of each."""

from __future__ import annotations

from django.db import models

from eventlogs import LogIdField


class FineBalance(models.Model):
    """A fine as of its last event. The fields have the names of the aggregate's."""

    log_id = LogIdField(primary_key=True)
    case = models.CharField(max_length=50, db_index=True)
    status = models.CharField(max_length=30, db_index=True)
    total = models.DecimalField(max_digits=12, decimal_places=2)
    paid = models.DecimalField(max_digits=12, decimal_places=2)
    outstanding = models.DecimalField(max_digits=12, decimal_places=2)

    def __str__(self) -> str:
        return self.case
