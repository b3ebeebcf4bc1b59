"""
Check a proof that `manage.py eventlogs attest SEALS --log LOG --proof FILE` has written.

    python check_proof.py PROOF PUBLIC_KEY [EVENTS]

It needs neither a database nor Django, only Python 3.11 or newer and the package `cryptography`.
PUBLIC_KEY is the key of the one who made the seal, in base64: get it from them, not with the proof.
EVENTS is an export of the log, in JSON lines: its events are checked, too, byte for byte.
docs/proof.md describes each step. Exit code 0: proved; 1: not proved.
"""

import base64
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from json.encoder import encode_basestring
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, as in a TypeID


def require(is_right: bool, otherwise: str) -> None:
    if not is_right:
        sys.exit(f"NOT PROVED: {otherwise}.")


def check_seal(seal: dict, public_key: str) -> None:
    """The seal was signed by the owner of the key."""
    require(seal["format"] == "eventlogs-seal" and seal["version"] == 1, "an unknown kind of seal")
    members = {name: value for name, value in seal.items() if name != "signature"}
    text = json.dumps(members, sort_keys=True, separators=(",", ":"))
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
    try:
        key.verify(base64.b64decode(seal["signature"]), b"eventlogs seal\n" + text.encode("ascii"))
    except InvalidSignature:
        require(False, "the seal is not signed by this key, or was changed")


def check_path(proof: dict) -> None:
    """The log's leaf is under the root of the seal (RFC 6962, section 2.1)."""
    leaf = f"{proof['log']} {proof['events']} {proof['head']}"
    digest = sha256(b"\0" + leaf.encode()).digest()
    for sibling in proof["path"]:
        other = bytes.fromhex(sibling["digest"])
        pair = other + digest if sibling["side"] == "left" else digest + other
        digest = sha256(b"\1" + pair).digest()
    require(digest.hex() == proof["seal"]["root"], "the log is not under the seal")


def check_events(proof: dict, lines: Iterable[str]) -> None:
    """The events are those of the log's head, each digest standing over the one before it."""
    log_type, _, suffix = proof["log"].rpartition("_")
    uuid = UUID(int=sum(BASE32.index(each) << 5 * at for at, each in enumerate(suffix[::-1])))
    digest, count = bytes(32), 0
    for line in lines:
        event = json.loads(line, parse_float=Decimal)
        if event.get("log_id") != proof["log"] or count == proof["events"]:
            continue  # the first and the last line, and events after the seal
        require(event["index"] == count, f"event {count} is missing")
        moment = datetime.fromisoformat(event["recorded_at"]) - datetime(2000, 1, 1, tzinfo=UTC)
        texts = [uuid, log_type, written(event["metadata"]), event["type"]]
        texts += [event["schema_version"], count, written(event["data"])]
        require("\n" not in log_type + event["type"], "an event has an impossible type")
        texts += [] if event.get("idempotency_key") is None else [event["idempotency_key"]]
        body = (moment // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)
        body += "\n".join(map(str, texts)).encode()
        digest, count = sha256(digest + body).digest(), count + 1
    require(count == proof["events"], f"there are {count} events, not {proof['events']}")
    require(digest.hex() == proof["head"], "the events were changed")


def written(value: object) -> str:
    """Return JSON as PostgreSQL writes jsonb: members sorted by length, numbers in full."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: (len(name.encode()), name.encode()))
        return f"{{{', '.join(f'{encode_basestring(n)}: {written(value[n])}' for n in names)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, Decimal):
        return format(value if value else abs(value), "f")
    return encode_basestring(value) if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    require(len(sys.argv) in (3, 4), "usage: check_proof.py PROOF PUBLIC_KEY [EVENTS]")
    proof = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    check_seal(proof["seal"], sys.argv[2])
    check_path(proof)
    if len(sys.argv) == 4:
        with Path(sys.argv[3]).open(encoding="utf-8") as stream:
            check_events(proof, stream)
    print(f"Proved: {proof['log']} had {proof['events']} events, with the head {proof['head']},")
    print(f"when it was sealed at {proof['seal']['time']}.")
