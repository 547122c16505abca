"""Attention as a pure function, and the one place that decides in which form it is computed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from nnkit.core.checks import concrete
from nnkit.core.platforms import platform
from nnkit.layers.blockwise import blockwise
from nnkit.layers.meshes import along, rows
from nnkit.layers.scores import Sight, mix, scores, softmax

__all__ = ["attention", "attention_weights"]

FORMS = ("plain", "blockwise", "xla")
LONG = 2**20  # queries x keys from which on the table of scores is not kept
CHUNKS = 8  # causal queries in so many parts, of 64 or more, each with the keys up to its end


def attention(
    q,
    k,
    v,
    *,
    causal=False,
    window=None,
    mask=None,
    segments=None,
    positions=None,
    bias=None,
    scale=None,
    softcap=None,
    offset=0,
    implementation=None,
):
    """Every query takes the mean of the values, weighted by how well their keys fit.

    softmax(cap(scale q k^T) + bias) v over the keys a query sees, with cap(z) = c tanh(z / c) if
    softcap is c. A query that sees no key gives exactly 0, with gradient 0. k and v may have fewer
    heads than q (grouped queries): head i of q reads head i // (h / g), and nothing is repeated.

    Args:
      q: [b t h d] queries.
      k: [b s g d] keys; g divides h.
      v: [b s g e] values.
      causal: query i sees keys j <= i only.
      window: causal: the last `window` keys, its own included; else keys with |i - j| < window.
      mask: [b s] keys that are real, or [b t s] keys each query sees; bool, or 0 and 1. What
        stands in a key masked by [b s] does not matter, not even NaN.
      segments: [b t] integers: seen is only what has the same one; or a pair ([b t], [b s]).
      positions: a pair ([b|1 t], [b|1 s]) of integers that `causal` and `window` compare, instead
        of offset + i and j; a negative position hides the key.
      bias: [b|1 h|1 t|1 s|1] added to the scores, after the cap.
      scale: factor of the products; None: 1/sqrt(d).
      softcap: bound of the scores, or None.
      offset: position of the first query; the first key is at 0. May be traced.
      implementation: None chooses; "plain", "blockwise" (memory linear in t and s) or "xla"
        (`jax.nn.dot_product_attention`: no softcap, float32 inside) forces one. All give the same

    Returns:
      [b t h e] of the dtype of v; scores, softmax and sums are float32 or wider.

    Raises:
      TypeError: if q, k, v are not floats of one dtype, or a mask is of floats.
      ValueError: if shapes do not fit, or a number is out of range.

    >>> q = k = v = jnp.arange(6.0).reshape(1, 3, 1, 2)
    >>> attention(q, k, v, causal=True)[0, :, 0, 0].round(4)
    Array([0.    , 1.9983, 4.    ], dtype=float32)

    Vaswani et al., arXiv:1706.03762, eq. 1; grouped queries: Ainslie et al., arXiv:2305.13245.
    """
    if implementation is not None and implementation not in FORMS:
        raise ValueError(f"implementation is {implementation!r}, expected None or one of {FORMS}")
    q, k, v, scale = _inputs(q, k, v, scale, softcap)
    sight = _sight(q, k, causal, window, mask, segments, positions, bias, offset)
    mesh = along("sequence")
    parts = 1 if mesh is None else mesh.shape["sequence"]
    parts = 1 if q.shape[1] % parts or k.shape[1] % parts else parts
    form = implementation or _form(q, k, v, softcap, parts)
    if parts > 1:
        return _over_devices(mesh, form, q, *_clean(k, v, mask), sight, scale, softcap)
    if form != "xla":
        k, v = _clean(k, v, mask)
    return _run(form, q, k, v, sight, scale, softcap)


def _run(form, q, k, v, sight: Sight, scale, softcap):
    """Attention [b t h e] in one of our own forms, or that of the compiler."""
    (b, t, h, d), (g, e) = q.shape, v.shape[2:]
    if form == "xla":
        return _xla(q, k, v, sight, scale, softcap)
    run = blockwise if form == "blockwise" else _plain
    return run(q.reshape(b, t, g, h // g, d), k, v, sight, scale, softcap).reshape(b, t, h, e)


def _over_devices(mesh, form, q, k, v, sight: Sight, scale, softcap):
    """Every device attends from its part of the queries to all keys, which it gathers.

    Backward the gradients of keys and values are summed and scattered. Which keys a query sees is
    a matter of positions, which come with the part; blocks that nobody sees are not left out.
    """
    split = {"b": rows(mesh, q.shape[0]), "t": ("sequence",)}
    if "tensor" in mesh.axis_names and k.shape[2] % mesh.shape["tensor"] == 0:
        split["h"] = ("tensor",)

    def spec(x, axes):  # an axis of size 1 is the same for all
        if x is None:
            return None
        return PartitionSpec(*(split.get(a) if n > 1 else None for a, n in zip(axes, x.shape)))

    def part(q, k, v, sight):
        k, v = (jax.lax.all_gather(x, "sequence", axis=1, tiled=True) for x in (k, v))
        return _run(form, q, k, v, sight, scale, softcap)

    seen = dataclasses.replace(sight, start=None)
    specs = dataclasses.replace(
        seen,
        q_pos=spec(sight.q_pos, "bt"),
        k_pos=spec(sight.k_pos, "bs"),
        q_seg=spec(sight.q_seg, "bt"),
        k_seg=spec(sight.k_seg, "bs"),
        pair=spec(sight.pair, "bts"),
        bias=spec(sight.bias, "bhrts"),
    )
    q_spec, kv_spec = spec(q, "bthe"), PartitionSpec(*(split.get(a) for a in "bth"))
    return jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(q_spec, kv_spec, kv_spec, specs),
        out_specs=q_spec,
        axis_names={name for names in split.values() for name in names},
    )(q, k, v, seen)


def attention_weights(q, k, *, scale=None, softcap=None, **sight):
    """How much each query takes of each key: the softmax of `attention`, kept.

    p = softmax(cap(scale q k^T) + bias), 0 where a query does not see; it needs t x s of memory.

    Args:
      q: [b t h d] queries.
      k: [b s g d] keys; g divides h.
      scale: factor of the products; None: 1/sqrt(d).
      softcap: bound of the scores, or None.
      **sight: causal, window, mask, segments, positions, bias and offset, as in `attention`.

    Returns:
      [b h t s] float32 (or float64) weights; a row adds to 1, or to 0 if it sees nothing.

    Raises:
      TypeError: as `attention`.
      ValueError: as `attention`.

    >>> q = k = jnp.zeros((1, 3, 2, 4))
    >>> attention_weights(q, k, causal=True, window=2)[0, 0]
    Array([[1. , 0. , 0. ],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]], dtype=float32)

    Vaswani et al., arXiv:1706.03762, eq. 1.
    """
    q, k, _, scale = _inputs(q, k, k, scale, softcap)
    names = ("causal", "window", "mask", "segments", "positions", "bias", "offset")
    if wrong := set(sight) - set(names):
        raise TypeError(f"attention_weights has no {sorted(wrong)}; there are {names}")
    given = {"causal": False, "offset": 0, **sight}
    sight = _sight(q, k, *(given.get(name) for name in names))
    k, _ = _clean(k, k, given.get("mask"))
    (b, t, h, d), (s, g) = q.shape, k.shape[1:3]
    p = softmax(scores(q.reshape(b, t, g, h // g, d), k, sight, scale, softcap))
    return p.reshape(b, h, t, s)


def _form(q, k, v, softcap, parts=1) -> str:
    """The one place that chooses: measured on CPU; on GPU and TPU the compiler's own form."""
    t, s = q.shape[1] // parts, k.shape[1]
    if t > 1 and t * s > LONG:
        return "blockwise"
    fits = softcap is None and k.shape == v.shape and q.dtype != jnp.float64
    return "xla" if fits and platform() in ("gpu", "tpu") else "plain"


