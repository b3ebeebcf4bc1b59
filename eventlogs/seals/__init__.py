"""
Seals: signed statements about all events up to a position, and proofs against them.

A seal is a Merkle root over the heads of all chained logs, with a position, counts and a time,
signed with Ed25519. ``seal`` makes one and keeps it, ``make_seal`` only makes it, and ``attest``
compares seals with a history: ``DatabaseSource(using)`` or ``ExportSource([path, …])``. The
commands ``seal`` and ``attest`` call them. docs/proof.md has the form of the files.
"""

from __future__ import annotations

from eventlogs.seals.attesting import Attestation, attest
from eventlogs.seals.documents import Seal
from eventlogs.seals.keys import Trusted
from eventlogs.seals.making import make_seal
from eventlogs.seals.running import seal
from eventlogs.seals.sources import DatabaseSource, ExportSource

__all__ = [
    "Attestation",
    "DatabaseSource",
    "ExportSource",
    "Seal",
    "Trusted",
    "attest",
    "make_seal",
    "seal",
]
