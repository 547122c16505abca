"""What optax leaves to the user: rates by step, parameters by path, and Muon.

`warmup_cosine wsd inverse_sqrt linear` are rates (functions of the step, for any optimizer of
optax); `decay_mask by_path layerwise` choose leaves by name; `muon` moves hidden matrices. AdamW,
Lion and the others are optax's own.
"""

from nnkit.optim.masks import by_path, decay_mask, layer_of, layerwise
from nnkit.optim.muon import muon, muon_labels, orthogonalise
from nnkit.optim.schedules import inverse_sqrt, linear, warmup_cosine, wsd

__all__ = [
    "by_path",
    "decay_mask",
    "inverse_sqrt",
    "layer_of",
    "layerwise",
    "linear",
    "muon",
    "muon_labels",
    "orthogonalise",
    "warmup_cosine",
    "wsd",
]