def _plain(q, k, v, sight: Sight, scale, softcap):
    """Scores kept whole, but for what a causal query or a window cannot reach."""
    t, s = q.shape[1], k.shape[1]
    size = t if sight.start is None else max(-(-t // CHUNKS), 64)
    if sight.start is not None and sight.window is not None:
        size = min(size, max(sight.window, 64))
    parts = []
    for a, b, low, high in sight.spans(t, s, size):
        rows, columns = slice(a, b), slice(low, high)
        if high == low:
            shape = (q.shape[0], b - a, *q.shape[2:4], v.shape[-1])
            parts.append(jnp.zeros(shape, v.dtype))
            continue
        part = sight if b - a == t and high - low == s else sight.cut(rows, columns)
        p = softmax(scores(q[:, rows], k[:, columns], part, scale, softcap))
        parts.append(mix(p, v[:, columns]).astype(v.dtype))
    return jnp.concatenate(parts, 1) if len(parts) > 1 else parts[0]


def _xla(q, k, v, sight: Sight, scale, softcap):
    if softcap is not None or k.shape != v.shape:
        raise ValueError(
            "implementation='xla' has no softcap and needs keys and values of one shape, got "
            f"softcap={softcap}, k {k.shape}, v {v.shape}; leave implementation at None"
        )
    seen, bias = sight.table(), sight.bias
    if bias is not None:
        b, g, r, *rest = bias.shape
        bias = bias.reshape(b, g * r, *rest).astype(q.dtype)
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], q.shape[1], k.shape[1]))
    if seen is not None:
        seen = seen[:, 0]  # [b|1 1 t s]
        k, v = (jnp.where(seen.any(2)[..., None].swapaxes(1, 2), x, 0) for x in (k, v))
    with jax.numpy_dtype_promotion("standard"):  # float64 meets float32 inside
        y = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=seen, scale=scale)
    return y if seen is None else jnp.where(seen.any(-1)[:, 0, :, None, None], y, 0)


