"""The leaves of a state: unique names, a table of what they are, host copies, strict comparison."""

from __future__ import annotations

import difflib
import hashlib
import urllib.parse
from typing import Any

import jax
import numpy as np

from nnkit.core import trees

__all__: list[str] = []  # for this package only

SCALARS = {kind.__name__: kind for kind in (bool, int, float, complex)}
# What Orbax stores as it is; other dtypes (float8, int4 ...) travel as their bytes.
NATIVE = {"bool", "float16", "float32", "float64", "bfloat16", "complex64", "complex128"}
NATIVE |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}

FLOATS = {"bfloat16", "float16", "float32", "float64"}  # what `allow_cast` may change
LOOSE = {"key", "scalar"}  # marks of rows that are no plain arrays
SHOWN = 10  # differences that are told


def escaped(path) -> str:
    """A key path of jax as a name that is unique, bounded in length and stays in its folder."""
    return joined([jax.tree_util.keystr((entry,), simple=True) for entry in path])


def joined(parts) -> str:
    """The name of a leaf from the parts of its path."""
    quoted = [urllib.parse.quote(p, safe="").replace(".", "%2E") or "%e" for p in parts]
    name = "/".join(quoted) if quoted else "%r"
    if len(name) <= 200:
        return name
    return f"{name[:150]}%h{hashlib.sha256(name.encode()).hexdigest()}"


def flat(tree) -> dict[str, tuple[str, Any]]:
    """The leaves [...] of a tree as {escaped name: (path to show, leaf)}, in order."""
    found: dict[str, tuple[str, Any]] = {}
    for path, leaf in _pairs(tree):
        shown = trees.path_name(path)
        try:
            name = escaped(path)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"leaf {shown!r} has a name that is no valid text; rename it"
            ) from error
        if name in found:
            raise ValueError(
                f"two leaves are named {shown!r} (such as the keys 1 and '1'); rename one of them"
            )
        found[name] = (shown, leaf)
    return found


def _pairs(tree) -> list[tuple[Any, Any]]:
    """(key path, leaf [...]) of a tree; a dict whose keys have no order is named."""
    try:
        return jax.tree_util.tree_flatten_with_path(tree)[0]
    except (TypeError, ValueError):
        for path, x in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_unsorted)[0]:
            if _unsorted(x):
                raise ValueError(
                    f"{trees.path_name(path) or 'the state'} is a dict with the keys "
                    f"{list(x)[:4]!r:.100}, which have no order, expected names of one type; "
                    "rename some"
                ) from None
        raise


def _unsorted(x) -> bool:
    if isinstance(x, dict):
        try:
            sorted(x)
        except TypeError:
            return True
    return False


def entry(name: str, path: str, leaf) -> dict[str, Any]:
    """One row of the leaf table: what a leaf [...] is, without its values."""
    row = {"name": name, "path": path, "shape": [int(n) for n in np.shape(leaf)]}
    if type(leaf) in SCALARS.values():
        return row | {"dtype": type(leaf).__name__, "scalar": type(leaf).__name__}
    dtype = getattr(leaf, "dtype", None)
    # jax imports jax.core itself; the checker does not see it
    traced = isinstance(leaf, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]
    refuse = dtype is None or traced
    if not refuse and not trees.is_key(leaf):
        refuse = np.dtype(dtype).kind in "OSUmM" or np.dtype(dtype) == jax.dtypes.float0
    if refuse:
        raise TypeError(
            f"leaf {path} is {trees.describe(leaf)}, expected an array of numbers or a typed key; "
            "keep other things in `meta`, and save outside of jit"
        )
    return row | {"dtype": str(dtype)}


