"""Every model by name: the rows that `test_model_laws.py` runs over. Tiny, so that laws are cheap.

A new model gets a row here; `test_docs.py` fails for one without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from nnkit import layers, models


class Row(NamedTuple):
    """A model and how to feed it.

    module: a small instance, dropout included where it has any.
    inputs: b -> tuple of numpy arrays [b ...]; the first rows do not depend on b.
    apart: False for a model whose rows of a batch see each other by design.
    many: False for a variant of a row above: its runs side by side add only minutes of compilation.
    grouped: True if it has a convolution: its runs are mapped in turn rather than by vmap.
    """

    module: nn.Module
    inputs: Callable[[int], tuple]
    apart: bool = True
    grouped: bool = False
    many: bool = True


def real(*shape, seed=0):
    """b -> (x [b *shape] float32,)."""

    def inputs(b):
        one = lambda i: np.random.default_rng([seed, i]).normal(size=shape)
        return (np.stack([one(i) for i in range(b)]).astype(np.float32),)

    return inputs


def tokens(vocabulary, *lengths, mask=None, seed=0):
    """b -> one id array [b t] int32 per length; with `mask`, a mask [b t] after those listed in it.

    tokens(11, 6) -> (ids,); tokens(11, 6, mask=(0,)) -> (ids, mask of ids, shorter for each row).
    """

    def inputs(b):
        draw = lambda i, t: np.random.default_rng([seed, i, t]).integers(0, vocabulary, t)
        ids = [np.stack([draw(i, t) for i in range(b)]).astype(np.int32) for t in lengths]
        real = [
            np.stack([np.arange(lengths[k]) < lengths[k] - i % lengths[k] for i in range(b)])
            for k in mask or ()
        ]
        return (*ids, *real)

    return inputs


MODELS: dict[str, Row] = {}

# --- the plain ones ---
MODELS["Linear"] = Row(models.Linear(10), real(8, 8, 1))
MODELS["MLP"] = Row(models.MLP((16, 12, 10), dropout=0.2, dropout_in=0.1), real(8, 8, 1))
MODELS["ConvNet"] = Row(models.ConvNet((4, 6), hidden=8), real(8, 8, 1), grouped=True)
MODELS["ConvNet_norm"] = Row(
    models.ConvNet((4, 6), hidden=8, norm=True), real(8, 8, 1), grouped=True, many=False
)

# --- convolutional: resnet, convnext, unet ---
MODELS["ResNet"] = Row(
    models.ResNet((1, 1), (4, 6), 5, small=True, project=False), real(8, 8, 3), grouped=True
)
MODELS["ResNet_bottleneck"] = Row(
    models.ResNet((1,), (4,), 5, bottleneck=True), real(8, 8, 3), grouped=True, many=False
)
MODELS["WideResNet"] = Row(
    models.WideResNet(10, 1, 5, dropout=0.2, channels=(3, 4, 4)), real(8, 8, 1), grouped=True
)
MODELS["ConvNeXt"] = Row(models.ConvNeXt((1, 1), (4, 6), 5, drop=0.2), real(8, 8, 3), grouped=True)
MODELS["UNet"] = Row(models.UNet((4, 6), dropout=0.2), real(8, 8, 1), grouped=True)
MODELS["UNet_norm"] = Row(
    models.UNet((4, 6), norm=True, resize=True), real(8, 8, 1), grouped=True, many=False
)

# models.border_weights, models.tiled: tests/models/test_models_unet.py

# --- recurrent: classifiers, language model, TCN ---
MODELS["RecurrentClassifier"] = Row(
    models.RecurrentClassifier(3, width=5, depth=2, dropout=0.2), real(6, 4)
)
MODELS["RecurrentClassifier_both"] = Row(
    models.RecurrentClassifier(
        3, layer=layers.GRU, width=5, vocabulary=11, bidirectional=True, pool="mean"
    ),
    tokens(11, 6, mask=(0,)),
    many=False,
)
MODELS["RecurrentLM"] = Row(
    models.RecurrentLM(11, width=5, dropout=0.2, locked=True), tokens(11, 6, mask=(0,))
)
MODELS["TCN"] = Row(models.TCN(3, channels=(5, 6), kernel=3, dropout=0.2), real(6, 4), grouped=True)
# models.receptive_field: tests/models/test_models_recurrent.py

# --- transformers: gpt, bert, vit, encdec ---
MODERN = {
    "norm": layers.RMSNorm,
    "learned": False,
    "rope": 100.0,
    "kv_heads": 2,
    "activation": layers.silu,
    "gated": True,
    "tied": False,
    "use_bias": False,
}
GPT_SIZE = {"vocabulary": 11, "length": 8, "width": 16, "depth": 2, "heads": 4, "hidden": 24}
MODELS["GPT"] = Row(models.GPT(**GPT_SIZE, dropout=0.1), tokens(11, 6, mask=(0,)))
MODELS["GPT_modern"] = Row(
    models.GPT(**GPT_SIZE, **MODERN, qk_norm=True, window=(3, None), softcap=5.0),
    tokens(11, 6),
    many=False,
)
MODELS["GPT_experts"] = Row(
    models.GPT(**GPT_SIZE, **MODERN, experts=4, top_k=2, with_aux=True),
    tokens(11, 6, mask=(0,)),
    apart=False,
    many=False,
)
BERT_SIZE = {"vocabulary": 11, "length": 8, "width": 16, "depth": 2, "heads": 2, "hidden": 24}
MODELS["BERT"] = Row(models.BERT(**BERT_SIZE), tokens(11, 6, mask=(0,)))
MODELS["BERT_classes"] = Row(
    models.BERT(**BERT_SIZE, classes=3), tokens(11, 6, mask=(0,)), many=False
)
VIT_SIZE = {"classes": 3, "width": 16, "depth": 2, "heads": 2, "patch": 4, "image": (8, 12)}
MODELS["ViT"] = Row(models.ViT(**VIT_SIZE, dropout=0.1), real(8, 12, 3))
MODELS["ViT_mean"] = Row(
    models.ViT(**VIT_SIZE, cls=False, learned=False, drop_path=0.2), real(8, 12, 3), many=False
)
T5_SIZE = {"vocabulary": 11, "width": 16, "depth": 2, "heads": 2, "head_dim": 8, "hidden": 24}
MODELS["EncDec"] = Row(models.EncDec(**T5_SIZE, buckets=8), tokens(11, 6, 5, mask=(0,)))
# models.shift_right: tests/models/test_models_encdec.py

# --- time series ---
MODELS["Repeat"] = Row(models.Repeat(5), real(24, 3))
MODELS["SeasonalNaive"] = Row(models.SeasonalNaive(5, period=7), real(24, 3))
MODELS["NLinear"] = Row(models.NLinear(5, length=24), real(24, 3))
MODELS["NLinear_individual"] = Row(
    models.NLinear(5, length=24, individual=True), real(24, 3), many=False
)
MODELS["DLinear"] = Row(models.DLinear(5, length=24, window=7), real(24, 3))
MODELS["RevIN"] = Row(models.RevIN(models.DLinear(5, length=24), affine=True), real(24, 3))
PATCHES = {"length": 24, "patch": 6, "stride": 3, "width": 8, "heads": 2, "hidden": 12, "layers": 2}
MODELS["PatchTST"] = Row(models.PatchTST(5, **PATCHES, affine=True), real(24, 3))
MODELS["PatchTST_layer_norm"] = Row(
    models.PatchTST(5, **PATCHES, batch_norm=False, pre_norm=True, attention_dropout=0.1),
    real(24, 3),
    many=False,
)
# models.ridge: tests/models/test_models_timeseries.py

# --- text: TextCNN ---
MODELS["TextCNN"] = Row(
    models.TextCNN(11, classes=3, width=8, windows=(1, 2, 3), maps=4), tokens(11, 6, mask=(0,))
)
