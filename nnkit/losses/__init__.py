"""Losses: functions of (outputs, targets) to one value per example [b], never reduced."""

from nnkit.losses.classify import binary, cross_entropy, focal, hinge, kl, multiclass_hinge
from nnkit.losses.regress import huber, mae, mse

__all__ = [
    "binary",
    "cross_entropy",
    "focal",
    "hinge",
    "huber",
    "kl",
    "mae",
    "mse",
    "multiclass_hinge",
]
