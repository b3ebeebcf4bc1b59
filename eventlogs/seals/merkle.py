"""
The Merkle tree of a seal: one root for all logs, and short proofs for single ones.

It is the tree of RFC 6962, section 2.1 (Certificate Transparency), with SHA-256. A leaf is hashed
behind a zero byte and two nodes behind a one byte, so that no leaf can pass for a node: without
that, other leaves could be found for the same root. With n leaves, the left half of a node has the
largest power of two below n.

A tree takes one leaf at a time and keeps one node for each power of two, 32 for billions of leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final, NamedTuple

LEAF: Final = b"\0"
NODE: Final = b"\1"


class Sibling(NamedTuple):
    """A node that a proof needs, and its side."""

    side: str  # "left" or "right"
    digest: bytes


class _Node(NamedTuple):
    size: int  # leaves below it, a power of two
    digest: bytes
    has_proven: bool  # whether the leaf to prove is below it


def leaf_digest(text: bytes) -> bytes:
    """Return the digest of a leaf."""
    return sha256(LEAF + text).digest()


class Tree:
    """A tree that grows by a leaf at a time; ``path`` leads from one of them to the root."""

    def __init__(self) -> None:
        self.count = 0
        self._nodes: list[_Node] = []  # from the largest to the smallest
        self._path: list[Sibling] = []

    def add(self, text: bytes, *, prove: bool = False) -> None:
        """Add a leaf on the right; ``prove`` chooses it as the one that ``path`` is for."""
        node = _Node(1, sha256(LEAF + text).digest(), prove)
        nodes = self._nodes
        while nodes and nodes[-1].size == node.size:
            node = self._joined(nodes.pop(), node, self._path)
        nodes.append(node)
        self.count += 1

    def copy(self) -> Tree:
        """Return a tree with the same leaves, that grows by itself."""
        tree = Tree()
        tree.count, tree._nodes, tree._path = self.count, list(self._nodes), list(self._path)
        return tree

    def root(self) -> bytes:
        """Return the root of the leaves so far; of none, the digest of nothing."""
        return self._finished([])

    def path(self) -> list[Sibling]:
        """Return what a proof needs: the siblings on the way from the chosen leaf to the root."""
        path = list(self._path)
        self._finished(path)
        return path

    def _finished(self, path: list[Sibling]) -> bytes:
        if not self._nodes:
            return sha256().digest()
        *others, node = self._nodes
        for left in reversed(others):
            node = self._joined(left, node, path)
        return node.digest

    @staticmethod
    def _joined(left: _Node, right: _Node, path: list[Sibling]) -> _Node:
        if left.has_proven:
            path.append(Sibling("right", right.digest))
        elif right.has_proven:
            path.append(Sibling("left", left.digest))
        return _Node(
            left.size + right.size,
            sha256(NODE + left.digest + right.digest).digest(),
            left.has_proven or right.has_proven,
        )


def root_of(text: bytes, path: Sequence[Sibling]) -> bytes:
    """Return the root that a path leads to from a leaf."""
    digest = leaf_digest(text)
    for side, sibling in path:
        pair = sibling + digest if side == "left" else digest + sibling
        digest = sha256(NODE + pair).digest()
    return digest
