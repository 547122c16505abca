"""How many floating-point operations one equation of a jaxpr takes."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

__all__ = ["of_equation"]

# one operation per element of the output
EACH = frozenset(
    "add sub mul div neg abs sign max min floor ceil round exp exp2 log log1p expm1 tanh sin cos "
    "tan asin acos atan atan2 sinh cosh asinh acosh atanh sqrt rsqrt cbrt logistic erf erfc "
    "erf_inv lgamma digamma pow integer_pow square rem nextafter add_any clamp".split()
)
# one operation per element of the input
REDUCES = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod cumsum cumprod cummax cummin cumlogsumexp "
    "reduce_precision argmax argmin reduce psum pmean psum_scatter reduce_scatter".split()
) - {"reduce_precision", "argmax", "argmin"}
# the window slides over the input: one operation per element of it and place of the output
SLIDES = frozenset(
    "reduce_window reduce_window_sum reduce_window_max reduce_window_min select_and_scatter_add "
    "select_and_gather_add".split()
)
SCATTERS = frozenset("scatter-add scatter_add scatter-mul scatter_mul scatter-max".split())
# what moves, compares or makes numbers, and is not counted
FREE = frozenset(
    "broadcast_in_dim reshape transpose squeeze expand_dims convert_element_type slice "
    "dynamic_slice dynamic_update_slice concatenate pad rev iota gather scatter select_n copy "
    "copy_p stop_gradient eq ne lt le gt ge is_finite argmax argmin sort top_k approx_top_k and or "
    "not xor shift_left shift_right_logical shift_right_arithmetic population_count clz "
    "bitcast_convert_type random_bits random_seed random_wrap random_unwrap random_fold_in "
    "random_split random_gamma threefry2x32 reduce_and reduce_or reduce_xor reduce_precision "
    "real imag complex conj device_put sharding_constraint optimization_barrier name all_gather "
    "all_to_all ppermute axis_index pbroadcast pvary pcast all_gather_invariant "
    "split tie_in symbolic_zeros zeros_like empty create_token dce_sink layout_constraint reshard "
    "mesh_cast unreduced full psum_invariant".split()
)


def of_equation(eqn) -> tuple[float, str]:
    """(operations, kind) of one equation without a program inside.

    The kind is "products" (matrix products and convolutions), "others" or "unknown".

    >>> of_equation(jax.make_jaxpr(jnp.dot)(np.ones((2, 3)), np.ones((3, 5))).eqns[0])
    (60.0, 'products')
    """
    name = eqn.primitive.name
    if name in ("dot_general", "ragged_dot", "ragged_dot_general", "scaled_matmul"):
        return _dot(eqn), "products"
    if name == "conv_general_dilated":
        return _convolution(eqn), "products"
    outs = [v.aval for v in eqn.outvars]
    real = any(_floats(a) for a in outs)
    if not real or name in FREE:
        return 0.0, "others"
    if name in EACH:
        return float(_size(outs[0])), "others"
    if name in REDUCES:
        return float(sum(_size(v.aval) for v in eqn.invars if _floats(v.aval))), "others"
    if name in SLIDES:
        window = eqn.params.get("window_dimensions") or ()
        whole = max(_size(outs[0]), 0) if name.startswith("reduce") else _size(eqn.invars[0].aval)
        return float(whole * math.prod(window)), "others"
    if name in SCATTERS:
        return float(_size(eqn.invars[2].aval)), "others"
    if name == "fft":
        n = math.prod(eqn.params["fft_lengths"])
        return 5.0 * _size(eqn.invars[0].aval) * math.log2(max(n, 2)), "others"
    if name in ("cholesky", "triangular_solve", "lu", "householder_product", "geqrf"):
        return _factored(name, eqn), "others"
    return 0.0, "unknown"


def _size(aval) -> int:
    return math.prod(getattr(aval, "shape", ()))


def _floats(aval) -> bool:
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _dot(eqn) -> float:
    """2 per multiply and add: twice the size of the output times what is summed over."""
    left, right = eqn.invars[0].aval, eqn.invars[1].aval
    out = _size(eqn.outvars[0].aval)
    dims = eqn.params.get("dimension_numbers")
    if eqn.primitive.name == "dot_general":
        summed = math.prod(left.shape[i] for i in dims[0][0])
        return 2.0 * out * summed
    if eqn.primitive.name.startswith("ragged_dot"):
        ragged = eqn.params.get("ragged_dot_dimension_numbers")
        contracting = ((left.ndim - 1,), ())
        if ragged is not None:
            contracting = ragged.dot_dimension_numbers[0]
        summed = math.prod(left.shape[i] for i in contracting[0])
        rows = list(getattr(ragged, "lhs_ragged_dimensions", ()))
        if rows and rows[0] in contracting[0]:  # [g k n]: each row of the sum belongs to one group
            groups = max(eqn.invars[2].aval.shape[-1], 1)
            return 2.0 * out * summed / groups
        return 2.0 * out * summed
    return 2.0 * out * left.shape[-1] if right.ndim else 0.0


def _convolution(eqn) -> float:
    """Products of inputs with weights that both exist: not with padding, not between dilations."""
    left, right = eqn.invars[0].aval, eqn.invars[1].aval
    out = eqn.outvars[0].aval
    p = eqn.params
    dims = p["dimension_numbers"]
    pairs = 1
    for i in range(len(dims.lhs_spec) - 2):
        pairs *= _meetings(
            left.shape[dims.lhs_spec[i + 2]],
            right.shape[dims.rhs_spec[i + 2]],
            out.shape[dims.out_spec[i + 2]],
            p["window_strides"][i],
            p["padding"][i][0],
            p["lhs_dilation"][i],
            p["rhs_dilation"][i],
        )
    b, features = out.shape[dims.out_spec[0]], out.shape[dims.out_spec[1]]
    return 2.0 * b * features * right.shape[dims.rhs_spec[1]] * pairs


def _meetings(size, kernel, out, stride, pad, spread, holes) -> int:
    """(place of the output, weight) pairs along one axis that meet a real input."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * holes - pad
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


def _factored(name, eqn) -> float:
    """The leading term of the textbook count (Golub & Van Loan 2013)."""
    shape = eqn.invars[0].aval.shape
    n, many = shape[-1], math.prod(shape[:-2])
    if name == "cholesky":
        return many * n**3 / 3
    if name == "triangular_solve":
        return float(n * _size(eqn.invars[1].aval))
    m = shape[-2]
    if name == "lu":
        return many * 2 * max(m, n) * min(m, n) ** 2 / 2 - many * min(m, n) ** 3 / 3
    return many * 2.0 * m * n * n
