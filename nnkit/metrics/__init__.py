"""Metrics: per-example values [b] that are averaged exactly, and functions of the whole set.

`accuracy top_k nll brier confusion calibration` go into `supervised(..., accuracy=accuracy)`;
`precision recall f1 ece` read the averaged table; `confusion_matrix roc_auc average_precision r2`
take all outputs at once.
"""

from nnkit.metrics.calibrate import brier, calibration, ece, nll
from nnkit.metrics.classify import (
    accuracy,
    confusion,
    confusion_matrix,
    f1,
    precision,
    recall,
    top_k,
)
from nnkit.metrics.rank import average_precision, roc_auc
from nnkit.metrics.regress import r2

__all__ = [
    "accuracy",
    "average_precision",
    "brier",
    "calibration",
    "confusion",
    "confusion_matrix",
    "ece",
    "f1",
    "nll",
    "precision",
    "r2",
    "recall",
    "roc_auc",
    "top_k",
]
