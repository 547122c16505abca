"""A few numbers for an array too large for a golden file. Needs numpy alone."""

from __future__ import annotations

import zlib

import numpy as np

BINS = 8


def sketch(name, x):
    """[1 + 8] of a large array: its norm, and sums of every 8th element under random signs."""
    x = np.asarray(x, np.float64).ravel()
    signs = np.random.RandomState(zlib.crc32(name.encode())).randint(0, 2, x.size, np.int8)
    signed = np.pad(x * (2.0 * signs - 1), (0, -x.size % BINS)).reshape(-1, BINS)
    return np.concatenate([[np.sqrt((x**2).sum())], signed.sum(0)])
