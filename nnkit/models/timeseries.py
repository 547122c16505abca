"""Forecasts of a time series [b t f] -> [b horizon f]: what every network has to beat.

Repeat, SeasonalNaive, the closed-form `ridge`, NLinear and DLinear.
Zeng et al., arXiv:2205.13504. On ETTh1 a 336 x 96 ridge equals the best Transformer (scaled MSE
.370 at horizon 96): it is the floor beside every model here, and is fitted in a second.

    DLinear(96)      look-back 336, on ETTh1: 64,704 weights, published MSE / MAE .375 / .399
    NLinear(96)      the same: 32,352 weights, .374 / .394
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from nnkit.core.checks import positive, sizes
from nnkit.layers.dense import linear
from nnkit.layers.inputs import wide

__all__ = ["DLinear", "NLinear", "Repeat", "SeasonalNaive", "ridge"]


class Repeat(nn.Module):
    """The last value, repeated: the forecast that needs no training.

    y_s = x_t for s = 1..horizon, per feature.

    Args:
      horizon: steps to forecast.

    Call: x [b t f] -> [b horizon f]; with intermediates=True ([b horizon f], {}).

    Raises:
      TypeError: when first used, if the horizon is no integer.
      ValueError: if it is not >= 1, or x is not [b t f].

    >>> Repeat(2).apply({}, jnp.array([[[1.0], [5.0]]])).tolist()
    [[[5.0], [5.0]]]

    Zeng et al., arXiv:2205.13504, table 2 (Repeat).
    """

    horizon: int

    @nn.compact
    def __call__(self, x, *, intermediates: bool = False):
        sizes("Repeat", horizon=self.horizon)
        series("Repeat", x)
        y = jnp.repeat(x[:, -1:], self.horizon, axis=1)
        return (y, {}) if intermediates else y


class SeasonalNaive(nn.Module):
    """The last period, repeated: for hours of a day period=24. A period of 1 is `Repeat`.

    y_s = x_(t - period + 1 + (s - 1) mod period), per feature.

    Args:
      horizon: steps to forecast.
      period: steps of one season, at most those of x.

    Call: x [b t f] -> [b horizon f]; with intermediates=True ([b horizon f], {}).

    Raises:
      TypeError: when first used, if a field is no integer.
      ValueError: if one is not >= 1, x is not [b t f], or shorter than the period.

    >>> SeasonalNaive(3, period=2).apply({}, jnp.array([[[9.0], [1.0], [2.0]]]))[0, :, 0].tolist()
    [1.0, 2.0, 1.0]

    Hyndman and Athanasopoulos, Forecasting: principles and practice, 2021, section 5.2.
    """

    horizon: int
    period: int

    @nn.compact
    def __call__(self, x, *, intermediates: bool = False):
        sizes("SeasonalNaive", horizon=self.horizon, period=self.period)
        series("SeasonalNaive", x)
        if x.shape[1] < self.period:
            raise ValueError(
                f"x has {x.shape[1]} steps, expected at least period={self.period} "
                "(SeasonalNaive); give a longer look-back"
            )
        place = np.arange(self.horizon) % self.period
        y = x[:, x.shape[1] - self.period :][:, place]
        return (y, {}) if intermediates else y


class NLinear(nn.Module):
    """One linear map over time of what lies above the last value, shared by all features.

    y = W^T (x - x_t) + b + x_t, with W [length horizon].

    Args:
      horizon: steps to forecast.
      length: steps of x.
      individual: a map of its own for each feature.

    Call: x [b t f] -> [b horizon f]; with intermediates=True also {"centred": [b t f]}.

    Raises:
      TypeError: when first used, if a size is no integer.
      ValueError: if one is not >= 1, or x is not [b length f].

    >>> y, _ = NLinear(2, length=4).init_with_output(jax.random.key(0), jnp.full((1, 4, 3), 7.0))
    >>> y[0, :, 0].tolist()
    [7.0, 7.0]

    Zeng et al., arXiv:2205.13504, section 4 (NLinear). A ridge of the same form is the floor.
    """

    horizon: int
    length: int = 336
    individual: bool = False

    @nn.compact
    def __call__(self, x, *, intermediates: bool = False):
        sizes("NLinear", horizon=self.horizon, length=self.length)
        series("NLinear", x, self.length)
        last = x[:, -1:]  # [b 1 f]
        centred = x - last
        y = OverTime(self.horizon, self.individual, name="head")(centred) + last
        return (y, {"centred": centred}) if intermediates else y


class DLinear(nn.Module):
    """Trend and remainder, each through its linear map over time, added.

    y = U^T trend(x) + V^T (x - trend(x)) + b, with trend the moving average over `window` steps,
    the ends of x repeated (window - 1) / 2 times.

    Args:
      horizon: steps to forecast.
      length: steps of x.
      window: steps of the moving average, odd.
      individual: maps of its own for each feature.

    Call: x [b t f] -> [b horizon f]; with intermediates=True also {"trend": [b t f],
    "seasonal": [b t f]}.

    Raises:
      TypeError: when first used, if a size is no integer.
      ValueError: if one is not >= 1, the window is even, or x is not [b length f].

    >>> model, x = DLinear(2, length=8, window=3), jnp.ones((1, 8, 3))
    >>> y, inside = model.init_with_output(jax.random.key(0), x, intermediates=True)[0]
    >>> y.shape, float(jnp.abs(inside["seasonal"]).max())
    ((1, 2, 3), 0.0)

    Zeng et al., arXiv:2205.13504, section 4 (DLinear). A 336 x 96 ridge is the floor.
    """

    horizon: int
    length: int = 336
    window: int = 25
    individual: bool = False

    @nn.compact
    def __call__(self, x, *, intermediates: bool = False):
        sizes("DLinear", horizon=self.horizon, length=self.length, window=self.window)
        if self.window % 2 == 0:
            raise ValueError(
                f"DLinear: window is {self.window}, expected an odd number of steps, so that the "
                f"average has a middle; use {self.window + 1}"
            )
        series("DLinear", x, self.length)
        trend = moving_average(x, self.window)
        seasonal = x - trend
        y = OverTime(self.horizon, self.individual, name="seasonal")(seasonal)
        y = y + OverTime(self.horizon, self.individual, name="trend")(trend)
        return (y, {"trend": trend, "seasonal": seasonal}) if intermediates else y


def ridge(x, y, penalty):
    """The weights of `NLinear` in closed form: least squares with a penalty, one map for all f.

    W = argmin sum |y - y_t - W^T (x - x_t)|^2 + penalty |W|^2, over all windows and features, with
    x_t the last value of x. In float64 on the host; a second for ETTh1.

    Args:
      x: [n t f] windows, or [n t] of one series.
      y: [n h f] what follows them, or [n h].
      penalty: [] or [k] numbers > 0; the last column of x - x_t is 0, so that none is singular.

    Returns:
      {"head": {"kernel": [t h], "bias": [h]}} float32, the params of `NLinear`; for k penalties
      [k t h] and [k h], to be read by `nk.stacked`. The bias is 0.

    Raises:
      ValueError: if the shapes do not fit, there is no window, or a penalty is not > 0.
      TypeError: if a penalty is no number.

    >>> t = np.arange(40.0)[:, None]  # a line: its windows rise by 1 a step
    >>> windows = np.stack([t[i : i + 6] for i in range(30)])
    >>> params, x = ridge(windows[:, :4], windows[:, 4:], 1e-6), jnp.float32(windows[:1, :4])
    >>> NLinear(2, length=4).apply({"params": params}, x).round(3).ravel()
    Array([4., 5.], dtype=float32)

    Hoerl and Kennard, Ridge regression, 1970, doi:10.1080/00401706.1970.10488634, eq. 2.1; as a
    forecast: Toner and Darlow, arXiv:2403.14587.
    """
    x, y = np.asarray(x), np.asarray(y)
    positive(penalty=penalty)
    x, y = (a[..., None] if a.ndim == 2 else a for a in (x, y))
    if x.ndim != 3 or y.ndim != 3 or (len(x), x.shape[2]) != (len(y), y.shape[2]) or not len(x):
        raise ValueError(
            f"x has shape {x.shape} and y has shape {y.shape}, expected (n t f) and (n h f) with "
            "the same n >= 1 windows of the same f features"
        )
    gram, moment = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], y.shape[1]))
    for i in range(0, len(x), 1024):  # a few windows in float64 at a time
        past, future = (np.asarray(a[i : i + 1024], np.float64) for a in (x, y))
        a = np.moveaxis(past - past[:, -1:], 2, 1).reshape(-1, x.shape[1])  # [n f, t]
        b = np.moveaxis(future - past[:, -1:], 2, 1).reshape(-1, y.shape[1])  # [n f, h]
        gram, moment = gram + a.T @ a, moment + a.T @ b
    values, axes = np.linalg.eigh(gram)
    values = np.maximum(values, 0)  # [t]; rounding can make the smallest negative
    shrink = 1 / (values + np.asarray(penalty, np.float64)[..., None])  # [... t]
    kernel = axes @ (shrink[..., None] * (axes.T @ moment))  # [... t h]
    bias = np.zeros((*kernel.shape[:-2], kernel.shape[-1]), np.float32)
    return {"head": {"kernel": jnp.asarray(kernel.astype(np.float32)), "bias": jnp.asarray(bias)}}


def moving_average(x, window: int):
    """The mean of `window` steps around each, the ends of x [b t f] repeated; [b t f].

    Args:
      x: [b t f] floats.
      window: odd number of steps.

    Returns:
      [b t f].

    >>> moving_average(jnp.array([[[0.0], [3.0], [6.0]]]), 3)[0, :, 0].tolist()
    [1.0, 3.0, 5.0]

    Wu et al., Autoformer, arXiv:2106.13008, eq. 1.
    """
    padded = jnp.pad(wide(x), ((0, 0), (window // 2,) * 2, (0, 0)), mode="edge")
    pieces = [padded[:, i : i + x.shape[1]] for i in range(window)]  # added in one fused loop
    return (sum(pieces[1:], start=pieces[0]) / window).astype(x.dtype)


class OverTime(nn.Module):
    """A linear map over the steps, [b t f] -> [b horizon f]: shared, or one per feature.

    y_sf = sum_t W_ts x_tf + b_s; individual: W_fts and b_fs.

    Args:
      horizon: steps to give.
      individual: a map for each feature.

    Call: x [b t f] -> [b horizon f].

    >>> OverTime(5).init_with_output(jax.random.key(0), jnp.ones((2, 3, 4)))[0].shape
    (2, 5, 4)

    Zeng et al., arXiv:2205.13504, section 4.
    """

    horizon: int
    individual: bool = False

    @nn.compact
    def __call__(self, x):
        t, f = x.shape[1:]
        kernel = (f,) * self.individual + (t, self.horizon)
        bias = (f,) * self.individual + (self.horizon,)
        kernel = self.param("kernel", _uniform(kernel), kernel).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, bias).astype(x.dtype)
        if self.individual:
            y = jnp.einsum("btf,fth->bfh", x, kernel) + bias[None]
        else:
            y = linear(jnp.swapaxes(x, 1, 2), kernel) + bias[None, None]  # [b f h]
        return jnp.swapaxes(y, 1, 2)


def series(model: str, x, length: int | None = None) -> None:
    """x must be [b t f] floats, of `length` steps if that is given.

    Args:
      model: its name, for the message.
      x: [b t f] the windows.
      length: t, or None for any.

    Raises:
      ValueError: naming shape and remedy.
      TypeError: if x is no array of floats.

    >>> series("DLinear", jnp.ones((2, 96, 7)), 336)
    Traceback (most recent call last):
        ...
    ValueError: x has 96 steps (shape (2, 96, 7)), but DLinear has length=336; cut windows of...
    """
    if x.ndim != 3 or 0 in x.shape:
        one = "; a single series needs its axis of features: x[..., None]" if x.ndim == 2 else ""
        raise ValueError(f"x has shape {x.shape}, expected [b t f] for {model}{one}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x is {x.dtype}, expected floats for {model}: x.astype(jnp.float32)")
    if length is not None and x.shape[1] != length:
        raise ValueError(
            f"x has {x.shape[1]} steps (shape {x.shape}), but {model} has length={length}; cut "
            f"windows of that length (data.windows(length={length})), or give length={x.shape[1]}"
        )


def _uniform(shape):
    """Uniform within 1 / sqrt(fan in), torch's start of a linear map; [t h] or [f t h]."""
    return nn.initializers.variance_scaling(
        1 / 3, "fan_in", "uniform", batch_axis=tuple(range(len(shape) - 2))
    )
