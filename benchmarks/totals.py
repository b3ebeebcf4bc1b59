"""A read model that is measured: the captured and refunded amounts of each payment."""

from __future__ import annotations

from django.db import models

from benchmarks.domain import Authorized, Captured, Payment, Refunded, Requested
from eventlogs import LogIdField, Projection, ReductionProjection, handles, projection
from eventlogs.stores.participants import registered


class Amounts(models.Model):
    log_id = LogIdField(primary_key=True)
    authorized = models.BigIntegerField(default=0)
    captured = models.BigIntegerField(default=0)
    refunded = models.BigIntegerField(default=0)

    class Meta:
        abstract = True
        app_label = "benchmarks"

    def __str__(self) -> str:
        return str(self.log_id)


class Total(Amounts):
    class Meta(Amounts.Meta):
        indexes = [models.Index(fields=["captured"], name="benchmarks_total_captured")]


class Reduced(Amounts):
    pass


class InlineTotal(Amounts):
    pass


class DividedTotal(Amounts):
    pass


class Kind(models.Model):
    kind = models.CharField(max_length=50, primary_key=True)
    amount = models.BigIntegerField(default=0)

    class Meta:
        app_label = "benchmarks"

    def __str__(self) -> str:
        return self.kind


@projection("totals")
class Totals(Projection):
    log_types = ["benchmark"]
    model = Total

    @handles(Requested)
    def requested(self, row, record):
        pass

    @handles(Authorized)
    def authorized(self, row, record):
        row.authorized += record.event.amount

    @handles(Captured)
    def captured(self, row, record):
        row.captured += record.event.amount

    @handles(Refunded)
    def refunded(self, row, record):
        row.refunded += record.event.amount


@projection("inline-totals")
class InlineTotals(Totals):
    model = InlineTotal  # type: ignore[assignment]
    mode = Projection.INLINE


registered.pop("inline-totals")  # this projection takes no part in the measured appends


@projection("divided-totals")
class DividedTotals(Totals):
    model = DividedTotal  # type: ignore[assignment]
    partitions = 4


@projection("kinds")
class Kinds(Projection):
    log_types = ["benchmark"]
    model = Kind

    def key(self, record):
        return record.type

    @handles(Requested, Authorized, Captured, Refunded)
    def add(self, row, record):
        row.amount += record.event.amount


@projection("reduced")
class Reductions(ReductionProjection):
    aggregate = Payment
    model = Reduced


MODELS = (Total, Kind, Reduced, InlineTotal, DividedTotal)
