"""Trees by path: names, split and join, find, digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "difference",
    "digest",
    "find",
    "is_key",
    "join",
    "keyed",
    "paths",
    "plain",
    "split",
    "unaliased",
]


def path_name(path) -> str:
    """A key path of `jax.tree_util` as "params/Dense_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names, in the order of `jax.tree.leaves`.

    Args:
      tree: any tree of arrays [...].

    Returns:
      (path, leaf) pairs; a path reads "params/Dense_0/kernel".

    >>> paths({"a": {"b": 1}, "c": [2, 3]})
    [('a/b', 1), ('c/0', 2), ('c/1', 3)]
    """
    return [(path_name(p), x) for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]]


def split(tree, chosen: Callable[[str], bool]):
    """Two trees of the same shape: leaves whose path is chosen, and the rest; None elsewhere.

    Args:
      tree: any tree of arrays [...].
      chosen: predicate over the path of a leaf.

    Returns:
      (chosen, rest), which `join` puts together again.

    >>> split({"head": 1, "body": 2}, lambda path: path.startswith("head"))
    ({'body': None, 'head': 1}, {'body': 2, 'head': None})
    """
    flags = jax.tree_util.tree_map_with_path(lambda p, _: bool(chosen(path_name(p))), tree)
    take = jax.tree.map(lambda flag, x: x if flag else None, flags, tree)
    rest = jax.tree.map(lambda flag, x: None if flag else x, flags, tree)
    return take, rest


def join(a, b):
    """One tree from two whose leaves complement each other, as `split` makes them.

    Args:
      a: a tree of arrays [...] with None where `b` has a leaf.
      b: the other one.

    Returns:
      The whole tree.

    >>> join({"head": 1, "body": None}, {"head": None, "body": 2})
    {'body': 2, 'head': 1}
    """
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None)


def find(tree, kind: type):
    """The one node of a type inside nested states: find(state, optax.ScaleByAdamState).mu.

    States nest as techniques do, so nobody should count the levels; this is the door.

    Args:
      tree: any tree, such as the state of a Step.
      kind: the type of the node wanted.

    Returns:
      The node.

    Raises:
      LookupError: if there is none, or more than one (then search a smaller part).

    >>> state = (optax.adam(1e-3).init({"w": jnp.zeros(2)}), {"other": jnp.ones(3)})
    >>> find(state, optax.ScaleByAdamState).mu
    {'w': Array([0., 0.], dtype=float32)}
    """
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    found = [x for x in leaves if isinstance(x, kind)]
    if len(found) != 1:
        raise LookupError(f"found {len(found)} nodes of type {kind.__name__}, expected exactly one")
    return found[0]


def is_key(x) -> bool:
    """True for an array [...] of typed random keys.

    Args:
      x: [...] any leaf.

    Returns:
      A bool.

    >>> is_key(jax.random.key(0)), is_key(jnp.zeros(2))
    (True, False)
    """
    return jnp.issubdtype(getattr(x, "dtype", object), jax.dtypes.prng_key)


def plain(tree):
    """The same tree with typed keys as their data [... 2]: what `where` and `stack` can handle.

    Args:
      tree: any tree of arrays [...].

    Returns:
      The tree without typed keys; `keyed` undoes it.

    >>> plain({"key": jax.random.key(7)})["key"]
    Array([0, 7], dtype=uint32)
    """
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def keyed(tree, like):
    """Undo `plain`: leaves that are typed keys in `like` become typed keys again.

    Args:
      tree: a tree as `plain` makes it; shapes may differ from those of `like`.
      like: a tree of the same structure with typed keys.

    Returns:
      The tree with typed keys.

    >>> tree = {"key": jax.random.key(7)}
    >>> keyed(plain(tree), tree)["key"] == tree["key"]
    Array(True, dtype=bool)
    """

    def wrap(x, old):
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(old)) if is_key(old) else x

    return jax.tree.map(wrap, tree, like)


def to_host(x) -> np.ndarray:
    """A leaf [...] as a numpy array of its own memory; keys by their data."""
    return np.array(jax.device_get(jax.random.key_data(x) if is_key(x) else x), copy=True)


def digest(tree) -> str:
    """SHA-256 over path, dtype, shape and bytes of every leaf: equal digests, equal bits.

    Args:
      tree: any tree of arrays [...]; typed keys count by their key data.

    Returns:
      64 hexadecimal digits.

    >>> digest({"w": jnp.zeros(2)}) == digest({"w": jnp.zeros(2)})
    True
    >>> digest({"w": jnp.zeros(2)}) == digest({"w": -jnp.zeros(2)})
    False
    """
    total = hashlib.sha256()
    for path, leaf in paths(tree):
        total.update(leaf_digest(path, to_host(leaf), str(getattr(leaf, "dtype", ""))).encode())
    return total.hexdigest()


def leaf_digest(path: str, array: np.ndarray, dtype: str) -> str:
    """SHA-256 of one leaf [...] with its name, so that swapped leaves are noticed."""
    head = f"{len(path)}:{path}|{dtype or array.dtype}|{array.shape}|".encode()
    one = hashlib.sha256(head)
    one.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return one.hexdigest()


def difference(found, wanted) -> str:
    """The first path at which two trees differ in structure, shape or dtype; "" if in none.

    Args:
      found: a tree of arrays [...] or `jax.ShapeDtypeStruct`s: what came.
      wanted: the same: what was expected.

    Returns:
      A sentence naming path and both sides, or "".

    >>> difference({"w": jnp.zeros(2)}, {"w": jnp.zeros(3)})
    'w is float32[2], expected float32[3]'
    >>> difference({"w": jnp.zeros(2)}, {"w": jnp.zeros(2), "b": jnp.zeros(1)})
    'b is missing, expected float32[1]'
    """
    have, want = dict(paths(found)), dict(paths(wanted))
    for path in list(want) + [p for p in have if p not in want]:
        if path not in have:
            return f"{path} is missing, expected {describe(want[path])}"
        if path not in want:
            return f"{path} is {describe(have[path])}, which nothing asks for"
        if describe(have[path]) != describe(want[path]):
            return f"{path} is {describe(have[path])}, expected {describe(want[path])}"
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return f"the trees differ in kind: {jax.tree.structure(found)} and {wanted!r:.200}"
    return ""


def describe(x) -> str:
    """A leaf [...] as float32[2,3]."""
    shape = ",".join(map(str, np.shape(x)))
    return f"{getattr(x, 'dtype', type(x).__name__)}[{shape}]"


def unaliased(tree, *others):
    """The same tree, with a copy of every leaf whose memory another leaf (or `others`) uses too.

    Donating one buffer twice is an error of XLA, and donating the caller's own deletes it.

    Args:
      tree: a tree of jax arrays [...].
      *others: trees whose memory must not be shared either.

    Returns:
      The tree, equal bit by bit.

    >>> x = jnp.ones(3)
    >>> tree = unaliased({"a": x, "b": x})
    >>> tree["a"].unsafe_buffer_pointer() == tree["b"].unsafe_buffer_pointer()
    False
    """
    seen = {place for other in others for x in jax.tree.leaves(other) for place in _places(x)}

    def own(x):
        here = _places(x)
        if here & seen:
            x = jnp.copy(x)
            here = _places(x)
        seen.update(here)
        return x

    return jax.tree.map(own, tree)


def _places(x) -> set[tuple[Any, int]]:
    """(device, address) of each buffer of an array."""
    if is_key(x):
        x = jax.random.key_data(x)
    # jax imports jax.core itself; the checker does not see it
    traced = isinstance(x, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(x, jax.Array) or traced or not x.size:
        return set()
    return {(s.device, s.data.unsafe_buffer_pointer()) for s in x.addressable_shards}
