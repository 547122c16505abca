"""The side of benchmarks/sweep.py in torch: members one after another, eager, fused Adam.

It needs torch and numpy alone, so that it can run in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time

import numpy as np
import torch
from torch import nn

BATCH, BATCHES = 64, 16


def network(model: str) -> nn.Module:
    """The same sizes as in benchmarks/sweep.py."""
    if model == "mlp":
        return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side")
    parser.add_argument("--models")
    parser.add_argument("--members", type=int)
    asked = parser.parse_args()
    cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not torch.cuda.is_available()
    device = "cpu" if cpu else "cuda"
    torch.set_num_threads(os.cpu_count() or 1)
    rng, shape = np.random.default_rng(0), (BATCH, 784)
    shape = shape if asked.models == "mlp" else (BATCH, 1, 28, 28)
    put = lambda x: torch.from_numpy(x).to(device)
    batches = [
        (put(rng.normal(size=shape).astype("float32")), put(rng.integers(0, 10, BATCH)))
        for _ in range(BATCHES)
    ]
    members = []
    for i in range(asked.members):
        torch.manual_seed(i)
        net = network(asked.models).to(device)
        rate = math.exp(np.interp(i, [0, max(1, asked.members - 1)], np.log([1e-4, 1e-3])))
        members.append((net, torch.optim.Adam(net.parameters(), lr=rate, fused=True)))

    def turn(steps: int) -> None:
        for net, adam in members:
            for t in range(steps):
                x, y = batches[t % BATCHES]
                adam.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(net(x), y).backward()
                adam.step()
        if device == "cuda":
            torch.cuda.synchronize()

    turn(2)
    said = {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    print(json.dumps(said), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        turn(int(line))
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
