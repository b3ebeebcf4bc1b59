"""
Proofs: a file that shows that a log is under a seal, for somebody without the database.

docs/check_proof.py checks one in 100 lines, and docs/proof.md describes the file.
"""

from __future__ import annotations

from typing import Any, Final

from eventlogs.seals.attesting import Proof

FORMAT: Final = "eventlogs-proof"
VERSION: Final = 1


def proof_document(proof: Proof) -> dict[str, Any]:
    """Return the members of a proof's file."""
    leaf, path, seal = proof
    return {
        "format": FORMAT,
        "version": VERSION,
        "log": str(leaf.log_id),
        "events": leaf.version,
        "head": leaf.head.hex(),
        "path": [{"side": each.side, "digest": each.digest.hex()} for each in path],
        "seal": seal.as_json(),
    }
