"""Metrics: per-example values [b] that are averaged exactly, and functions of the whole set.

`accuracy top_k nll brier confusion calibration` go into `supervised(..., accuracy=accuracy)`;
`precision recall f1 ece` read the averaged table; `confusion_matrix roc_auc average_precision r2`
take all outputs at once. Pixels: `pixel_confusion`, read by `iou dice mean_iou`. Text: `perplexity
bits_per_token bits_per_byte` read the mean of nats, `bleu` takes texts. Pairs, all at once:
`tar_at_far verification_roc equal_error_rate verification_accuracy`.
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
from nnkit.metrics.forecast import coverage, mase, naive_error, smape
from nnkit.metrics.rank import average_precision, roc_auc
from nnkit.metrics.regress import r2
from nnkit.metrics.segment import dice, iou, mean_iou, pixel_confusion
from nnkit.metrics.text import bits_per_byte, bits_per_token, bleu, perplexity
from nnkit.metrics.verify import (
    equal_error_rate,
    tar_at_far,
    verification_accuracy,
    verification_roc,
)

__all__ = [
    "accuracy",
    "average_precision",
    "bits_per_byte",
    "bits_per_token",
    "bleu",
    "brier",
    "calibration",
    "confusion",
    "confusion_matrix",
    "coverage",
    "dice",
    "ece",
    "equal_error_rate",
    "f1",
    "iou",
    "mase",
    "mean_iou",
    "naive_error",
    "nll",
    "perplexity",
    "pixel_confusion",
    "precision",
    "r2",
    "recall",
    "roc_auc",
    "smape",
    "tar_at_far",
    "top_k",
    "verification_accuracy",
    "verification_roc",
]
