"""Paths in a parameter tree and first-match selection by path."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxclone.types import Tree


def path_name(path: Sequence[Any]) -> str:
    """A key path as one string: `encoder/layer_0/kernel`.

    >>> tree = {"a": {"b": 1}}
    >>> [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    ['a/b']
    """
    return "/".join(
        str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))
        for entry in path
    )


def flatten(tree: Tree) -> dict[str, Any]:
    """All leaves by path name, in tree order."""
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def first_match(tree: Tree, rules: Sequence[tuple[str, Any]]) -> Tree:
    """A tree of the same structure holding, for each leaf, the value of the first rule it matches.

    Args:
        tree: any tree.
        rules: (regular expression searched in the path name, value), tried in order.

    Raises:
        KeyError: a leaf that no rule covers.

    >>> first_match({"a": {"bias": 0, "kernel": 0}}, [("bias$", "no decay"), ("", "decay")])
    {'a': {'bias': 'no decay', 'kernel': 'decay'}}
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]

    def select(path: Sequence[Any], _: Any) -> Any:
        name = path_name(path)
        for pattern, value in compiled:
            if pattern.search(name):
                return value
        raise KeyError(f"no rule covers the parameter {name}")

    return jax.tree_util.tree_map_with_path(select, tree)


def n_parameters(tree: Tree) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def fingerprint(params: Tree) -> str:
    """A short name that no other weights have.

    >>> weights = {"kernel": np.ones(3, np.float32)}
    >>> fingerprint(weights) == fingerprint({"kernel": np.ones(3, np.float32)})
    True
    >>> fingerprint(weights) == fingerprint({"bias": np.ones(3, np.float32)})
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, leaf in sorted(flatten(jax.device_get(params)).items()):
        array = np.asarray(leaf, order="C")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
