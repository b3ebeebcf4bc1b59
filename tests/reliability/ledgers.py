"""
The log of the cache campaigns: its state depends on every event, and on their order.

A fold with a missing event, an extra one, or one of another history has another chain from then on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from eventlogs import Aggregate, EventRecord, event


@event("ledger.entered")
@dataclass(frozen=True, slots=True)
class Entered:
    text: str
    amount: int = 1


@dataclass
class Ledger(Aggregate, log_type="ledger", events=[Entered]):
    chain: str = ""
    entries: int = 0
    total: int = 0

    def apply(self, record: EventRecord) -> None:
        link = f"{self.chain}{record.index}{record.event.text}".encode()
        self.chain = hashlib.sha256(link).hexdigest()[:16]
        self.entries += 1
        self.total += record.event.amount


def tell_in_an_error(ledger: Ledger, record: EventRecord) -> None:
    """Fail like an ``apply`` whose error shows data; defined here to have a code fingerprint."""
    raise KeyError(record.event.text)
