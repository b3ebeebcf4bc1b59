"""The projection that writes the balances of fines."""

from __future__ import annotations

from eventlogs import ReductionProjection, projection
from example_project.fines.events import Fine
from example_project.fines.models import FineBalance


@projection("fine-balance", version=1)
class FineBalances(ReductionProjection):
    """One row for each fine, with the state of its aggregate."""

    aggregate = Fine
    model = FineBalance
