"""What the logits processors of transformers make of random logits.

Run      python tests/references/make_warps.py, with torch 2.15 and transformers 5.23 installed
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

rng = np.random.default_rng(0)
logits = (2.5 * rng.normal(size=(6, 40))).astype(np.float32)
ids = rng.integers(0, 40, (6, 9))
seen = np.zeros(logits.shape, bool)
np.put_along_axis(seen, ids, True, 1)

lists = {
    "temperature": [TemperatureLogitsWarper(0.6)],
    "top_k": [TopKLogitsWarper(7)],
    "top_p": [TopPLogitsWarper(0.8)],
    "min_p": [MinPLogitsWarper(0.15)],
    "repetition": [RepetitionPenaltyLogitsProcessor(1.4)],
    "chain": [
        RepetitionPenaltyLogitsProcessor(1.2),
        TemperatureLogitsWarper(0.8),
        TopKLogitsWarper(12),
        TopPLogitsWarper(0.85),
        MinPLogitsWarper(0.05),
    ],
}
found = {
    name: LogitsProcessorList(steps)(torch.tensor(ids), torch.tensor(logits)).numpy()
    for name, steps in lists.items()
}
where = Path(__file__).with_name("warps_transformers.npz")
np.savez_compressed(where, logits=logits, seen=seen, **found)