def _clean(k, v, mask):
    """Keys and values [b s g d] that are masked for all queries become 0, whatever they were."""
    if mask is None or jnp.ndim(mask) != 2:
        return k, v
    real = jnp.asarray(mask).astype(bool)[:, :, None, None]
    return jnp.where(real, k, 0), jnp.where(real, v, 0)


def _inputs(q, k, v, scale, softcap):
    q, k, v = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise ValueError(f"{shapes}: expected q (b t h d), k (b s g d) and v (b s g e)")
    if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(q.dtype, jnp.floating):
        raise TypeError(
            f"q is {q.dtype}, k {k.dtype}, v {v.dtype}, expected one float dtype; cast with "
            "x.astype(q.dtype)"
        )
    if k.shape[:3] != v.shape[:3] or k.shape[0] != q.shape[0]:
        raise ValueError(
            f"{shapes}: expected the same b everywhere, and s and g of k and v the same"
        )
    if q.shape[3] != k.shape[3]:
        raise ValueError(
            f"{shapes}: the heads of q have size {q.shape[3]}, those of k {k.shape[3]}; expected "
            "the same, for their product"
        )
    if 0 in q.shape or 0 in k.shape or 0 in v.shape:
        raise ValueError(f"{shapes}: expected every size >= 1")
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"{shapes}: {q.shape[2]} heads of q cannot share {k.shape[2]} heads of k and v evenly; "
            f"use {k.shape[2]} times a whole number of heads"
        )
    for name, x in (("scale", scale), ("softcap", softcap)):
        known = None if x is None else concrete(x)
        if known is not None and not (np.isfinite(known) and known > 0):
            raise ValueError(f"{name} is {x}, expected a finite number > 0, or None")
    return q, k, v, q.shape[-1] ** -0.5 if scale is None else scale


def _sight(q, k, causal, window, mask, segments, positions, bias, offset) -> Sight:
    (b, t, h, _), (s, g) = q.shape, k.shape[1:3]
    if window is not None:
        if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1:
            raise ValueError(f"window is {window!r}, expected an integer >= 1 (1: itself), or None")
        window = int(window)
    start, hides = None, positions is not None
    if positions is None:
        known = concrete(offset)
        start = None if known is None else int(known)
        q_pos = jnp.arange(t, dtype=jnp.int32)[None] + jnp.asarray(offset).astype(jnp.int32)
        k_pos = jnp.arange(s, dtype=jnp.int32)[None]
    else:
        q_pos, k_pos = _pair("positions", positions, ((1, t), (b, t)), ((1, s), (b, s)))
    pair = None
    if mask is not None:
        mask = _mask(mask, b, t, s)
        if mask.ndim == 2:
            k_pos, hides = jnp.where(mask, k_pos, -1), True
        else:
            pair = mask
    q_seg = k_seg = None
    if segments is not None:
        both = segments if isinstance(segments, tuple | list) else (segments, segments)
        q_seg, k_seg = _pair("segments", both, ((b, t),), ((b, s),))
    if bias is not None:
        bias = _bias(bias, b, h, t, s, g)
    if not causal and window is None:
        start = None
    return Sight(q_pos, k_pos, q_seg, k_seg, pair, bias, bool(causal), window, hides, start)


def _pair(name, pair, for_q, for_k):
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{name} is {type(pair).__name__}, expected a pair: for q and for k")
    found = tuple(jnp.asarray(x) for x in pair)
    for x, shapes, whose in zip(found, (for_q, for_k), ("q", "k")):
        if x.shape not in shapes or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"{name} of {whose} are {x.dtype} of shape {x.shape}, expected integers of shape "
                f"{' or '.join(map(str, dict.fromkeys(shapes)))}, from q and k"
            )
    return found


def _mask(mask, b, t, s):
    mask = jnp.asarray(mask)
    if jnp.issubdtype(mask.dtype, jnp.floating):
        raise TypeError(
            f"mask is {mask.dtype}, expected bool, or 0 and 1 as integers: True is a real key; "
            "write mask > 0 for a mask of 0.0 and 1.0, and give what is to be added as bias"
        )
    if mask.shape not in ((b, s), (b, t, s)):
        raise ValueError(
            f"mask has shape {mask.shape}, expected ({b}, {s}) for the keys, or ({b}, {t}, {s}) "
            "for every query, from q and k; what differs by head is a bias of -inf"
        )
    return mask.astype(bool)


def _bias(bias, b, h, t, s, g):
    bias, full = jnp.asarray(bias), (b, h, t, s)
    if bias.ndim > 4 or not jnp.issubdtype(bias.dtype, jnp.floating):
        raise ValueError(
            f"bias is {bias.dtype} of shape {bias.shape}, expected floats that broadcast to {full}"
        )
    shape = (1,) * (4 - bias.ndim) + bias.shape
    if any(n not in (1, m) for n, m in zip(shape, full)):
        raise ValueError(
            f"bias has shape {bias.shape}, expected one that broadcasts to (b h t s) = {full}"
        )
    heads = (1, 1) if shape[1] == 1 else (g, h // g)
    return bias.reshape(shape[0], *heads, *shape[2:])
