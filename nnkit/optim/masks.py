"""Parameters chosen by their path: what decays, which optimizer, how fast each layer learns."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnkit.core.checks import concrete
from nnkit.core.trees import path_name, paths

__all__ = ["by_path", "decay_mask", "layer_of", "layerwise"]

BARE = re.compile(r"embed|position|_token|cls|norm|scale|bias|gamma|peephole", re.I)
INPUT = re.compile(r"embed|position|_token|cls|patch|stem", re.I)
BLOCK = re.compile(r"(?:^|/)(?:block|layer)_(\d+)(?:/|$)", re.I)


def decay_mask(params, exclude: Callable[[str], bool] | None = None):
    """Which parameters weight decay pulls towards 0: matrices, but no embeddings nor gains.

    True for leaves of two axes or more whose path names no embedding, position, class token, norm,
    scale or bias. It is a function of the parameters, and so can be given itself:
    optax.adamw(1e-3, weight_decay=0.1, mask=decay_mask).

    Args:
      params: tree of arrays [...].
      exclude: predicate over the path of a leaf ("block_0/attention/query/kernel"), in place of
        the names above; leaves of fewer than two axes stay out in any case.

    Returns:
      The tree with True and False.

    >>> leaf = jnp.zeros((2, 2))
    >>> decay_mask({"embed": {"embedding": leaf}, "mlp": {"kernel": leaf, "bias": leaf[0]}})
    {'embed': {'embedding': False}, 'mlp': {'bias': False, 'kernel': True}}

    Radford et al. 2018, Improving language understanding by generative pre-training, section 4.1
    (decay on non-bias and gain weights only).
    """
    bare = exclude or (lambda path: bool(BARE.search(path)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.ndim(leaf) >= 2 and not bare(path_name(path)), params
    )


def by_path(transforms: Mapping[str, optax.GradientTransformation]):
    """One optimizer for every group of parameters, chosen by patterns over their paths.

    The first pattern found in a path (`re.search`) decides; "" matches all and belongs last. To
    leave a group alone use `optax.set_to_zero()`.

    Args:
      transforms: {pattern: optimizer}, such as {"^head/": optax.adamw(1e-3), "": optax.sgd(0.1)}.

    Returns:
      An optax optimizer of tree to tree.

    Raises:
      ValueError: if there is no pattern or one is no regular expression; by its `init`, if a
        pattern decides about no leaf or a leaf [...] is matched by none.

    >>> tx = by_path({"head": optax.sgd(1.0), "": optax.set_to_zero()})
    >>> params = {"body": jnp.ones(1), "head": jnp.ones(1)}
    >>> tx.update(params, tx.init(params))[0]
    {'body': Array([0.], dtype=float32), 'head': Array([-1.], dtype=float32)}

    DeepMind 2020, The DeepMind JAX ecosystem (optax.partition).
    """
    if not transforms:
        raise ValueError('by_path({}) has no pattern; {"": optax.adamw(1e-3)} matches every leaf')
    for pattern in transforms:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"by_path: {pattern!r} is no regular expression: {error}") from error

    def first(path):
        return next((p for p in transforms if re.search(p, path)), None)

    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: first(path_name(path)), params)

    groups: dict[Hashable, optax.GradientTransformation] = {**transforms}
    inner = optax.partition(groups, labels)

    def init(params):
        found = {path: first(path) for path, _ in paths(params)}
        alone = [path for path, pattern in found.items() if pattern is None]
        if alone:
            raise ValueError(
                f"by_path: {alone[0]} matches none of {list(transforms)} ({len(alone)} leaves do "
                'not); end with "" for all others'
            )
        idle = [pattern for pattern in transforms if pattern not in found.values()]
        if idle:
            raise ValueError(
                f"by_path: pattern {idle[0]!r} decides about no leaf: none matches it, or earlier "
                f"patterns took them; expected part of one of the paths {list(found)[:8]}: drop it"
            )
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)


def layer_of(path: str, depth: int) -> int:
    """The layer a parameter belongs to: 0 the input, 1 to depth the blocks, depth + 1 the head.

    Read from its path: embeddings, positions, class tokens, patches and stems outside blocks are
    the input; block_3 (or layer_3) is layer 4; everything else, a last norm too, is the head.

    Args:
      path: as `trees.paths` gives it, "encoder/block_3/attention/query/kernel".
      depth: int, the number of blocks.

    Returns:
      An int from 0 to depth + 1.

    Raises:
      ValueError: if the number of the block is not below the depth.

    >>> layer_of("patch_embed/kernel", 12), layer_of("block_3/mlp/up/kernel", 12)
    (0, 4)
    >>> layer_of("norm/scale", 12)
    13

    Bao et al., arXiv:2106.08254, published code (get_num_layer_for_vit).
    """
    block = BLOCK.search(path)
    if block is None:
        return 0 if INPUT.search(path) else depth + 1
    if int(block[1]) >= depth:
        raise ValueError(
            f"layerwise: {path} is in block {block[1]}, but depth={depth}: blocks count from 0"
        )
    return int(block[1]) + 1


def layerwise(
    tx: optax.GradientTransformation,
    decay,
    depth: int,
    *,
    layer: Callable[[str, int], int] = layer_of,
):
    """Layer-wise decay of the learning rate: the nearer to the input, the slower.

    The move of `tx` times decay^(depth + 1 - layer), weight decay included: the rate is the last
    factor of every optax optimizer, so this is that rate. decay = 1 is `tx`.

    Args:
      tx: the optimizer of the top layer, rate included: optax.adamw(1e-3).
      decay: [] above 0 and at most 1; may be traced. 0.8 in ELECTRA, 0.65 to 0.9 in BEiT.
      depth: int, the number of blocks.
      layer: (path, depth) -> int from 0 (slowest) to depth + 1 (full rate).

    Returns:
      An optax optimizer of tree to tree.

    Raises:
      ValueError: if the decay or the depth is out of range; by its `init`, if a block is beyond
        the depth, or no parameter is in a block.

    >>> tx = layerwise(optax.sgd(1.0), 0.5, depth=2)
    >>> params = {name: jnp.ones(1) for name in ("embed", "block_0", "block_1", "head")}
    >>> moves = tx.update(params, tx.init(params))[0]
    >>> {name: float(move[0]) for name, move in moves.items()}
    {'block_0': -0.25, 'block_1': -0.5, 'embed': -0.125, 'head': -1.0}

    Clark et al., arXiv:2003.10555, appendix A; Bao et al., arXiv:2106.08254, appendix.
    """
    known = concrete(decay)
    if known is not None and not 0 < known <= 1:
        raise ValueError(f"layerwise: decay={decay}, expected 0 < decay <= 1; 1 switches it off")
    if depth < 1:
        raise ValueError(
            f"layerwise: depth={depth}, expected the number of blocks, at least 1; give that of "
            "the model"
        )
    inner = optax.with_extra_args_support(tx)

    def init(params):
        found = {path: layer(path, depth) for path, _ in paths(params)}
        if not any(0 < n <= depth for n in found.values()):
            raise ValueError(
                f"layerwise: no parameter is in a block; the paths are {list(found)[:8]}, expected "
                "names such as block_0, or give layer=(path, depth) -> int"
            )
        return inner.init(params)

    def update(updates, state, params=None, **extra):
        moves, state = inner.update(updates, state, params, **extra)

        def slow(path, move):
            power = depth + 1 - layer(path_name(path), depth)
            return move * (jnp.asarray(decay).astype(jnp.float32) ** power).astype(move.dtype)

        return jax.tree_util.tree_map_with_path(slow, moves), state

    return optax.GradientTransformationExtraArgs(init, update)
