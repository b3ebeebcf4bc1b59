"""
Manifests: what an archive holds, in a small file of JSON beside it, signed if there is a key.

A manifest proves an archive without the database: it has the SHA-256 of the file, and the root of a
Merkle tree over its logs. The leaves are those of seals (``<log id> <number of events> <digest>``),
in the order of UUIDs. ``EVENTLOGS["SEAL_KEY"]`` signs it. What is signed are the bytes ``eventlogs
archive`` and a line feed, then the JSON without its signature in ASCII, with the members in the
order of their names and without white space.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from eventlogs import conf
from eventlogs.archives import storage
from eventlogs.archives.frames import Written
from eventlogs.exceptions import ArchiveUnavailable
from eventlogs.seals import keys
from eventlogs.seals.leaves import Leaf
from eventlogs.seals.merkle import Tree

FORMAT: Final = "eventlogs-archive"
VERSION: Final = 1
SIGNED: Final = b"eventlogs archive\n"  # the first bytes of what is signed
SUFFIX: Final = ".manifest.json"
LONGEST: Final = 10_000  # bytes


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What an archive holds.

    ``size`` is in bytes, digests are hexadecimal, the signature is base64. ``key`` is the id of the
    key that signed it; both are "" without a key.
    """

    format: str = FORMAT
    version: int = VERSION
    file: str
    size: int
    sha256: str
    log_type: str
    logs: int
    events: int
    root: str
    time: str  # when it was written, in UTC
    key: str = ""
    signature: str = ""

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""
        members: dict[str, Any] = msgspec.to_builtins(self)
        del members["signature"]
        text = json.dumps(members, sort_keys=True, separators=(",", ":"))
        return SIGNED + text.encode("ascii")


_MANIFESTS: Final = msgspec.json.Decoder(Manifest)


def root_of(logs: Iterable[Written]) -> str:
    """Return the root over the logs of an archive, in hexadecimal."""
    tree = Tree()
    leaves = [Leaf(each.log_id, each.version, each.digest) for each in logs]
    for leaf in sorted(leaves, key=lambda each: each.order):
        tree.add(leaf.text)
    return tree.root().hex()


def signed(manifest: Manifest) -> Manifest:
    """Return a manifest with the signature of the project's key, if it has one."""
    return manifest if conf.seal_key() is None else keys.signed(manifest)


def text_of(manifest: Manifest) -> bytes:
    """Return the file of a manifest."""
    return json.dumps(msgspec.to_builtins(manifest), indent=2).encode() + b"\n"


def read(name: str) -> Manifest:
    """Return the manifest of an archive. Raise ArchiveUnavailable where there is none to read."""
    try:
        with storage.open_file(name + SUFFIX) as stream:
            return _MANIFESTS.decode(stream.read(LONGEST))
    except (FileNotFoundError, msgspec.MsgspecError, RecursionError):
        raise ArchiveUnavailable(
            name, reason="its manifest is missing, or was changed. Restore it from a backup"
        ) from None
