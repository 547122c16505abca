"""Losses: functions of (outputs, targets) to one value per example [b], never reduced."""

from nnkit.losses.angular import arcface, cosface, cosines, normalised_softmax
from nnkit.losses.classify import binary, cross_entropy, focal, hinge, kl, multiclass_hinge
from nnkit.losses.contrast import contrastive, info_nce, semi_hard_triplet, triplet
from nnkit.losses.forecast import crps_gaussian, crps_quantiles, crps_samples, quantile
from nnkit.losses.regress import huber, mae, mse
from nnkit.losses.segment import dice, lovasz_hinge, lovasz_softmax, soft_iou
from nnkit.losses.sequence import ctc, sequence_cross_entropy, z_loss

__all__ = [
    "arcface",
    "binary",
    "contrastive",
    "cosface",
    "cosines",
    "cross_entropy",
    "crps_gaussian",
    "crps_quantiles",
    "crps_samples",
    "ctc",
    "dice",
    "focal",
    "hinge",
    "huber",
    "info_nce",
    "kl",
    "lovasz_hinge",
    "lovasz_softmax",
    "mae",
    "mse",
    "multiclass_hinge",
    "normalised_softmax",
    "quantile",
    "semi_hard_triplet",
    "sequence_cross_entropy",
    "soft_iou",
    "triplet",
    "z_loss",
]
