"""Mixture of experts: every token is worked on by the few networks its router chooses."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from nnkit.core.checks import sizes
from nnkit.layers.dense import Dense
from nnkit.layers.inputs import real
from nnkit.layers.meshes import along, rows, split
from nnkit.layers.scores import wide

__all__ = ["MoE"]

ROUTINGS = ("mixtral", "switch")


class MoE(nn.Module):
    """A sparse feed-forward layer: y = sum of w_e f_e(x) over the top_k experts of a token.

    p = softmax(x W_router) in float32; chosen are the top_k largest. Weights w by `routing`:

    - "mixtral": p of the chosen, divided by their sum;
    - "switch": p of the chosen as it is (Switch has top_k = 1).

    f_e(x) = a(x U_e) D_e; gated: (a(x G_e) * (x U_e)) D_e. No biases. The parameters are
    router/kernel [d experts], up (and gate) [experts d hidden] and down [experts hidden d].

    capacity=None is dropless and exact: the tokens of each expert are put into blocks of
    ceil(top_k tokens / experts), as many as it needs, so that the work is at most twice what was
    chosen, whatever the load, and a token depends on nothing but itself. (`jax.lax.ragged_dot`
    multiplies every token with every expert on CPU and has no second derivative.) With a capacity
    factor an expert takes ceil(capacity top_k tokens / experts) tokens; first choices go before
    second ones, then the order of the tokens counts; what does not fit adds 0, so put the layer on
    a residual branch. Which tokens fit depends on the whole batch.

    groups cuts the tokens into as many parts of equal size, in order, that compete for room apart
    from each other: each has a capacity of its own. Where the experts are spread over devices
    (`rules.expert`), one group per device that shares the batch keeps routing on the device, and
    tokens travel to their experts and back by all-to-all. Dropless then keeps room for every token
    of a group at every expert, exact still, but experts / top_k times the work: use a capacity.

    Args:
      experts: number of experts.
      top_k: experts per token.
      hidden: width inside an expert.
      capacity: None, or a factor such as 1.25.
      activation: elementwise function a.
      gated: multiply by a second map.
      routing: "mixtral" or "switch".
      bias_rate: None, or the step u of balancing without a loss: the experts are chosen by
        p + bias (weights stay p), and while training bias_e += u sign(mean load - load_e). The
        bias lives in the collection "balance" and is carried like batch statistics.
      groups: number of groups, which must divide the number of tokens.
      kernel_init: of router, up and gate, for a matrix [in out].
      out_init: of down; None: kernel_init.

    Call: x [b t d] (any [... d]), mask [b t] or None, train=False -> (y [b t d], losses). Masked
    tokens are not routed: they give 0, take no room and do not count. losses is a dict:

    - "balance" []: experts sum_e f_e P_e, with f_e the share of the choices that fell on e and P_e
      the mean of p_e; 1 if all are used alike. Add 0.01 times it to the loss;
    - "z" []: mean of logsumexp(x W_router)^2; usually times 0.001;
    - "load" [experts]: f; "dropped" []: share of the choices that found no room.

    Raises:
      TypeError: if x is no floats, a field is of another kind, or the mask is of floats.
      ValueError: if top_k exceeds experts, routing is unknown, capacity is not > 0, or the groups
        do not divide the tokens.

    >>> layer = MoE(experts=4, top_k=2, hidden=8, gated=True)
    >>> (y, losses), params = layer.init_with_output(jax.random.key(0), jnp.ones((1, 3, 4)))
    >>> y.shape, float(losses["load"].sum()), params["params"]["up"].shape
    ((1, 3, 4), 1.0, (4, 4, 8))

    Shazeer et al., arXiv:1701.06538; Fedus et al., arXiv:2101.03961, eq. 4 to 6; z-loss: Zoph et
    al., arXiv:2202.08906, eq. 5; Jiang et al., arXiv:2401.04088; bias: Wang et al.,
    arXiv:2408.15664, algorithm 1; blocks: Gale et al., arXiv:2211.15841; groups: Lepikhin et al.,
    arXiv:2006.16668, algorithm 1.
    """

    experts: int
    top_k: int
    hidden: int
    capacity: float | None = None
    activation: Callable = nn.silu
    gated: bool = False
    routing: str = "mixtral"
    bias_rate: float | None = None
    groups: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    out_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x, mask=None, *, train: bool = False):
        self._check(x, mask)
        shape, d = x.shape, x.shape[-1]
        x = real("MoE", x).reshape(-1, d)  # [n d]
        here = None if mask is None else jnp.asarray(mask).astype(bool).reshape(-1)  # [n]
        if here is not None:
            x = jnp.where(here[:, None], x, 0)
        logits = Dense(self.experts, use_bias=False, kernel_init=self.kernel_init, name="router")(x)
        logits = logits.astype(wide(logits.dtype))  # [n e]
        p = jax.nn.softmax(logits)
        bias, rate = None, self.bias_rate
        if rate is not None:
            bias = self.variable("balance", "bias", jnp.zeros, (self.experts,), jnp.float32)
        chosen, weights = self._choose(p, bias)  # [n k]
        losses = _losses(logits, p, chosen, here)
        if bias is not None and rate is not None and train and not self.is_initializing():
            error = jax.lax.stop_gradient(losses["load"].mean() - losses["load"])
            bias.value = bias.value + rate * jnp.sign(error).astype(jnp.float32)
        if self.groups > 1 or along("expert"):
            y, missed = self._apart(x, chosen, here, weights)
        else:
            slots, owner, size = _places(chosen, here, self.experts, self.capacity)
            y, missed = self._run(x, slots, owner, size, weights)
        if here is not None:
            missed = missed & here[:, None]
        losses["dropped"] = missed.sum().astype(p.dtype) / _count(here, chosen, p.dtype)
        return y.reshape(shape), losses

    def _choose(self, p, bias):
        """Experts [n k] and their weights [n k] from probabilities [n e]."""
        by = jax.lax.stop_gradient(p)
        if bias is not None:
            by = by + bias.value.astype(p.dtype)[None]
        if along("expert"):  # the compiler cannot split top_k, it can split a sort
            chosen = jnp.argsort(-by, axis=-1, stable=True)[:, : self.top_k]
        else:
            chosen = jax.lax.top_k(by, self.top_k)[1]
        weights = jnp.take_along_axis(p, chosen, axis=-1)
        if self.routing == "mixtral":
            weights = weights / weights.sum(-1, keepdims=True)
        return chosen, weights

    def _run(self, x, slots, owner, size, weights):
        """Outputs [n d] of the experts, and which choices [n k] found no slot."""
        (n, k), d = slots.shape, x.shape[-1]
        blocks = self.experts if owner is None else owner.shape[0]
        up, gate, down = (
            w if owner is None or w is None else w[owner] for w in self._weights(x)
        )  # [blocks rows columns]
        copies = jnp.broadcast_to(x[:, None], (n, k, d)).reshape(-1, d)
        rooms = jnp.zeros((blocks * size, d), x.dtype)
        rooms = rooms.at[slots.reshape(-1)].set(copies, mode="drop").reshape(blocks, size, d)
        h = jnp.einsum("bsd,bdh->bsh", rooms, up)
        if gate is None:
            h = self.activation(h)
        else:
            h = self.activation(jnp.einsum("bsd,bdh->bsh", rooms, gate)) * h
        y = jnp.einsum("bsh,bhd->bsd", h, down).reshape(blocks * size, d)
        missed = slots >= blocks * size
        found = jnp.where(missed[..., None], 0, y[jnp.where(missed, 0, slots)])  # [n k d]
        mixed = jnp.einsum("nk,nkd->nd", weights, found.astype(weights.dtype))
        return mixed.astype(x.dtype), missed

    def _weights(self, x):
        """up, gate (or None) and down of all experts, of the dtype of x [... d]."""
        d, first, last = x.shape[-1], self.kernel_init, self.out_init or self.kernel_init

        def weight(name, init, rows, columns):
            w = self.param(name, _each(init), (self.experts, rows, columns))
            return jnp.asarray(w).astype(x.dtype)

        up = weight("up", first, d, self.hidden)
        gate = weight("gate", first, d, self.hidden) if self.gated else None
        return up, gate, weight("down", last, self.hidden, d)

    def _apart(self, x, chosen, here, weights):
        """As `_run`, every group of tokens with rooms of its own at every expert: [g e s d]."""
        (n, k), d, g, e = chosen.shape, x.shape[-1], self.groups, self.experts
        if n % g:
            raise ValueError(
                f"MoE: groups={g} do not divide the {n} tokens of x; use a divisor of {n}, such as "
                f"{max(m for m in range(1, g) if n % m == 0)}, or another batch size"
            )
        size = n // g
        if self.capacity is not None:
            size = min(math.ceil(self.capacity * k * size / e), size)
        cut = lambda a: None if a is None else a.reshape(g, n // g, *a.shape[1:])
        slots = jax.vmap(lambda c, h: _slots(c, h, e, size), (0, None if here is None else 0))(
            cut(chosen), cut(here)
        )  # [g n k]

        def fill(tokens, slots):  # [n d], [n k] -> [e*s d]
            copies = jnp.broadcast_to(tokens[:, None], (n // g, k, d)).reshape(-1, d)
            return jnp.zeros((e * size, d), x.dtype).at[slots.reshape(-1)].set(copies, mode="drop")

        rooms = jax.vmap(fill)(cut(x), slots).reshape(g, e, size, d)
        up, gate, down = self._weights(x)
        mesh = along("expert")
        if mesh is not None:  # from a group on each device to an expert on each, and back
            here_, there = rows(mesh, g), tuple(a for a in rows(mesh, g) if a != "expert")
            rooms = split(split(rooms, here_), there, "expert")
        h = jnp.einsum("gesd,edh->gesh", rooms, up)
        if gate is None:
            h = self.activation(h)
        else:
            h = self.activation(jnp.einsum("gesd,edh->gesh", rooms, gate)) * h
        y = jnp.einsum("gesh,ehd->gesd", h, down)
        if mesh is not None:
            y = split(split(y, there, "expert"), here_)
        missed = slots >= e * size
        found = jax.vmap(lambda y, at: y[at])(
            y.reshape(g, e * size, d), jnp.where(missed, 0, slots)
        )  # [g n k d]
        found = jnp.where(missed[..., None], 0, found).reshape(n, k, d)
        mixed = jnp.einsum("nk,nkd->nd", weights, found.astype(weights.dtype))
        return mixed.astype(x.dtype), missed.reshape(n, k)

    def _check(self, x, mask) -> None:
        sizes("MoE", experts=self.experts, top_k=self.top_k, hidden=self.hidden)
        sizes("MoE", groups=self.groups)
        if self.top_k > self.experts:
            raise ValueError(
                f"MoE: top_k={self.top_k} of experts={self.experts}: a token takes at most all of "
                "them; use a smaller top_k"
            )
        if self.routing not in ROUTINGS:
            raise ValueError(f"MoE: routing is {self.routing!r}, expected one of {ROUTINGS}")
        if not callable(self.activation):
            raise TypeError(
                f"MoE: activation is {self.activation!r:.60}, expected a function such as nn.silu"
            )
        for name in ("capacity", "bias_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"MoE: {name} is {value!r}, expected a number > 0, or None")
        if jnp.ndim(x) < 2:
            raise ValueError(f"MoE: x has shape {jnp.shape(x)}, expected (b t d), or (... d)")
        if mask is None:
            return
        if jnp.shape(mask) != jnp.shape(x)[:-1]:
            raise ValueError(
                f"mask has shape {jnp.shape(mask)}, expected {jnp.shape(x)[:-1]}: one per token of "
                f"x, which has shape {jnp.shape(x)}"
            )
        if jnp.issubdtype(jnp.asarray(mask).dtype, jnp.floating):
            raise TypeError(
                f"mask is {jnp.asarray(mask).dtype}, expected bool, or 0 and 1 as integers; write "
                "mask > 0"
            )


def _each(init):
    """An initialiser of [experts rows columns] that draws every matrix by itself."""

    def stacked(key, shape, dtype=jnp.float32):
        return jax.vmap(lambda key: init(key, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return stacked


def _count(here, chosen, dtype):
    """How many choices [] real tokens made, at least 1."""
    n, k = chosen.shape
    return (
        jnp.asarray(n * k, dtype) if here is None else jnp.maximum(here.sum() * k, 1).astype(dtype)
    )


def _losses(logits, p, chosen, here):
    """Balance, z and load, over the tokens that are real."""
    (n, experts), k = p.shape, chosen.shape[1]
    choices = _count(here, chosen, p.dtype)
    weight = jnp.ones((n,), p.dtype) if here is None else here.astype(p.dtype)
    hits = jax.nn.one_hot(chosen, experts, dtype=p.dtype).sum(1)  # [n e]
    load = (weight[:, None] * hits).sum(0) / choices  # [e]
    tokens = choices / k
    mean = (weight[:, None] * p).sum(0) / tokens  # [e]
    z = (weight * jnp.square(jax.nn.logsumexp(logits, axis=-1))).sum() / tokens
    return {"balance": experts * (load * mean).sum(), "z": z, "load": load}


def _places(chosen, here, experts, capacity):
    """A slot [n k] for every choice, the expert [blocks] of each block of slots, slots per block.

    Slots past the last block mean: no room. Without owners (None) block e belongs to expert e.
    """
    n, k = chosen.shape
    if capacity is None:
        size = -(-n * k // experts)
        blocks = (n * k + experts * (size - 1)) // size  # enough for any load
        owned = blocks * size < experts * n  # else room for all tokens everywhere is cheaper
        size = size if owned else n
    else:
        size, owned = min(math.ceil(capacity * k * n / experts), n), False
    if not owned:
        return _slots(chosen, here, experts, size), None, size
    ids, rank, counts = _ranks(chosen, here, experts)
    needed = -(-counts[:experts] // size)
    last = jnp.cumsum(needed)
    begin = jnp.concatenate([(last - needed) * size, jnp.full((1,), blocks * size, last.dtype)])
    slots = jnp.where(ids < experts, begin[ids] + rank, blocks * size)
    owner = jnp.searchsorted(last, jnp.arange(blocks, dtype=last.dtype), side="right")
    return slots.reshape(k, n).T, jnp.minimum(owner, experts - 1), size


def _slots(chosen, here, experts, size):
    """A slot [n k] for every choice, with `size` of them for each expert; past the last: none."""
    n, k = chosen.shape
    ids, rank, _ = _ranks(chosen, here, experts)
    slots = jnp.where((rank < size) & (ids < experts), ids * size + rank, experts * size)
    return slots.reshape(k, n).T


def _ranks(chosen, here, experts):
    """Expert [k n] of a choice, how many chose it before [k n], how many in all [experts + 1].

    First choices of all tokens count before second ones. Tokens not here choose expert number
    `experts`.
    """
    n, k = chosen.shape
    ids = chosen if here is None else jnp.where(here[:, None], chosen, experts)
    ids = ids.T.reshape(-1)
    order = jnp.argsort(ids, stable=True)
    counts = jnp.zeros((experts + 1,), jnp.int32).at[ids].add(1)
    first = jnp.cumsum(counts) - counts
    rank = jnp.zeros((n * k,), jnp.int32)
    rank = rank.at[order].set(jnp.arange(n * k, dtype=jnp.int32) - first[ids[order]])
    return ids, rank, counts
