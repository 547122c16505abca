"""Recurrent layers over whole sequences: RNN, LSTM, GRU; masked, either way, with state in and out.

    y, state = layer(x [b t d], mask [b t], state)        y [b t f], state {"h": [b f], ...}

A padded step carries the state through and gives 0, wherever the padding stands; so `reverse=True`
begins at each sequence's own end, and the state is that after each sequence's last real step.

Truncated backpropagation through time: give the state of one window to the next, and cut its
gradient with `detach`:

    y, state = layer.apply(variables, window, state=detach(state))

Second derivatives by reverse mode work everywhere. LSTM and GRU have a derivative written out
(`fast_cells`), which `jax.jvp` cannot pass: for forward mode set form="plain". The choice between
the two is made in `_walk` below, nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from nnkit.core.checks import dims, shares, sizes
from nnkit.layers import cells, fast_cells
from nnkit.layers.inputs import channels, real

__all__ = ["GRU", "LSTM", "RNN", "eye"]

FORMS = ("fast", "plain")
_zeros = nn.initializers.zeros
_input = nn.initializers.lecun_normal()
_recurrent = nn.initializers.orthogonal()


def eye(scale: float = 1.0) -> Callable:
    """An initialiser: scale times the identity matrix.

    An IRNN is RNN(f, activation=nn.relu, recurrent_init=eye(),
    kernel_init=nn.initializers.normal(0.001)).

    Args:
      scale: of the diagonal; 1 in the paper, less makes the network forget.

    Returns:
      (key, shape (f, f), dtype) -> [f f].

    Raises:
      ValueError: by the initialiser, if the shape is not square.

    >>> eye(0.5)(jax.random.key(0), (2, 2))
    Array([[0.5, 0. ],
           [0. , 0.5]], dtype=float32)

    Le et al., arXiv:1504.00941, section 2.
    """

    def init(key, shape, dtype=jnp.float32):
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"eye: the shape is {shape}, expected a square (f, f)")
        return jnp.asarray(scale).astype(dtype) * jnp.eye(shape[0], dtype=dtype)

    return init


class RNN(nn.Module):
    """A simple recurrent network: h_t = a(x_t W + b + h_(t-1) U).

    Parameters: kernel_in W [d f], kernel_rec U [f f], bias b [f].

    Args:
      features: f.
      activation: a: `jnp.tanh`, `nn.relu`, or the identity for a linear network.
      use_bias: False leaves b out.
      reverse: from the last step to the first.
      recurrent_dropout: share of h hidden from U while training, the same at every step.
      kernel_init: of W.
      recurrent_init: of U; orthogonal by default, `eye()` with `nn.relu` is an IRNN.

    Call: x [b t d], mask=None [b t], state=None {"h": [b f]}, train=False -> (y [b t f], state).

    Raises:
      TypeError: when first used, if x is not floating, or a field is of another kind.
      ValueError: if shapes do not fit, or a field is out of its range.

    >>> (y, state), _ = RNN(8).init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> y.shape, state["h"].shape
    ((2, 5, 8), (2, 8))

    Elman 1990, doi:10.1207/s15516709cog1402_1; orthogonal U: Saxe et al., arXiv:1312.6120.
    """

    features: int
    activation: Callable = jnp.tanh
    use_bias: bool = True
    reverse: bool = False
    recurrent_dropout: float = 0.0
    kernel_init: Callable = _input
    recurrent_init: Callable = _recurrent

    @nn.compact
    def __call__(self, x, mask=None, state=None, *, train: bool = False):
        d, f = _sizes(self, x), self.features
        if not callable(self.activation):
            raise TypeError(
                f"RNN: activation is {self.activation!r:.60}, expected a function such as jnp.tanh"
            )
        weights = _weights(self, d, f, gates=1)
        if self.use_bias:
            weights["bias"] = self.param("bias", _zeros, (f,), jnp.float32)
        return _walk(self, cells.simple(self.activation), None, weights, x, mask, state, train)

    @nn.nowrap
    def start(self, batch: int, dtype=jnp.float32) -> dict:
        """The state of zeros: {"h": [batch f]}."""
        return {"h": jnp.zeros((batch, self.features), dtype)}


class LSTM(nn.Module):
    """Long short-term memory; gates in the order i, f, g, o, as torch has them.

    c_t = s(f) c + s(i) tanh(g), h_t = s(o) tanh(c_t), (i, f, g, o) = x_t W + b + h_(t-1) U.
    Parameters: kernel_in W [d 4f], kernel_rec U [r 4f], bias b [4f] (the sum of torch's two), and
    on request peephole [3 f] (i, f, o) and kernel_proj [f r]; r = f without a projection.

    Args:
      features: f.
      forget_bias: where the forget gate's part of b starts.
      peephole: the gates see c through weights of their own.
      projection: r, width of h = (s(o) tanh(c)) P; None has none.
      use_bias: False leaves b out.
      reverse: from the last step to the first.
      recurrent_dropout: share of h hidden from U while training, the same at every step.
      kernel_init: of W and P.
      recurrent_init: of U, for each gate by itself.
      form: "fast", or "plain" for forward-mode derivatives; peepholes, projections and recurrent
        dropout are always plain.

    Call: x [b t d], mask=None [b t], state=None {"h": [b r], "c": [b f]}, train=False ->
    (y [b t r], state).

    Raises:
      TypeError: when first used, if x is not floating, or a field is of another kind.
      ValueError: if shapes do not fit, or a field is out of its range.

    >>> (y, state), _ = LSTM(8).init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> y.shape, sorted(state)
    ((2, 5, 8), ['c', 'h'])

    Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; forget gate: Gers et al. 2000,
    doi:10.1162/089976600300015015, its bias of 1: Jozefowicz et al. 2015; projection: Sak et al.,
    arXiv:1402.1128; recurrent dropout: Gal & Ghahramani, arXiv:1512.05287, eq. 7.
    """

    features: int
    forget_bias: float = 1.0
    peephole: bool = False
    projection: int | None = None
    use_bias: bool = True
    reverse: bool = False
    recurrent_dropout: float = 0.0
    kernel_init: Callable = _input
    recurrent_init: Callable = _recurrent
    form: str = "fast"

    @nn.compact
    def __call__(self, x, mask=None, state=None, *, train: bool = False):
        d, f = _sizes(self, x), self.features
        if self.projection is not None:
            sizes("LSTM", projection=self.projection)
        r = self.projection or f
        weights = _weights(self, d, f, gates=4, seen=r)
        if self.use_bias:
            weights["bias"] = self.param("bias", _forgetful, f, self.forget_bias)
        if self.peephole:
            weights["peephole"] = self.param("peephole", _zeros, (3, f), jnp.float32)
        if self.projection:
            weights["kernel_proj"] = self.param(
                "kernel_proj", self.kernel_init, (f, r), jnp.float32
            )
        fast = None if self.peephole or self.projection else fast_cells.lstm
        return _walk(self, cells.lstm, fast, weights, x, mask, state, train)

    @nn.nowrap
    def start(self, batch: int, dtype=jnp.float32) -> dict:
        """The state of zeros: {"h": [batch r], "c": [batch f]}."""
        r = self.projection or self.features
        return {"h": jnp.zeros((batch, r), dtype), "c": jnp.zeros((batch, self.features), dtype)}


class GRU(nn.Module):
    """Gated recurrent unit; gates in the order r, z, n, as torch has them.

    h_t = (1 - s(z)) n + s(z) h. With reset="after" n = tanh(x_t W_n + b_n + s(r) (h U_n + c_n)),
    the form of torch and cuDNN; with reset="before" n = tanh(x_t W_n + b_n + (s(r) h) U_n).
    Parameters: kernel_in W [d 3f], kernel_rec U [f 3f], bias b [3f], and for reset="after"
    bias_rec c [3f].

    Args:
      features: f.
      reset: "after" or "before" the recurrent product.
      use_bias: False leaves both biases out.
      reverse: from the last step to the first.
      recurrent_dropout: share of h hidden from U while training, the same at every step.
      kernel_init: of W.
      recurrent_init: of U, for each gate by itself.
      form: "fast", or "plain" for forward-mode derivatives; recurrent dropout is always plain.

    Call: x [b t d], mask=None [b t], state=None {"h": [b f]}, train=False -> (y [b t f], state).

    Raises:
      TypeError: when first used, if x is not floating, or a field is of another kind.
      ValueError: if shapes do not fit, or a field is out of its range.

    >>> (y, state), _ = GRU(8).init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> y.shape, state["h"].shape
    ((2, 5, 8), (2, 8))

    Cho et al., arXiv:1406.1078, eq. 5 to 8.
    """

    features: int
    reset: str = "after"
    use_bias: bool = True
    reverse: bool = False
    recurrent_dropout: float = 0.0
    kernel_init: Callable = _input
    recurrent_init: Callable = _recurrent
    form: str = "fast"

    @nn.compact
    def __call__(self, x, mask=None, state=None, *, train: bool = False):
        d, f = _sizes(self, x), self.features
        if self.reset not in ("after", "before"):
            raise ValueError(
                f"GRU: reset is {self.reset!r}, expected 'after' (torch) or 'before' (the paper)"
            )
        after = self.reset == "after"
        weights = _weights(self, d, f, gates=3)
        if self.use_bias:
            weights["bias"] = self.param("bias", _zeros, (3 * f,), jnp.float32)
        if self.use_bias and after:
            weights["bias_rec"] = self.param(
                "bias_rec", nn.initializers.zeros, (3 * f,), jnp.float32
            )
        step = cells.gru_after if after else cells.gru_before
        fast = fast_cells.gru_after if after else fast_cells.gru_before
        return _walk(self, step, fast, weights, x, mask, state, train)

    @nn.nowrap
    def start(self, batch: int, dtype=jnp.float32) -> dict:
        """The state of zeros: {"h": [batch f]}."""
        return {"h": jnp.zeros((batch, self.features), dtype)}


def _walk(layer, step, fast, weights, x, mask, state, train):
    """Checked inputs through a cell: the one place that decides between fast and plain."""
    name, (b, t, _) = type(layer).__name__, x.shape
    start = layer.start(b)
    given = start if state is None else _state(name, state, start)
    if mask is not None:
        dims("b t d, b t", x=x, mask=mask)
        mask = jnp.asarray(mask).astype(bool)
        x, mask = jnp.where(mask[..., None], x, 0), mask.T  # not even NaN gets out of padding
    (x, *flat), tree = promote_dtype(x, *jax.tree.leaves(weights)), jax.tree.structure(weights)
    weights = jax.tree.unflatten(tree, flat)
    given = jax.tree.map(lambda s: jnp.asarray(s).astype(x.dtype), given)
    keep, nudge = None, _nudge(layer, (b, t, start["h"].shape[-1]), x.dtype)
    if train and layer.recurrent_dropout:
        rate, h = layer.recurrent_dropout, given["h"]
        keep = jax.random.bernoulli(layer.make_rng("dropout"), 1 - rate, h.shape)
        keep = keep.astype(h.dtype) / (1 - rate)
    x = x.swapaxes(0, 1)
    if fast is None or layer.form == "plain" or keep is not None or nudge is not None:
        more = {"keep": keep, "nudge": nudge, "reverse": layer.reverse}
        y, last = cells.unroll(step, weights, x, given, mask=mask, **more)
    else:
        y, last = fast(weights, x, given, mask=mask, reverse=layer.reverse)
    return y.swapaxes(0, 1), last


def _nudge(layer, shape, dtype):
    """What `probe` adds to every h_t, [t b f]; None in all other calls."""
    if layer.is_initializing():
        return None
    if not layer.has_variable("perturbations", "h"):
        if not layer.is_mutable_collection("perturbations"):
            return None
        layer.put_variable("perturbations", "h", jnp.zeros(shape, dtype))
    return layer.get_variable("perturbations", "h").swapaxes(0, 1)


def _weights(layer, d, f, *, gates, seen=None):
    """kernel_in [d gates f] and kernel_rec [seen gates f], each gate initialised by itself."""

    def each(init):
        def stack(key, shape):
            keys = jax.random.split(key, gates)
            return jnp.concatenate([init(k, (shape[0], f), jnp.float32) for k in keys], -1)

        return stack

    return {
        "kernel_in": layer.param("kernel_in", each(layer.kernel_init), (d, gates * f)),
        "kernel_rec": layer.param("kernel_rec", each(layer.recurrent_init), (seen or f, gates * f)),
    }


def _forgetful(key, f, bias):
    """The bias [4f] of an LSTM: `bias` for the forget gate, 0 for the others."""
    return jnp.zeros((4, f), jnp.float32).at[1].set(bias).reshape(-1)


def _sizes(layer, x) -> int:
    """d, after the checks that every layer makes of its fields and of x [b t d]."""
    name = type(layer).__name__
    sizes(name, features=layer.features)
    shares(name, recurrent_dropout=layer.recurrent_dropout)
    if getattr(layer, "form", "plain") not in FORMS:
        raise ValueError(f"{name}: form is {layer.form!r}, expected one of {', '.join(FORMS)}")
    if jnp.ndim(x) != 3 or not x.shape[1]:
        raise ValueError(
            f"{name}: x has shape {jnp.shape(x)}, expected [b t d] with at least one step; "
            "one number per step is x[..., None]"
        )
    channels(layer, real(name, x), "kernel_in")
    return x.shape[-1]


def _state(name, state, like):
    """A given state, if it has the names and shapes of the one of zeros."""
    want = {k: v.shape for k, v in like.items()}
    have = {k: jnp.shape(v) for k, v in state.items()} if isinstance(state, dict) else state
    if have != want:
        raise ValueError(
            f"{name}: state is {str(have)[:120]}, expected {want}, as the call before gave it or "
            "start(batch)"
        )
    return state
