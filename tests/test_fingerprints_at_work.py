"""The fingerprint of a class that is at work: it is that of its code, and of nothing else."""

from __future__ import annotations

import msgspec

from eventlogs import LogManager
from eventlogs.fingerprints import _Digest
from eventlogs.testing import MemoryStore, RecordingCache
from tests.reliability.ledgers import Entered, Ledger


def digest() -> str:
    """Take the fingerprint as a process does that has not taken it yet."""
    return _Digest(Ledger).hexdigest()


def test_it_is_the_same_before_and_after_the_class_was_used():
    """A writer takes it after it has encoded events, a reader before, a worker at another time."""
    for cls in (Ledger, Entered):
        if "__msgspec_cache__" in vars(cls):
            del cls.__msgspec_cache__
    before = digest()
    manager = LogManager(Ledger, store=MemoryStore(), cache=RecordingCache())

    log_id = manager.create(Entered("a")).log_id
    manager.reduce(log_id)
    msgspec.json.encode(Ledger())
    msgspec.json.decode(b"{}", type=Ledger)

    assert "__msgspec_cache__" in vars(Entered)
    assert digest() == before
