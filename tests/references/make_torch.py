"""Write the golden numbers of PyTorch that nnkit is compared with: models, optimizers, losses.

Run      python tests/references/make_torch.py     (needs torch and numpy, no jax)
Takes    seconds on a CPU
Writes   torch_linear.npz torch_mlp.npz torch_convnet.npz torch_training.npz torch_losses.npz

It was run once; the tests read the files and never import torch. Everything is float32, and in the
layouts of torch: dense weights [out in], kernels [out in h w], images [b c h w]. Names are
"params/LAYER.weight", "grads/...", and so on. "about" in each file says which torch, which seed and
which dtype.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SEED = 20
STEPS = 20
OPTIMIZERS = {  # name: (class in torch.optim, its settings)
    "adam": ("Adam", {"lr": 1e-2}),
    "adamw": ("AdamW", {"lr": 1e-2, "weight_decay": 0.1}),
    "momentum": ("SGD", {"lr": 5e-2, "momentum": 0.9}),
    "nesterov": ("SGD", {"lr": 5e-2, "momentum": 0.9, "nesterov": True}),
}


def write(name, **arrays):
    """One file with a note on where it comes from."""
    import torch

    note = {"torch": torch.__version__, "seed": SEED, "dtype": "float32"}
    arrays = {k: np.asarray(v.detach() if hasattr(v, "detach") else v) for k, v in arrays.items()}
    np.savez_compressed(HERE / f"torch_{name}.npz", about=json.dumps(note), **arrays)


def dense(widths, d):
    """Flatten, then affine layers with ReLU between: dense_0 ... head."""
    from torch import nn

    layers = OrderedDict(flat=nn.Flatten())
    for i, width in enumerate(widths[:-1]):
        layers[f"dense_{i}"], layers[f"relu_{i}"], d = nn.Linear(d, width), nn.ReLU(), width
    layers["head"] = nn.Linear(d, widths[-1])
    return nn.Sequential(layers)


def convolutional(channels, hidden, classes, norm, size=8):
    """Blocks of convolution, batch normalisation, ReLU, pooling; a hidden layer; a head."""
    from torch import nn

    layers, d = OrderedDict(), 1
    for i, width in enumerate(channels):
        layers[f"conv_{i}"] = nn.Conv2d(d, width, 3, padding=1)
        if norm:
            layers[f"norm_{i}"] = nn.BatchNorm2d(width, momentum=0.1)
        layers[f"relu_{i}"], layers[f"pool_{i}"], d = nn.ReLU(), nn.MaxPool2d(2), width
    layers["flat"] = nn.Flatten()
    layers["dense"] = nn.Linear(d * (size // 2 ** len(channels)) ** 2, hidden)
    layers["relu"] = nn.ReLU()
    layers["head"] = nn.Linear(hidden, classes)
    return nn.Sequential(layers)


def pass_through(net, x, y):
    """Logits, loss, gradients, and the statistics afterwards, in a flat dict."""
    from torch.nn import functional

    net.zero_grad()
    logits = net(x)
    loss = functional.cross_entropy(logits, y)
    loss.backward()
    grads = {f"grads/{name}": p.grad.clone() for name, p in net.named_parameters()}
    after = {f"stats/{name}": p.clone() for name, p in net.named_buffers()}
    return {"logits": logits, "loss": loss, **grads, **after}


def random(net):
    """Every weight and statistic random, so that none is 0 or 1 by chance."""
    import torch

    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for name, p in net.named_buffers():
            if p.is_floating_point():
                p.copy_(torch.rand_like(p) + (0.5 if name.endswith("var") else -0.5))
    return net


def start(net):
    """Weights and statistics before anything happens."""
    params = {f"params/{name}": p.detach().clone() for name, p in net.named_parameters()}
    return params | {f"before/{name}": p.clone() for name, p in net.named_buffers()}


def models():
    """Linear, MLP and ConvNet: one forward and backward pass each."""
    import torch

    x, y = torch.randn(4, 7), torch.randint(5, (4,))
    for name, widths in {"linear": (5,), "mlp": (16, 12, 5)}.items():
        net = random(dense(widths, 7))
        write(name, x=x, y=y, **start(net), **pass_through(net, x, y))

    x, y, found = torch.randn(2, 1, 8, 8), torch.randint(5, (2,)), {}
    for norm in (False, True):
        net = random(convolutional((3, 4), 8, 5, norm))
        found |= {f"norm={norm}/{k}": v for k, v in start(net).items()}
        for train in (False, True):  # evaluation first: it leaves the statistics alone
            seen = pass_through(net.train(train), x, y)
            found |= {f"norm={norm}/train={train}/{k}": v for k, v in seen.items()}
    write("convnet", x=x, y=y, **found)


def training():
    """The MLP after 20 steps on 20 batches, by each optimizer from the same start."""
    import torch
    from torch.nn import functional

    x, y = torch.randn(STEPS, 16, 7), torch.randint(5, (STEPS, 16))
    first = random(dense((16, 12, 5), 7)).state_dict()
    first = {name: p.clone() for name, p in first.items()}
    found = {f"params/{name}": p for name, p in first.items()}
    for name, (kind, settings) in OPTIMIZERS.items():
        net = dense((16, 12, 5), 7)
        net.load_state_dict(first)
        optimizer, seen = getattr(torch.optim, kind)(net.parameters(), **settings), []
        for a, b in zip(x, y):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(a), b)
            loss.backward()
            optimizer.step()
            seen.append(loss.detach())
        found |= {f"{name}/params/{k}": p for k, p in net.named_parameters()}
        found[f"{name}/losses"] = torch.stack(seen)
    write("training", x=x, y=y, **found)


def losses():
    """Values per example, and the slope of their sum."""
    import torch
    from torch.nn import functional as f

    n, c = 12, 5
    z, y = 3 * torch.randn(n, c), torch.randint(c, (n,))
    soft, teacher = torch.softmax(torch.randn(n, c), -1), 3 * torch.randn(n, c)
    score, bit, share = 3 * torch.randn(n), torch.randint(2, (n,)), torch.rand(n)
    target = z + 2 * torch.randn(n, c)

    def two(z, y):  # torch averages over both classes: 2 makes it the hinge
        return 2 * f.multi_margin_loss(z, y, reduction="none")

    def best(z):  # Crammer and Singer: the worst of the duels of the true class
        true, first = z.gather(1, y[:, None])[:, 0], torch.zeros(n, dtype=torch.long)
        duels = torch.stack([two(torch.stack([true, z[:, k]], 1), first) for k in range(c)], 1)
        return duels.masked_fill(f.one_hot(y, c).bool(), 0.0).max(1).values

    def kl(z):
        p, t = f.log_softmax(z, -1), f.log_softmax(teacher, -1)
        return f.kl_div(p, t, log_target=True, reduction="none").sum(-1)

    each = {
        "cross_entropy": (z, lambda z: f.cross_entropy(z, y, reduction="none")),
        "smoothed": (z, lambda z: f.cross_entropy(z, y, reduction="none", label_smoothing=0.1)),
        "soft": (z, lambda z: f.cross_entropy(z, soft, reduction="none")),
        "binary": (score, lambda s: f.binary_cross_entropy_with_logits(s, share, reduction="none")),
        "huber": (z, lambda z: f.huber_loss(z, target, reduction="none", delta=0.7).mean(-1)),
        "mse": (z, lambda z: f.mse_loss(z, target, reduction="none").mean(-1)),
        "mae": (z, lambda z: f.l1_loss(z, target, reduction="none").mean(-1)),
        "kl": (z, kl),
        "hinge": (score, lambda s: two(torch.stack([-s / 2, s / 2], 1), bit)),
        "multiclass_hinge": (z, best),
    }
    found = {"z": z, "y": y, "soft": soft, "teacher": teacher, "target": target}
    found |= {"score": score, "bit": bit, "share": share}
    for name, (at, loss) in each.items():
        at = at.clone().requires_grad_()
        found[f"{name}/value"] = loss(at)
        found[f"{name}/slope"] = torch.autograd.grad(found[f"{name}/value"].sum(), at)[0]
    write("losses", **found)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for part in (models, training, losses):
        torch.manual_seed(SEED)
        part()
