"""Which values differ between the devices of a `shard_map`, as jax tracks it (check_vma=True)."""

from __future__ import annotations

import jax

__all__: list[str] = []


def _of(x) -> frozenset:
    """Names of the axes over which x [...] is tracked to differ; of a ShapeDtypeStruct too."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    told = getattr(kind, "manual_axis_type", None)  # jax 0.10; before it vma
    return frozenset((getattr(kind, "vma", None) if told is None else told.varying) or ())


def tracked(names) -> bool:
    """True inside of a shard_map that checks what differs; False under pmap and vmap."""
    index = jax.lax.axis_index(names)
    if not hasattr(jax.typeof(index), "manual_axis_type") and not hasattr(jax.typeof(index), "vma"):
        raise RuntimeError(
            f"jax {jax.__version__} does not say what differs between devices as 0.7 to 0.12 do, "
            "so that gradients might be summed twice: use jax.shard_map(..., check_vma=False)"
        )
    return bool(_of(index))


def varies(x, names) -> bool:
    """Is x [...] tracked to differ over one of these axes?"""
    return bool(_of(x) & set(names))


def varying(tree, names):
    """The same numbers [...], said to differ over these axes: no sum is put in by jax."""

    def one(x):
        new = tuple(name for name in names if name not in _of(x))
        if not new:
            return x
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(x, new, to="varying")
        return vars(jax.lax)["pvary"](x, new)  # its name before jax 0.9

    return jax.tree.map(one, tree)


def as_varying(tree, like):
    """Leaf by leaf said to differ over the axes over which `like` (shapes or arrays) does."""
    return jax.tree.map(lambda x, other: varying(x, tuple(_of(other))), tree, like)
