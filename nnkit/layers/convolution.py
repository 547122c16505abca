"""Convolutions over 1 to 3 axes, forward and transposed, with a weight gradient fast on CPU.

Pooling has its own file, and is reached from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.custom_derivatives import SymbolicZero

from nnkit.core.checks import sizes
from nnkit.core.platforms import platform
from nnkit.layers.inputs import channels, real
from nnkit.layers.pooling import avg_pool, global_avg_pool, max_pool
from nnkit.layers.windows import each, many, pads_of, pairs, spread

__all__ = ["Conv", "ConvTranspose", "avg_pool", "global_avg_pool", "max_pool"]

_AXES = {1: "[b t c]", 2: "[b h w c]", 3: "[b d h w c]"}


class Conv(nn.Module):
    """Convolution (cross-correlation) of [b ... c] with one filter per output channel.

    y[n, p, o] = b[o] + sum over offsets q and channels i of x[n, stride p + dilation q - left, i]
    W[q, i, o]. With feature_group_count = g the channels fall into g groups that do not see each
    other; g = c is depthwise.

    Args:
      features: output channels.
      kernel_size: (k,) for sequences, (k, k) for pictures, (k, k, k) for volumes; 3 means (3,).
      strides: one number for all axes, or one per axis.
      padding: "SAME" (output ceil(size / stride), the odd cell after), "VALID" (none), "CAUSAL"
        (sequences: all before), one number, or one number or pair (before, after) per axis.
      kernel_dilation: distance between the cells of a filter, one number or one per axis.
      feature_group_count: number of groups; divides the input and output channels.
      use_bias: False leaves b out.
      kernel_init: of W [k ... c/groups features]; variance 1 / fan-in by default.
      bias_init: of b [features].

    Call: x [b t c], [b h w c] or [b d h w c] -> the same rank with `features` channels; params
    "kernel" and "bias".

    Raises:
      TypeError: when first used, if a field is of another kind, or x no floats.
      ValueError: if x has another rank, the groups divide no channels, x has other channels than
        the weights, or is smaller than the filter.

    >>> x = jnp.ones((2, 8, 8, 4))
    >>> Conv(6, (3, 3), strides=2).init_with_output(jax.random.key(0), x)[0].shape
    (2, 4, 4, 6)
    >>> depthwise = Conv(4, (7, 7), feature_group_count=4).init(jax.random.key(0), x)
    >>> depthwise["params"]["kernel"].shape
    (7, 7, 1, 4)

    LeCun et al. 1989, doi:10.1162/neco.1989.1.4.541; arithmetic: Dumoulin & Visin,
    arXiv:1603.07285.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: str | int | Sequence = "SAME"
    kernel_dilation: int | Sequence[int] = 1
    feature_group_count: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x):
        kernel_size, strides, dilation = _fields(self, x)
        pads = pads_of("Conv", self.padding, x.shape[1:-1], kernel_size, strides, dilation)
        for size, k, d, pad in zip(x.shape[1:-1], kernel_size, dilation, pads):
            if size + sum(pad) < d * (k - 1) + 1:
                raise ValueError(
                    f"Conv: x has shape {x.shape}, with padding {self.padding!r} smaller than the "
                    f"filter {kernel_size} with dilation {dilation}; use padding='SAME', or a "
                    "larger input"
                )
        return _affine(self, x, kernel_size, strides, pads, (1,) * len(strides), dilation)