def snapshot(state) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The leaf table and a host copy of every leaf [...], so that the state may be donated next."""
    leaves = flat(state)
    table = [entry(name, path, leaf) for name, (path, leaf) in leaves.items()]
    for path, leaf in leaves.values():
        if not isinstance(leaf, jax.Array):
            continue
        if not leaf.is_fully_addressable:
            raise NotImplementedError(
                f"leaf {path} lives on several hosts ({leaf.sharding}), and this process knows of "
                "no other: begin with nk.hosts.start(), or gather it with "
                "multihost_utils.process_allgather"
            )
        if leaf.is_deleted():
            raise ValueError(
                f"leaf {path} was deleted by donation; save the state that update returned"
            )
        if not trees.is_key(leaf):
            leaf.copy_to_host_async()  # all transfers at once
    arrays = {name: trees.to_host(leaf) for name, (_, leaf) in leaves.items()}
    for row in table:
        _, leaf = leaves[row["name"]]
        if trees.is_key(leaf):
            row["key"] = str(jax.random.key_impl(leaf))
        if arrays[row["name"]].dtype.hasobject:
            raise TypeError(f"leaf {row['path']} is {leaf!r:.60}, which fits no dtype of numpy")
    return table, arrays


def leaf_digest(row, array: np.ndarray) -> str:
    """The digest of a leaf [...], as `trees.digest` counts it."""
    return trees.leaf_digest(row["path"], array, "" if "scalar" in row else row["dtype"])


def seal(table, arrays, known=()) -> str:
    """Adds the digest of its leaf [...] to every row; returns `trees.digest` of the whole state.

    Args:
      table: the rows.
      arrays: the leaves by name.
      known: digests by name of leaves that are not among them.
    """
    total, known = hashlib.sha256(), dict(known)
    for row in table:
        name = row["name"]
        row["sha256"] = known[name] if name in known else leaf_digest(row, arrays[name])
        total.update(row["sha256"].encode())
    return total.hexdigest()


def encode(array: np.ndarray) -> np.ndarray:
    """A leaf [...] as Orbax can store it: as it is, or as bytes [n]."""
    return array if str(array.dtype) in NATIVE else array.reshape(-1).view(np.uint8)


def chosen(table, under: str = "", rename=None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows of a part of what was saved, under the names it is wanted by.

    Args:
      table: the rows as they were saved.
      under: "" for all, or the path of the part, such as "params"; it is cut from the names.
      rename: {saved path: wanted path} of leaves, or of whole parts; the longest that fits counts.

    Returns:
      Pairs (row as saved, row with the wanted name and path).

    Raises:
      ValueError: if a path of `under` or `rename` is none, or two leaves get one name.
    """
    cut = under.split("/") if under else []
    ways = {tuple(old.split("/")): new.split("/") for old, new in (rename or {}).items()}
    used, pairs, taken = set(), [], {}
    for row in table:
        parts = row["path"].split("/")
        if parts[: len(cut)] != cut:
            continue
        parts = parts[len(cut) :]
        if not cut and not ways:
            pairs.append((row, row))
            continue
        for k in range(len(parts), 0, -1):
            if tuple(parts[:k]) in ways:
                used.add(tuple(parts[:k]))
                parts = ways[tuple(parts[:k])] + parts[k:]
                break
        name = joined(parts) if parts else "%r"
        if name in taken:
            raise ValueError(
                f"{row['path']} and {taken[name]} would both be {'/'.join(parts)!r}: rename them "
                "to different names"
            )
        taken[name] = row["path"]
        pairs.append((row, row | {"name": name, "path": "/".join(parts)}))
    unused = ["/".join(old) for old in ways if old not in used]
    if unused or (cut and not pairs):
        asked = unused[0] if unused else under
        there = sorted({"/".join(row["path"].split("/")[: asked.count("/") + 1]) for row in table})
        near = difflib.get_close_matches(asked, there, n=1)
        hint = f"perhaps you meant {near[0]!r}" if near else f"there are {there[:10]}"
        what = "rename" if unused else "under"
        raise ValueError(f"{what} names {asked!r}, which the checkpoint has not; {hint}")
    return pairs


