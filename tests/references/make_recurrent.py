"""Write the golden numbers of torch's recurrent layers, a TCN and a tied language model.

Run      python tests/references/make_recurrent.py   (needs torch, no jax)
Takes    seconds on a CPU
Writes   recurrent_layers.npz recurrent_models.npz

Weights are `weights.filled` by the case and torch's names, in float32; what torch computes with
them is float64, so that its rounding is not part of the error. The loss of a layer is the sum of
all it gives times fixed numbers (`filled("CASE/loss/NAME")`), that of a model is written at it.
The TCN is written here after Bai et al., arXiv:1803.01271, with torch's weight normalisation.
"""

from __future__ import annotations

import numpy as np
from weights import filled, write

LENGTHS = (6, 3, 5)
D, F = 3, 4
LAYERS = {  # case: (class of torch.nn, its settings, are the sequences of different lengths?)
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}, False),
    "rnn_relu": ("RNN", {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}, True),
    "lstm": ("LSTM", {}, False),
    "lstm_packed": ("LSTM", {"num_layers": 2, "bidirectional": True}, True),
    "lstm_projection": ("LSTM", {"proj_size": 2}, True),
    "gru": ("GRU", {}, False),
    "gru_packed": ("GRU", {"num_layers": 2, "bidirectional": True}, True),
    "lstm_cell": ("LSTMCell", {}, False),
    "gru_cell": ("GRUCell", {}, False),
}


def numbers(name, *shape):
    """[shape] float64 of that name."""
    import torch

    return torch.tensor(filled(name, shape), dtype=torch.float64)


def fill(case, net):
    """The weights of a torch module by names, in float64."""
    for name, p in net.named_parameters():
        p.data = numbers(f"{case}/{name}", *p.shape)
    return net.double()


def states(case, net, kind):
    """What to start from: h0, and c0 for an LSTM."""
    directions = 2 if getattr(net, "bidirectional", False) else 1
    n = directions * getattr(net, "num_layers", 1)
    shape = lambda f: (len(LENGTHS), f) if kind.endswith("Cell") else (n, len(LENGTHS), f)
    h = numbers(f"{case}/h0", *shape(getattr(net, "proj_size", 0) or F))
    return (h, numbers(f"{case}/c0", *shape(F))) if kind.startswith("LSTM") else h


def layer(case):
    """Outputs, final states, loss and gradients of one case, by name."""
    import torch
    from torch.nn.utils import rnn

    kind, settings, packed = LAYERS[case]
    cell = kind.endswith("Cell")
    net = getattr(torch.nn, kind)(D, F, **settings, **({} if cell else {"batch_first": True}))
    fill(case, net)
    x = numbers(f"{case}/x", len(LENGTHS), *([] if cell else [max(LENGTHS)]), D)
    x.requires_grad_()
    given = x
    if packed:
        given = rnn.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    out = net(given, states(case, net, kind))
    if cell:
        found = dict(zip("hc", out if isinstance(out, tuple) else (out,)))
    else:
        y, last = out
        y = rnn.pad_packed_sequence(y, batch_first=True)[0] if packed else y
        found = {"y": y, **dict(zip("hc", last if isinstance(last, tuple) else (last,)))}
    loss = sum((v * numbers(f"{case}/loss/{k}", *v.shape)).sum() for k, v in found.items())
    loss.backward()
    grads = {f"grads/{k}": p.grad for k, p in net.named_parameters()}
    return found | {"loss": loss, "grads/x": x.grad} | grads


def tcn(torch, channels, d, classes, kernel):
    """Blocks of two dilated causal convolutions with weight normalisation, and a last layer."""
    from torch import nn
    from torch.nn.utils.parametrizations import weight_norm

    class Block(nn.Module):
        def __init__(self, d, f, dilation):
            super().__init__()
            self.pad = (kernel - 1) * dilation
            make = lambda a: weight_norm(nn.Conv1d(a, f, kernel, dilation=dilation))
            self.conv1, self.conv2 = make(d), make(f)
            self.downsample = nn.Conv1d(d, f, 1) if d != f else nn.Identity()

        def forward(self, x):
            h = x
            for conv in (self.conv1, self.conv2):
                h = conv(nn.functional.pad(h, (self.pad, 0))).relu()
            return (h + self.downsample(x)).relu()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            blocks = zip((d, *channels), channels)
            self.network = nn.Sequential(*(Block(a, f, 2**i) for i, (a, f) in enumerate(blocks)))
            self.linear = nn.Linear(channels[-1], classes)

        def forward(self, x):  # [b t d]
            return self.linear(self.network(x.transpose(1, 2)).transpose(1, 2))

    return Net()


def tied(torch, vocabulary, f):
    """Embedding, a packed LSTM of two layers, the embedding again."""
    from torch import nn
    from torch.nn.utils import rnn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(vocabulary, f)
            self.lstm = nn.LSTM(f, f, num_layers=2, batch_first=True)
            self.bias = nn.Parameter(torch.zeros(vocabulary))

        def forward(self, tokens):
            x = self.embed(tokens)
            x = rnn.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
            y = rnn.pad_packed_sequence(self.lstm(x)[0], batch_first=True)[0]
            return y @ self.embed.weight.T + self.bias

    return Net()


def classifier(torch, d, f, classes):
    """A bidirectional GRU, the last states of both directions, an affine layer."""
    from torch import nn
    from torch.nn.utils import rnn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(d, f, num_layers=2, bidirectional=True, batch_first=True)
            self.linear = nn.Linear(2 * f, classes)

        def forward(self, x):
            x = rnn.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
            last = self.gru(x)[1]
            return self.linear(torch.cat([last[-2], last[-1]], -1))

    return Net()


def models():
    """{case/NAME: array} of the models; the loss is cross-entropy over what counts."""
    import torch
    from torch.nn import functional

    found, b, t = {}, len(LENGTHS), max(LENGTHS)
    real = torch.tensor([[i < n for i in range(t)] for n in LENGTHS])
    draw = np.random.RandomState(0)
    ids = torch.tensor(draw.randint(0, 9, (b, t)))
    cases = {
        "tcn": (tcn(torch, (5, 5, 4), D, 9, 3), numbers("tcn/x", b, t, D), ids),
        "tied": (tied(torch, 9, 6), ids, torch.tensor(draw.randint(0, 9, (b, t)))),
        "classifier": (classifier(torch, D, F, 5), numbers("classifier/x", b, t, D), ids[:, 0] % 5),
    }
    for case, (net, x, y) in cases.items():
        logits = fill(case, net)(x)
        some = real if logits.ndim == 3 and case != "tcn" else torch.ones_like(y, dtype=torch.bool)
        loss = functional.cross_entropy(logits[some], y[some])
        loss.backward()
        found |= {f"{case}/x": x, f"{case}/y": y, f"{case}/logits": logits, f"{case}/loss": loss}
        found |= {f"{case}/grads/{k}": p.grad for k, p in net.named_parameters()}
    return found


def main():
    import torch

    about = {"version": torch.__version__, "lengths": LENGTHS, "d": D, "f": F}
    cases = {case: {"class": kind, **settings} for case, (kind, settings, _) in LAYERS.items()}
    arrays = {f"{case}/{k}": v for case in LAYERS for k, v in layer(case).items()}
    write("recurrent_layers", {**about, "cases": cases}, **arrays)
    write("recurrent_models", {**about, "vocabulary": 9, "tcn": [5, 5, 4], "kernel": 3}, **models())


if __name__ == "__main__":
    main()