class ConvTranspose(nn.Module):
    """Transposed convolution: every cell of x is spread over a filter; strides enlarge.

    A convolution of x with stride - 1 zeros between its cells. "SAME" gives size * stride.

    Args:
      features: output channels.
      kernel_size: (k,), (k, k) or (k, k, k); 3 means (3,).
      strides: factor of enlargement, one number for all axes or one per axis.
      padding: "SAME", "VALID" (everything a cell reaches), one number, or one number or pair
        (before, after) per axis, counted on the enlarged input as in flax: padding p of torch is
        dilation (k - 1) - p, its output_padding is added after.
      kernel_dilation: distance between the cells of a filter, one number or one per axis.
      feature_group_count: number of groups; divides the input and output channels.
      use_bias: False leaves the bias out.
      kernel_init: of W [k ... c/groups features], not flipped (torch's is, along each axis).
      bias_init: of b [features].

    Call: x [b t c], [b h w c] or [b d h w c] -> the same rank with `features` channels; params
    "kernel" and "bias".

    Raises:
      TypeError: when first used, if a field is of another kind, or x no floats.
      ValueError: if x has another rank, the groups divide no channels, or x has other channels
        than the weights.

    >>> x = jnp.ones((2, 4, 4, 6))
    >>> ConvTranspose(3, (2, 2), strides=2).init_with_output(jax.random.key(0), x)[0].shape
    (2, 8, 8, 3)

    Zeiler et al. 2010, doi:10.1109/CVPR.2010.5539957; arithmetic: Dumoulin & Visin,
    arXiv:1603.07285, section 4.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: str | int | Sequence = "SAME"
    kernel_dilation: int | Sequence[int] = 1
    feature_group_count: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x):
        kernel_size, strides, dilation = _fields(self, x)
        if self.padding in ("SAME", "VALID"):
            pads = [
                spread(d * (k - 1) + 1, s, same=self.padding == "SAME")
                for k, s, d in zip(kernel_size, strides, dilation)
            ]
        elif isinstance(self.padding, str):
            raise ValueError(
                f"ConvTranspose: padding is {self.padding!r}, expected 'SAME', 'VALID', or numbers"
            )
        else:
            pads = pairs("ConvTranspose", self.padding, len(kernel_size))
        ones = (1,) * len(strides)
        return _affine(self, x, kernel_size, ones, pads, strides, dilation)


def _fields(module, x) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(kernel size, strides, dilation) with one number per axis, and everything checked."""
    name = type(module).__name__
    real(name, x)
    kernel = module.kernel_size
    kernel = tuple(kernel) if many(kernel) else (kernel,)
    rank, groups = len(kernel), module.feature_group_count
    if rank not in _AXES:
        raise ValueError(f"{name}: kernel_size is {kernel}, expected 1 to 3 numbers, as in (3, 3)")
    if x.ndim != rank + 2:
        hint = f"; write kernel_size={(kernel[0],) * (x.ndim - 2)}" if 3 <= x.ndim <= 5 else ""
        raise ValueError(
            f"{name}: x has shape {x.shape}, expected {_AXES[rank]} for kernel_size={kernel}{hint}"
            f"{'; x[None] adds the batch axis' if x.ndim == rank + 1 else ''}"
        )
    strides = each(name, "strides", module.strides, rank)
    dilation = each(name, "kernel_dilation", module.kernel_dilation, rank)
    sizes(name, features=module.features, feature_group_count=groups)
    for k in kernel:
        sizes(name, kernel_size=k)
    for what, c in (("input channels", x.shape[-1]), ("features", module.features)):
        if c % groups:
            raise ValueError(
                f"{name}: feature_group_count={groups} does not divide the {c} {what}; x has shape "
                f"{x.shape}, channels last"
            )
    channels(module, x, groups=groups)
    return kernel, strides, dilation


def _affine(module, x, kernel_size, strides, pads, enlarge, dilation):
    """The product and the bias: what both layers share."""
    groups, features = module.feature_group_count, module.features
    shape = (*kernel_size, x.shape[-1] // groups, features)
    kernel = module.param("kernel", module.kernel_init, shape)
    bias = module.param("bias", module.bias_init, (features,)) if module.use_bias else None
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=None)
    spatial = "DHW"[-len(kernel_size) :]

    def convolve(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            window_strides=strides,
            padding=pads,
            lhs_dilation=enlarge,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=groups,
        )

    y = _in_pieces(convolve, _pieces(x.shape[0]))(x, kernel)  # [b ... features]
    return y if bias is None else y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))


def _pieces(b: int) -> int:
    """In how many pieces the weight gradient of a batch is computed: the one place that decides.

    XLA:CPU runs the gradient of one convolution by its weights on one thread; of several
    independent ones, on all. Gradient of x and W of one 3x3 layer on 2 cores, alternated, time of
    the plain form over that in pieces of 16 (at most 8): batch 128, 16x16x32 1.6; 14x14x32->64 1.5;
    1x1 16x16x64 2.7; stride 2 1.3; depthwise 7x7 1.2; batch 512 2.1; 64 1.5; 32 1.1 to 1.2; smaller
    pieces lose (0.7).
    """
    if platform() != "cpu":
        return 1
    return next((n for n in range(min(8, b // 16), 1, -1) if b % n == 0), 1)


def _in_pieces(convolve, n: int):
    """`convolve`, whose derivative by the weights is a sum over n pieces of the batch.

    The rule is a tangent in pieces, from which JAX makes forward and reverse mode at any order.
    Every n-th example goes to one piece, so that a batch split over devices stays where it is.
    """
    if n == 1:
        return convolve

    @jax.custom_jvp
    def split(x, w):
        return convolve(x, w)

    def rule(primals, tangents):
        (x, w), (dx, dw) = primals, tangents
        y = split(x, w)
        found = [] if isinstance(dx, SymbolicZero) else [split(dx, w)]
        if not isinstance(dw, SymbolicZero):
            cut = [convolve(lax.slice_in_dim(x, i, None, n), dw) for i in range(n)]
            found.append(jnp.reshape(jnp.stack(cut, 1), y.shape))
        return y, sum(found[1:], found[0]) if found else jnp.zeros_like(y)

    split.defjvp(rule, symbolic_zeros=True)
    return split
