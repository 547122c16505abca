"""Every technique, objective, loss and metric by name: the rows that the laws run over.

A new public name gets a row here; `test_laws.py` then holds for it without another line, and
`test_docs.py` fails for a public function without a row. Models: `table_models.py`, layers:
`table_layers.py`.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit import losses, metrics, models


class Plain(nn.Module):
    """Smooth and without state: what finite differences and vmap = loop are tested on."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(6)(x)))


class Stateful(nn.Module):
    """Batch statistics in the carry, dropout from the key."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(6, use_bias=False)(x)  # a bias here has gradient 0, which Adam makes noise
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


def batch(i: int, b: int = 16, mask: bool = False) -> dict:
    """Batch number i: x [b 5], y [b] in 0..2; with a mask, five eighths of it count."""
    rng = np.random.default_rng(i)
    x = rng.normal(size=(b, 5)).astype(np.float32)
    y = (x @ np.random.default_rng(99).normal(size=(5, 3))).argmax(-1).astype(np.int32)
    found = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    if mask:
        found["mask"] = jnp.asarray((np.arange(b) % 8 < 5).astype(np.float32))
    return found


def stacked_batches(i: int) -> dict:
    """Three batches with a leading axis of steps, for `repeat`."""
    return jax.tree.map(lambda *x: jnp.stack(x), *[batch(3 * i + j) for j in range(3)])


PLAIN = nk.supervised(Plain(), losses.cross_entropy, accuracy=metrics.accuracy)
STATEFUL = nk.supervised(Stateful(), losses.cross_entropy, accuracy=metrics.accuracy)


def squares(params):
    return optax.tree.norm(params, squared=True)


def hand_written() -> nk.Objective:
    def start(key, batch):
        return {"w": 0.1 * jax.random.normal(key, (5, 3))}

    def loss(params, batch, key):
        return losses.cross_entropy(batch["x"] @ params["w"], batch["y"])

    return nk.objective(start, loss)


def given() -> dict:
    return PLAIN.init(jax.random.key(7), batch(0))[0]


def from_nnx() -> nk.Objective:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.norm = nnx.Linear(5, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
            self.drop, self.last = nnx.Dropout(0.2), nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x, rngs=None):
            return self.last(self.drop(nnx.relu(self.norm(self.first(x))), rngs=rngs))

    return nk.supervised(nk.interop.nnx.pair(Net), losses.cross_entropy)


def reading(task: nk.Objective) -> nk.Objective:
    """A task on tokens, made from the numbers of a batch: five per row, 0 to 7."""

    def tokens(batch):
        ids = jnp.clip(jnp.round(2 * batch["x"]) + 4, 0, 7).astype(jnp.int32)
        found = {"tokens": ids, "labels": (ids + 1) % 8, "source": ids, "target": (ids + 1) % 8}
        return found | ({"mask": batch["mask"]} if "mask" in batch else {})

    return nk.Objective(
        lambda key, batch: task.init(key, tokens(batch)),
        lambda params, carry, batch, key: task.loss(params, carry, tokens(batch), key),
    )


LM = {"vocabulary": 9, "width": 8, "depth": 1, "heads": 2}

# --- objectives: name -> how to make one ---
OBJECTIVES = {
    "supervised": lambda: PLAIN,
    "supervised_stateful": lambda: STATEFUL,
    "objective": hand_written,
    "half": lambda: nk.half(PLAIN),
    "penalised": lambda: nk.penalised(STATEFUL, squares, 1e-3),
    "frozen": lambda: nk.frozen(STATEFUL, lambda path: path.startswith("Dense_1")),
    "adapt": lambda: nk.adapt(PLAIN, given()),
    "nnx": from_nnx,
    "causal_lm": lambda: reading(nk.causal_lm(models.GPT(**LM, length=5, dropout=0.1))),
    "masked_lm": lambda: reading(nk.masked_lm(models.BERT(**LM, length=5), mask_id=8, share=0.4)),
    "seq2seq": lambda: reading(nk.seq2seq(models.EncDec(**LM, head_dim=4, hidden=8))),
}
WEIGHS = {"causal_lm": 5, "masked_lm": 2, "seq2seq": 5}  # an example of these: tokens that count
OF_DEVICES = {"averaged": nk.averaged}  # needs a named axis: tests/parallel/test_averaged.py
OF_TOKENS = {"mask_tokens": nk.mask_tokens}  # under masked_lm, and tests/train/test_language.py

# --- gradients ---
GRADIENTS = {
    "gradient": lambda: nk.gradient(STATEFUL),
    "accumulate": lambda: nk.accumulate(nk.gradient(STATEFUL), 4),
    "clipped": lambda: nk.clipped(nk.gradient(STATEFUL), 0.1),
    "sam": lambda: nk.sam(nk.gradient(STATEFUL), 0.05),
    "m-sam": lambda: nk.accumulate(nk.sam(nk.gradient(STATEFUL)), 2),
    "per_example": lambda: nk.per_example(PLAIN, clip=0.5, noise=0.1, microbatch=4),
}


def plain_step(objective=STATEFUL) -> nk.Step:
    return nk.step(nk.gradient(objective), optax.adamw(1e-2))


def recipe(h) -> nk.Step:
    task = nk.penalised(STATEFUL, squares, h["penalty"])
    tx = optax.adamw(h["learning_rate"], weight_decay=h["decay"])
    return nk.seeded(nk.ema(nk.step(nk.gradient(task), tx), 0.9), h["seed"])


def grid() -> dict:
    return nk.product(learning_rate=[1e-3, 1e-2], decay=[1e-2], seed=[0, 1], penalty=[0.0, 1e-3])


# --- steps: every objective and gradient through `step`, then the techniques on steps ---
STEPS = {
    **{
        f"step({k})": functools.partial(lambda f: plain_step(f()), f) for k, f in OBJECTIVES.items()
    },
    **{
        f"step({k})": functools.partial(lambda f: nk.step(f(), optax.adamw(1e-2)), f)
        for k, f in GRADIENTS.items()
    },
    "ema": lambda: nk.ema(plain_step(), 0.9),
    "ema(ema)": lambda: nk.ema(nk.ema(plain_step(), 0.9), 0.5),
    "skip_nonfinite": lambda: nk.skip_nonfinite(nk.ema(plain_step(), 0.9)),
    "rollback": lambda: nk.rollback(nk.ema(plain_step(), 0.9), every=2),
    "replayed": lambda: nk.replayed(nk.ema(plain_step(), 0.9), every=2),
    "repeat": lambda: nk.repeat(nk.ema(plain_step(), 0.9)),
    "seeded": lambda: nk.seeded(plain_step(), 3),
    "ensemble": lambda: nk.ensemble(plain_step(), 3),
    "ensemble_unrolled": lambda: nk.ensemble(plain_step(), 3, each=nk.unrolled),
    "ensemble_in_turn": lambda: nk.ensemble(plain_step(), 3, each=nk.in_turn),
    "sweep": lambda: nk.sweep(recipe, grid()),
    "sweep_unrolled": lambda: nk.sweep(recipe, grid(), each=nk.unrolled),
    "sweep_spread": lambda: nk.sweep(recipe, grid(), each=nk.spread(nk.mesh(run=4))),
    "sweep_in_chunks": lambda: nk.sweep(recipe, grid(), each=nk.chunks(3)),
    "halving": lambda: nk.halving(nk.sweep(recipe, grid()), every=2),
    "population": lambda: nk.population(
        nk.sweep(recipe, grid()), every=2, share=0.25, perturb={"learning_rate": (0.8, 1.2)}
    ),
    "skip(sweep)": lambda: nk.skip_nonfinite(nk.sweep(recipe, grid())),
    "ensemble(sweep)": lambda: nk.ensemble(nk.sweep(recipe, grid()), 2),
    "shard": lambda: nk.shard(nk.ema(plain_step(), 0.9), nk.mesh(data=8), batch=P("data")),
    "shard_fsdp": lambda: nk.shard(
        plain_step(), nk.mesh(data=2), batch=P("data"), state=small_fsdp
    ),
    "shard_run": lambda: nk.shard(
        nk.sweep(recipe, grid()), nk.mesh(run=8), state=nk.rules.leading("run")
    ),
}


# of members, by tests/train/test_members.py: nk.best, nk.member, nk.chosen, nk.chunked, nk.rounds


def small_fsdp(path, leaf, mesh):
    """As rules.fsdp, for leaves of any size: those of the tests are below its threshold."""
    fits = [i for i, n in enumerate(leaf.shape) if n and n % mesh.shape["data"] == 0]
    return P(*[None] * fits[0], "data") if fits else P()


def batches_for(name: str):
    """i -> batch number i, of the form that the step of this row takes."""
    return stacked_batches if name == "repeat" else batch


# --- off switches: (the technique switched off, what it must equal) ----------------------------
INF = float("inf")
OFF = {
    "accumulate(1)": (lambda: nk.accumulate(nk.gradient(STATEFUL), 1), None),
    "accumulate(4)": (lambda: nk.accumulate(nk.gradient(PLAIN), 4), PLAIN),
    "clipped(inf)": (lambda: nk.clipped(nk.gradient(STATEFUL), INF), None),
    "sam(0)": (lambda: nk.sam(nk.gradient(STATEFUL), 0.0), None),
    "per_example(inf)": (lambda: nk.per_example(PLAIN, clip=INF), PLAIN),
    "half(float32)": (lambda: nk.gradient(nk.half(STATEFUL, jnp.float32)), None),
    "penalised(0)": (lambda: nk.gradient(nk.penalised(STATEFUL, squares, 0.0)), None),
}

# --- losses and metrics: (function, make outputs, make targets, is it smooth) -------------------
rng = np.random.default_rng(5)
LOGITS = jnp.asarray(rng.normal(size=(8, 4)).astype(np.float32))
OTHER = jnp.asarray(rng.normal(size=(8, 4)).astype(np.float32))
LABELS = jnp.asarray(rng.integers(0, 4, 8).astype(np.int32))
SOFT = jax.nn.softmax(OTHER)
SCORES = LOGITS[:, 0]
BITS = jnp.asarray([0, 1, 1, 0, 1, 0, 1, 1], jnp.int32)
TEXTS = jnp.asarray(rng.normal(size=(8, 5, 4)).astype(np.float32))  # [b t v]
TOKENS = jnp.asarray(rng.integers(0, 4, (8, 5)).astype(np.int32))
MAPS = jnp.asarray(rng.normal(size=(8, 2, 3, 4)).astype(np.float32))  # [b h w c]
REGIONS = jnp.asarray(rng.integers(0, 4, (8, 2, 3)).astype(np.int32))
PAIRS = jnp.concatenate([OTHER, BITS[:, None].astype(jnp.float32)], axis=1)  # [b 4 + 1]
CENTRES = OTHER[:4]  # [d c]
FOLDS = BITS + 2 * jnp.asarray([0, 0, 1, 1, 0, 1, 0, 1], jnp.int32)  # same, and which fold

LOSSES = {
    "cross_entropy": (losses.cross_entropy, LOGITS, LABELS),
    "cross_entropy_soft": (losses.cross_entropy, LOGITS, SOFT),
    "cross_entropy_smoothed": (
        functools.partial(losses.cross_entropy, smoothing=0.1),
        LOGITS,
        LABELS,
    ),
    "binary": (losses.binary, SCORES, BITS),
    "focal": (losses.focal, LOGITS, LABELS),
    "hinge": (losses.hinge, SCORES, BITS),
    "multiclass_hinge": (losses.multiclass_hinge, LOGITS, LABELS),
    "kl": (losses.kl, LOGITS, OTHER),
    "mse": (losses.mse, LOGITS, OTHER),
    "mae": (losses.mae, LOGITS, OTHER),
    "huber": (losses.huber, LOGITS, OTHER),
    # sequences, embeddings, regions
    "sequence_cross_entropy": (
        lambda z, y: losses.sequence_cross_entropy(z, y, z_loss=1e-4).total,
        TEXTS,
        TOKENS,
    ),
    "z_loss": (lambda z, _: losses.z_loss(z), LOGITS, LABELS),
    "ctc": (jax.jit(losses.ctc), TEXTS, 1 + TOKENS[:, :2] % 3),
    "contrastive": (lambda z, t: losses.contrastive(z, t[:, :4], t[:, 4]), LOGITS, PAIRS),
    "triplet": (lambda z, t: losses.triplet(z, t, -t), LOGITS, OTHER),
    "cosines": (lambda z, _: losses.cosines(z, CENTRES).max(-1), LOGITS, LABELS),
    "normalised_softmax": (
        lambda z, y: losses.normalised_softmax(z, CENTRES, y),
        LOGITS,
        LABELS,
    ),
    "cosface": (lambda z, y: losses.cosface(z, CENTRES, y), LOGITS, LABELS),
    "arcface": (lambda z, y: losses.arcface(z, CENTRES, y), LOGITS, LABELS),
    "dice": (jax.jit(losses.dice), MAPS, REGIONS),
    "dice_of_two": (jax.jit(losses.dice), MAPS[..., 0], REGIONS % 2),
    "soft_iou": (jax.jit(losses.soft_iou), MAPS, REGIONS),
    "lovasz_hinge": (jax.jit(losses.lovasz_hinge), MAPS[..., 0], REGIONS % 2),
    "lovasz_softmax": (jax.jit(losses.lovasz_softmax), MAPS, REGIONS),
    # forecasts
    "quantile": (functools.partial(losses.quantile, levels=(0.1, 0.5, 0.6, 0.9)), LOGITS, SCORES),
    "crps_quantiles": (
        functools.partial(losses.crps_quantiles, levels=(0.1, 0.5, 0.6, 0.9)),
        LOGITS,
        SCORES,
    ),
    "crps_samples": (losses.crps_samples, LOGITS, OTHER[:, 0]),
    "crps_gaussian": (
        lambda z, y: losses.crps_gaussian(jnp.stack([z[:, 0], 1 + jnp.abs(z[:, 1])], -1), y),
        LOGITS,
        OTHER[:, 0],
    ),
}

# --- losses whose examples are each other's negatives: laws in test_losses_contrast.py ---
OF_THE_BATCH = {
    "info_nce": (losses.info_nce, LOGITS, OTHER),
    "info_nce_symmetric": (functools.partial(losses.info_nce, symmetric=True), LOGITS, OTHER),
    "semi_hard_triplet": (
        lambda z, y: losses.semi_hard_triplet(z, y, margin=3.0).total,
        LOGITS,
        LABELS,
    ),
}

PER_EXAMPLE = {
    "accuracy": (metrics.accuracy, LOGITS, LABELS),
    "top_k": (functools.partial(metrics.top_k, k=2), LOGITS, LABELS),
    "nll": (metrics.nll, LOGITS, LABELS),
    "brier": (metrics.brier, LOGITS, LABELS),
    "confusion": (metrics.confusion, LOGITS, LABELS),
    "calibration": (metrics.calibration, LOGITS, LABELS),
    "pixel_confusion": (lambda z, y: metrics.pixel_confusion(z, y).total, MAPS, REGIONS),
    "mase": (functools.partial(metrics.mase, scale=2.0), LOGITS, OTHER),
    "smape": (metrics.smape, LOGITS, OTHER),
    "coverage": (lambda z, y: metrics.coverage(jnp.sort(z[:, :2]), y), LOGITS, OTHER[:, 0]),
}

OF_THE_WHOLE = {
    "confusion_matrix": (metrics.confusion_matrix, LOGITS, LABELS),
    "roc_auc": (metrics.roc_auc, SCORES, BITS),
    "average_precision": (metrics.average_precision, SCORES, BITS),
    "r2": (metrics.r2, SCORES, OTHER[:, 0]),
    "tar_at_far": (functools.partial(metrics.tar_at_far, far=0.5), SCORES, BITS),
    "equal_error_rate": (jax.jit(metrics.equal_error_rate), SCORES, BITS),
    "verification_roc": (lambda s, y, mask=None: area(s, y, mask), SCORES, BITS),
    "verification_accuracy": (
        lambda s, y, mask=None: metrics.verification_accuracy(s, y % 2, y // 2, mask=mask),
        SCORES,
        FOLDS,
    ),
}


def area(scores, same, mask):
    """Under the verification ROC: the points themselves have the shape of the input."""
    roc = metrics.verification_roc(scores, same, mask=mask)
    return (jnp.diff(roc.far) * (roc.tar[1:] + roc.tar[:-1]) / 2).sum()


FROM_TABLES = {"precision", "recall", "f1", "ece", "iou", "dice", "mean_iou"}  # of a table
FROM_MEANS = {"perplexity", "bits_per_token", "bits_per_byte"}  # of an accumulated mean of nats
FROM_TEXTS = {"bleu"}
OF_A_SERIES = {"naive_error"}  # of the training series: tests/metrics/test_metrics_forecast.py
