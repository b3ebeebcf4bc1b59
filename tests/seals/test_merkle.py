"""The Merkle tree: the root of RFC 6962, and paths that lead to it."""

from __future__ import annotations

from hashlib import sha256

import pytest

from eventlogs.seals.merkle import Sibling, Tree, leaf_digest, root_of

# Leaves and roots of the test vectors of Certificate Transparency,
# https://github.com/google/certificate-transparency/blob/master/cpp/merkletree/merkle_tree_test.cc
LEAVES = [
    bytes.fromhex(text)
    for text in (
        *("", "00", "10", "2021", "3031", "40414243"),
        *("5051525354555657", "606162636465666768696a6b6c6d6e6f"),
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def tree_of(leaves: list[bytes], proven: int | None = None) -> Tree:
    tree = Tree()
    for number, leaf in enumerate(leaves):
        tree.add(leaf, prove=number == proven)
    return tree


def simple_root(leaves: list[bytes]) -> bytes:
    """Return the root as RFC 6962 defines it, by recursion."""
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return sha256(b"\1" + simple_root(leaves[:half]) + simple_root(leaves[half:])).digest()


@pytest.mark.parametrize("count", range(1, 9))
def test_the_root_is_that_of_certificate_transparency(count):
    assert tree_of(LEAVES[:count]).root().hex() == ROOTS[count - 1]


def test_the_root_of_nothing_is_the_digest_of_nothing():
    assert Tree().root() == sha256().digest()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 31, 33, 100])
def test_a_path_leads_from_each_leaf_to_the_root(count):
    leaves = [b"%d" % number for number in range(count)]
    root = simple_root(leaves)

    for number, leaf in enumerate(leaves):
        tree = tree_of(leaves, number)
        assert tree.root() == root
        assert root_of(leaf, tree.path()) == root
        assert root_of(b"another", tree.path()) != root


def test_the_path_is_that_of_the_tree_as_it_is_now():
    tree = tree_of([b"a", b"b", b"c"], 2)
    first = tree.path()

    tree.add(b"d")

    assert root_of(b"c", first) == simple_root([b"a", b"b", b"c"])
    assert root_of(b"c", tree.path()) == simple_root([b"a", b"b", b"c", b"d"])


def test_a_node_does_not_pass_for_a_leaf():
    tree = tree_of([b"a", b"b"])
    node = leaf_digest(b"a") + leaf_digest(b"b")

    assert tree_of([node]).root() != tree.root()


def test_the_sides_of_a_path_count():
    tree = tree_of([b"a", b"b"], 0)
    [sibling] = tree.path()

    assert sibling == Sibling("right", leaf_digest(b"b"))
    assert root_of(b"a", [Sibling("left", sibling.digest)]) != tree.root()


def test_a_copy_grows_by_itself():
    tree = tree_of([b"a", b"b", b"c"], 0)
    copy = tree.copy()

    copy.add(b"d")

    assert tree.root() == simple_root([b"a", b"b", b"c"])
    assert copy.root() == simple_root([b"a", b"b", b"c", b"d"])
    assert root_of(b"a", copy.path()) == copy.root()