def difference(table, target, allow_cast: bool = False) -> str:
    """The leaves at which the saved table and a target differ, ten at most; "" if in none.

    Args:
      table: the rows as they were saved.
      target: a tree of arrays [...] or `jax.ShapeDtypeStruct`s.
      allow_cast: whether a float may be wanted in another width.
    """
    saved = {row["name"]: row for row in table}
    wanted = {n: entry(n, path, leaf) for n, (path, leaf) in flat(target).items()}
    if allow_cast:
        wanted = {n: row | _as_saved(saved.get(n), row) for n, row in wanted.items()}
    extra = [show(row) for name, row in saved.items() if name not in wanted]
    found = []
    for name, row in wanted.items():
        if name not in saved:
            other = f" (saved and not wanted: {extra[0]})" if extra else ""
            found.append(f"{row['path']} is not in it, the model wants {show(row, '')}{other}")
        elif show(saved[name], "") != show(row, ""):
            found.append(
                f"{row['path']} was saved as {show(saved[name], '')}, "
                f"the model wants {show(row, '')}"
            )
    found += [f"{text.replace(' ', ' was saved as ', 1)}, the model has none" for text in extra]
    if len(found) < 2:
        return found[0] if found else ""
    listed = "".join(f"\n  {text}" for text in found[1:SHOWN])
    rest = f"\n  ... {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{found[0]} (and {len(found) - 1} more){listed}{rest}"


def _as_saved(saved, row) -> dict[str, str]:
    """The dtype of a row as it was saved, if a cast to the one wanted only changes its width."""
    if saved is None or saved["shape"] != row["shape"] or not LOOSE.isdisjoint({*saved, *row}):
        return {}
    return {"dtype": saved["dtype"]} if {saved["dtype"], row["dtype"]} <= FLOATS else {}


def cast(row, array: np.ndarray, want) -> tuple[dict[str, Any], np.ndarray]:
    """(row, array [...]) in the dtype that is wanted; `difference` has allowed it.

    Args:
      row: of the leaf table.
      array: as it was saved.
      want: the leaf of the target.
    """
    dtype = getattr(want, "dtype", None)
    if "key" in row or "scalar" in row or dtype is None or str(dtype) == row["dtype"]:
        return row, array
    with np.errstate(over="ignore"):  # too large for float16 is inf, as in a cast on a device
        return row | {"dtype": str(dtype)}, array.astype(np.dtype(dtype))


def show(row, path: str | None = None) -> str:
    """A row as "params/w float32[8,4]", or without its path."""
    text = f"{row['dtype']}[{','.join(map(str, row['shape']))}]"
    return text if path == "" else f"{row['path']} {text}"


def blank(row) -> np.ndarray:
    """An array [...] of the dtype and shape of a leaf as it is kept on the host, values unset."""
    if "key" in row:
        keys = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=row["key"])))
        return np.empty((*row["shape"], *keys.shape), keys.dtype)
    if "scalar" in row:
        return np.empty((), np.asarray(SCALARS[row["scalar"]](0)).dtype)
    return np.empty(row["shape"], jax.numpy.dtype(row["dtype"]))


def place(row, array: np.ndarray, want) -> Any:
    """A host array [...] as the leaf it was, where the target wants it."""
    if "scalar" in row:
        return SCALARS[row["scalar"]](array.item())
    if isinstance(want, (np.ndarray, np.generic)):
        return array if isinstance(want, np.ndarray) else array[()]
    sharding = getattr(want, "sharding", None)
    fixed = sharding is not None and getattr(want, "committed", True)
    if fixed and sharding is not None and not sharding.is_fully_addressable:
        leaf, fixed = _spread(array, want), False
    else:
        leaf = jax.device_put(array)
    if "key" in row:
        leaf = jax.random.wrap_key_data(leaf, impl=row["key"])
    elif fixed:
        leaf = array
    leaf = jax.device_put(leaf, sharding) if fixed else leaf
    if str(leaf.dtype) != row["dtype"]:
        raise ValueError(
            f"{row['path']} was saved as {row['dtype']}, which jax holds as {leaf.dtype} now; "
            "set jax_enable_x64"
        )
    return leaf


def _spread(array: np.ndarray, want) -> jax.Array:
    """A host array [...], whole in every process, on the devices of all.

    Keys come by their data, with one axis more, which no sharding names.
    """
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    return jax.make_array_from_callback(array.shape, want.sharding, lambda index: array[index])
