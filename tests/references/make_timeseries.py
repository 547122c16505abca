"""Write the golden numbers of forecasting models: DLinear, NLinear and PatchTST in torch.

Run      python tests/references/make_timeseries.py     (needs torch, transformers, numpy; no jax)
Takes    seconds on a CPU
Writes   timeseries_*.npz

The classes below are written from the papers and the documented structure of their code
(cure-lab/LTSF-Linear, yuqinie98/PatchTST), with torch's own layers and the reference's names of
weights. `transformers` has a PatchTST of its own, without residual scores: a second, independent
reference of everything else. Weights are `weights.filled`, so that a file holds outputs and
gradients only. Everything is float32.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from weights import filled, write

LENGTH, HORIZON, SERIES, BATCH = 24, 5, 3, 4


def windows():
    """x [b length f] and y [b horizon f]; the level differs from window to window."""
    x = torch.from_numpy(filled("series", (BATCH, LENGTH + HORIZON, SERIES)).copy())
    x = x * LENGTH**0.5 * SERIES**0.5 + torch.arange(BATCH)[:, None, None] * 2.0
    return x[:, :LENGTH], x[:, LENGTH:]


class NLinear(nn.Module):
    """A linear map over time of x minus its last value."""

    def __init__(self, individual):
        super().__init__()
        self.individual = individual
        one = lambda: nn.Linear(LENGTH, HORIZON)
        self.Linear = nn.ModuleList([one() for _ in range(SERIES)]) if individual else one()

    def forward(self, x):
        last = x[:, -1:].detach()
        return over_time(self.Linear, x - last) + last


class DLinear(nn.Module):
    """Two linear maps over time, of the moving average and of what is left."""

    def __init__(self, window, individual):
        super().__init__()
        self.window = window
        for name in ("Linear_Seasonal", "Linear_Trend"):
            one = lambda: nn.Linear(LENGTH, HORIZON)
            maps = nn.ModuleList([one() for _ in range(SERIES)]) if individual else one()
            self.add_module(name, maps)

    def forward(self, x):
        half = (self.window - 1) // 2
        ends = torch.cat([x[:, :1].repeat(1, half, 1), x, x[:, -1:].repeat(1, half, 1)], 1)
        trend = functional.avg_pool1d(ends.permute(0, 2, 1), self.window, stride=1)
        trend = trend.permute(0, 2, 1)
        return over_time(self.Linear_Seasonal, x - trend) + over_time(self.Linear_Trend, trend)


def over_time(maps, x):
    """A linear map (or one per series) over the steps of x [b t f]."""
    if isinstance(maps, nn.ModuleList):
        return torch.stack([one(x[:, :, i]) for i, one in enumerate(maps)], -1)
    return maps(x.permute(0, 2, 1)).permute(0, 2, 1)


class Layer(nn.Module):
    """One encoder layer: attention with the scores of the layer below, then two linear maps."""

    def __init__(self, width, heads, hidden, norm, pre):
        super().__init__()
        self.heads, self.pre, self.batch = heads, pre, norm == "batch"
        self.W_Q, self.W_K, self.W_V = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.ff_in, self.ff_out = nn.Linear(width, hidden), nn.Linear(hidden, width)
        kind = nn.BatchNorm1d if self.batch else nn.LayerNorm
        self.norm_attn, self.norm_ffn = kind(width), kind(width)

    def normed(self, norm, x):
        return norm(x.transpose(1, 2)).transpose(1, 2) if self.batch else norm(x)

    def forward(self, h, before):
        x = self.normed(self.norm_attn, h) if self.pre else h
        n, p, d = x.shape
        q, k, v = (
            w(x).view(n, p, self.heads, -1).transpose(1, 2) for w in (self.W_Q, self.W_K, self.W_V)
        )
        scores = q @ k.transpose(2, 3) * (d // self.heads) ** -0.5
        if before is not None:
            scores = scores + before
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, p, d)
        h = h + self.to_out(mixed)
        h = h if self.pre else self.normed(self.norm_attn, h)
        x = self.normed(self.norm_ffn, h) if self.pre else h
        h = h + self.ff_out(functional.gelu(self.ff_in(x)))
        return (h if self.pre else self.normed(self.norm_ffn, h)), scores


class PatchTST(nn.Module):
    """Patches of every series as tokens, an encoder, a flat head; RevIN around it."""

    def __init__(self, patch=6, stride=3, width=8, heads=2, hidden=12, layers=3, padded=True,
                 norm="batch", pre=False, residual=True, revin=True, affine=False, last=False,
                 individual=False):  # fmt: skip
        super().__init__()
        self.patch, self.stride, self.padded, self.residual = patch, stride, padded, residual
        self.revin, self.last = revin, last
        count = (LENGTH - patch) // stride + 1 + padded
        self.W_P = nn.Linear(patch, width)
        self.W_pos = nn.Parameter(torch.zeros(count, width))
        self.layers = nn.ModuleList([Layer(width, heads, hidden, norm, pre) for _ in range(layers)])
        one = lambda: nn.Linear(width * count, HORIZON)
        self.head = nn.ModuleList([one() for _ in range(SERIES)]) if individual else one()
        if affine:
            self.revin_norm_weight = nn.Parameter(torch.ones(SERIES))
            self.revin_norm_bias = nn.Parameter(torch.zeros(SERIES))
        self.affine = affine

    def forward(self, x):
        if self.revin:
            mean = x[:, -1:] if self.last else x.mean(1, keepdim=True)
            deviation = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
            x = (x - mean) / deviation
            if self.affine:
                x = x * self.revin_norm_weight + self.revin_norm_bias
        z = x.permute(0, 2, 1)  # [b f t]
        if self.padded:
            z = functional.pad(z, (0, self.stride), mode="replicate")
        z = z.unfold(-1, self.patch, self.stride)  # [b f p patch]
        b, f = z.shape[:2]
        h = (self.W_P(z) + self.W_pos).flatten(0, 1)
        scores = None
        for layer in self.layers:
            h, scores = layer(h, scores if self.residual else None)
        h = h.view(b, f, *h.shape[1:]).transpose(2, 3).flatten(2)  # [b f d*p], as the reference
        if isinstance(self.head, nn.ModuleList):
            y = torch.stack([one(h[:, i]) for i, one in enumerate(self.head)], 1)
        else:
            y = self.head(h)
        y = y.permute(0, 2, 1)
        if self.revin:
            if self.affine:
                y = (y - self.revin_norm_bias) / (self.revin_norm_weight + 1e-5**2)
            y = y * deviation + mean
        return y


def fill(model):
    """Every weight and statistic by its name."""
    state = {k: torch.from_numpy(filled(k, v.shape)) if v.is_floating_point() else v
             for k, v in model.state_dict().items()}  # fmt: skip
    model.load_state_dict(state)
    return {k: list(v.shape) for k, v in state.items() if v.is_floating_point()}


def golden(name, model, note, call=lambda model, x: model(x)):
    """Outputs in evaluation; outputs, loss, gradients and statistics of a training step."""
    shapes, (x, y) = fill(model), windows()
    model.eval()
    before = call(model, x).detach()
    model.train()
    out = call(model, x)
    loss = ((out - y) ** 2).mean()
    loss.backward()
    found = {"x": x, "y": y, "evaluated": before, "outputs": out, "loss": loss}
    found |= {f"grads/{k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
    found |= {f"after/{k}": v for k, v in model.state_dict().items() if "running" in k}
    write(f"timeseries_{name}", {**note, "torch": torch.__version__, "shapes": shapes}, **found)


def hugging_face():
    """transformers' PatchTST: scaled by the mean, batch norm before each part, a flat head."""
    import transformers

    config = transformers.PatchTSTConfig(
        num_input_channels=SERIES, context_length=LENGTH, prediction_length=HORIZON,
        patch_length=6, patch_stride=3, d_model=8, num_attention_heads=2, ffn_dim=12,
        num_hidden_layers=2, norm_type="batchnorm", pre_norm=True, activation_function="gelu",
        share_embedding=True, channel_attention=False, scaling=None, loss="mse",
        do_mask_input=False, pooling_type=None,
        positional_encoding_type="random", attention_dropout=0.0, ff_dropout=0.0, head_dropout=0.0,
        positional_dropout=0.0, path_dropout=0.0, use_cls_token=False, norm_eps=1e-5,
    )  # fmt: skip
    model = transformers.PatchTSTForPrediction(config)
    note = {"reference": f"transformers {transformers.__version__} PatchTSTForPrediction"}
    golden("patchtst_transformers", model, note, lambda m, x: m(past_values=x).prediction_outputs)


def main():
    """All files."""
    torch.manual_seed(0)
    ours = {"reference": "DLinear, NLinear of LTSF-Linear, rewritten in torch"}
    for individual in (False, True):
        end = "_individual" if individual else ""
        golden(f"nlinear{end}", NLinear(individual), ours)
        golden(f"dlinear{end}", DLinear(7, individual), ours)
    ours = {"reference": "PatchTST of yuqinie98/PatchTST, rewritten in torch"}
    golden("patchtst", PatchTST(), {**ours, "config": {}})
    for name, config in {
        "affine": {"affine": True, "individual": True, "layers": 2},
        "pre": {"pre": True, "norm": "layer", "padded": False, "revin": False, "layers": 2},
        "plain": {"residual": False, "last": True, "layers": 2},
    }.items():
        golden(f"patchtst_{name}", PatchTST(**config), {**ours, "config": config})
    hugging_face()


if __name__ == "__main__":
    main()
