"""Write the golden numbers of PyTorch for the losses of sequences and embeddings, and for Muon.

Run      python tests/references/make_losses.py     (needs torch and numpy, no jax)
Takes    seconds on a CPU
Writes   torch_losses_more.npz

What torch computes is float64 from the float32 inputs in the file: the rounding of the reference is
no part of the error. "NAME/value" are values per example, "NAME/slope..." the slopes of their sum
(of those that are finite). What torch has no module for is written here from the paper.

Muon: three steps of `torch.optim.Muon`, as it is (its Newton-Schulz iteration runs in bfloat16)
and with that iteration in float64.
"""

from __future__ import annotations

import math

from weights import write

SEED = 21
STEPS = 3


def slopes(found, name, loss, **at):
    """The value of loss(**at) and its slopes, into `found`."""
    import torch

    at = {k: v.double().requires_grad_() for k, v in at.items()}
    value = loss(**at)
    found[f"{name}/value"] = value
    some = torch.isfinite(value)
    grads = torch.autograd.grad(value[some].sum(), list(at.values()))
    found |= {f"{name}/slope/{k}": g for k, g in zip(at, grads)}


def sequences(found):
    """CTC, and token cross-entropy with ignored places."""
    import torch
    from torch.nn import functional as f

    b, t, v = 5, 8, 6
    z = 2 * torch.randn(b, t, v)
    labels = torch.tensor([[1, 2, 3, 4], [2, 2, 5, 0], [3, 3, 3, 3], [5, 0, 0, 0], [1, 1, 1, 2]])
    frames, lengths = torch.tensor([8, 6, 8, 3, 5]), torch.tensor([4, 3, 4, 1, 4])

    def ctc(logits):  # the last example has 4 labels, 2 repeats and 5 frames: infinite
        p = f.log_softmax(logits, -1).swapaxes(0, 1)
        return f.ctc_loss(p, labels, frames, lengths, blank=0, reduction="none")

    found |= {"ctc/logits": z, "ctc/labels": labels, "ctc/frames": frames, "ctc/lengths": lengths}
    slopes(found, "ctc", ctc, logits=z)

    y = torch.randint(v, (b, t))
    y[torch.rand(b, t) < 0.3] = -100
    found |= {"tokens/labels": y}
    for name, smoothing in {"tokens": 0.0, "tokens_smoothed": 0.1}.items():

        def tokens(logits, smoothing=smoothing):
            flat = logits.reshape(-1, v), y.reshape(-1)
            each = f.cross_entropy(
                *flat, reduction="none", ignore_index=-100, label_smoothing=smoothing
            )
            return each.reshape(b, t).sum(-1)

        slopes(found, name, tokens, logits=z)


def embeddings(found):
    """Triplet, contrastive, InfoNCE and the angular margins."""
    import torch
    from torch.nn import functional as f

    b, d, c = 6, 5, 4
    x, y, z, w = torch.randn(b, d), torch.randn(b, d), torch.randn(b, d), torch.randn(d, c)
    same, k = torch.tensor([1, 0, 1, 0, 0, 1]), torch.randint(c, (b,))
    x[0] = -3 * w[:, k[0]] + 0.1 * x[0]  # an angle beyond pi - m
    x[1] = 2 * w[:, k[1]] + 0.01 * x[1]  # one near 0
    found |= {"x": x, "y": y, "z": z, "w": w, "same": same, "classes": k}

    for name, margin in {"triplet": 1.0, "triplet_wide": 3.0}.items():

        def triplet(x, y, z, margin=margin):
            return f.triplet_margin_loss(x, y, z, margin=margin, eps=0.0, reduction="none")

        slopes(found, name, triplet, x=x, y=y, z=z)

    def contrastive(x, y):  # Hadsell et al., eq. 4
        distance = f.pairwise_distance(x, y, eps=0.0)
        return torch.where(same == 1, distance**2, f.relu(4.0 - distance) ** 2) / 2

    def info_nce(x, y):
        scores = f.normalize(x, dim=-1) @ f.normalize(y, dim=-1).T / 0.2
        return f.cross_entropy(scores, torch.arange(b), reduction="none")

    def clip(x, y):
        return (info_nce(x, y) + info_nce(y, x)) / 2

    slopes(found, "contrastive", contrastive, x=x, y=y)
    slopes(found, "info_nce", info_nce, x=x, y=y)
    slopes(found, "clip", clip, x=x, y=y)

    def angular(change):
        def loss(x, w):
            cosine = f.normalize(x, dim=-1) @ f.normalize(w, dim=0)
            logits = torch.where(f.one_hot(k, c).bool(), change(cosine), cosine)
            return f.cross_entropy(16 * logits, k, reduction="none")

        return loss

    def arcface(cosine, m=0.5):  # Deng et al., eq. 3, and the authors' program beyond pi - m
        angle = torch.acos(cosine)
        further = torch.cos(angle + m)
        return torch.where(angle < math.pi - m, further, cosine - m * math.sin(m))

    slopes(found, "arcface", angular(arcface), x=x, w=w)
    slopes(found, "cosface", angular(lambda cosine: cosine - 0.35), x=x, w=w)
    slopes(found, "normalised_softmax", angular(lambda cosine: cosine), x=x, w=w)


def muon(found):
    """Three steps on a wide and a tall matrix."""
    import torch
    from torch.optim import _muon as program

    class Wide:  # torch, in which bfloat16 is float64
        bfloat16 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    shapes = {"wide": (4, 7), "tall": (7, 3)}
    start = {k: torch.randn(s) for k, s in shapes.items()}
    grads = {k: torch.randn(STEPS, *s) for k, s in shapes.items()}
    found |= {f"muon/start/{k}": x for k, x in start.items()}
    found |= {f"muon/grads/{k}": x for k, x in grads.items()}
    for name, names in {"bfloat16": torch, "float64": Wide()}.items():
        program.torch = names
        params = {k: x.double().requires_grad_() for k, x in start.items()}
        optimizer = torch.optim.Muon(list(params.values()), lr=0.1, weight_decay=0.1, momentum=0.95)
        for i in range(STEPS):
            for k, p in params.items():
                p.grad = grads[k][i].double()
            optimizer.step()
        found |= {f"muon/{name}/{k}": p for k, p in params.items()}
    program.torch = torch


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    arrays: dict = {}
    sequences(arrays)
    embeddings(arrays)
    muon(arrays)
    write("torch_losses_more", {"torch": torch.__version__, "seed": SEED}, **arrays)
