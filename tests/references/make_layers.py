"""Write the golden numbers of torch's basic layers that nnkit is compared with.

Run      python tests/references/make_layers.py   (needs torch)
Takes    seconds on a CPU
Writes   torch_layers_affine.npz, torch_layers_norms.npz, torch_layers_maps.npz

Weights, inputs x and the weights g of the loss sum(g y) are `weights.filled` by name and shape: the
files hold outputs, loss, gradients and statistics only. torch computes in float64 from these
float32 numbers, so that its rounding is no part of the error.
"""

from __future__ import annotations

import numpy as np
from weights import filled, write


def affine():
    """{case: (layer, shape of x)}: what has a matrix or a kernel."""
    from torch import nn
    from torch.nn.utils import parametrizations as as_

    conv, up = nn.Conv2d, nn.ConvTranspose2d
    return {
        "linear": (nn.Linear(5, 7), (3, 4, 5)),
        "conv1d": (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
        "conv1d_causal": (
            nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(3, 4, 3, dilation=2)),
            (2, 3, 9),
        ),
        "conv2d": (conv(3, 4, 3, padding=1), (2, 3, 7, 6)),
        "conv2d_stride": (conv(3, 4, 3, stride=2, padding=1), (2, 3, 7, 8)),
        "conv2d_dilation": (conv(3, 4, 3, dilation=2), (2, 3, 7, 6)),
        "conv2d_groups": (conv(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
        "conv2d_depthwise": (conv(4, 4, 5, padding=2, groups=4, bias=False), (2, 4, 6, 6)),
        "conv2d_pieces": (conv(2, 3, 3, padding=1), (32, 2, 4, 4)),
        "conv3d": (nn.Conv3d(2, 3, (2, 3, 3)), (2, 2, 3, 4, 4)),
        "up2d": (up(3, 4, 2, stride=2), (2, 3, 4, 3)),
        "up2d_padding": (up(3, 4, 4, stride=2, padding=1), (2, 3, 4, 3)),
        "up2d_output": (up(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 3, 4)),
        "up1d": (nn.ConvTranspose1d(3, 4, 3, dilation=2), (2, 3, 5)),
        "weight_linear": (as_.weight_norm(nn.Linear(5, 7)), (3, 5)),
        "weight_conv": (as_.weight_norm(conv(3, 4, 3, padding=1)), (2, 3, 5, 5)),
        "spectral_linear": (as_.spectral_norm(nn.Linear(5, 7)), (3, 5)),
        "spectral_conv": (as_.spectral_norm(conv(3, 4, 3, padding=1)), (2, 3, 5, 5)),
    }


def norms():
    """{case: (layer, shape of x)}."""
    from torch import nn

    return {
        "norm_layer": (nn.LayerNorm(6), (3, 4, 6)),
        "norm_rms": (nn.RMSNorm(6, eps=1e-6), (3, 4, 6)),
        "norm_group": (nn.GroupNorm(2, 6), (2, 6, 4, 3)),
        "norm_instance": (nn.InstanceNorm2d(4, affine=True), (2, 4, 3, 5)),
        "norm_batch1d": (nn.BatchNorm1d(4), (6, 4)),
        "norm_batch2d": (nn.BatchNorm2d(4), (3, 4, 3, 5)),
    }


def maps():
    """{case: (function, shape of x)}: no weights."""
    import torch
    from torch.nn import functional as f

    two = lambda g: lambda x: g(x[..., :4]) * x[..., 4:]
    names = "celu elu leaky_relu mish relu relu6 selu silu softplus softsign"
    found = {name: getattr(f, name) for name in names.split()}
    found |= {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "log_sigmoid": f.logsigmoid}
    found |= {"hard_sigmoid": f.hardsigmoid, "hard_swish": f.hardswish, "hard_tanh": f.hardtanh}
    found |= {"gelu": f.gelu, "gelu_tanh": lambda x: f.gelu(x, approximate="tanh")}
    found |= {"relu2": lambda x: f.relu(x) ** 2, "softmax": lambda x: f.softmax(x, -1)}
    found |= {"log_softmax": lambda x: f.log_softmax(x, -1)}
    found |= {"prelu": lambda x: f.prelu(x, torch.tensor(0.3, dtype=x.dtype))}
    gates = {"swiglu": f.silu, "geglu": f.gelu, "reglu": f.relu}
    found |= {name: two(g) for name, g in gates.items()}
    found["glu"] = lambda x: f.glu(torch.cat([x[..., 4:], x[..., :4]], -1))
    found = {name: (g, (5, 8)) for name, g in found.items()}
    whole = (2, 3, 7, 6)  # channels first
    found["max_pool"] = (lambda x: f.max_pool2d(x, 2), whole)
    found["max_pool_overlap"] = (lambda x: f.max_pool2d(x, 3, 2, 1), whole)
    found["max_pool_1d"] = (lambda x: f.max_pool1d(x, 3, 1), (2, 3, 7))
    found["avg_pool"] = (lambda x: f.avg_pool2d(x, 2), whole)
    found["avg_pool_overlap"] = (lambda x: f.avg_pool2d(x, 3, 2, 1), whole)
    found["avg_pool_without"] = (
        lambda x: f.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        whole,
    )
    found["global_avg_pool"] = (lambda x: f.adaptive_avg_pool2d(x, 1)[..., 0, 0], whole)
    return found


def state(layer, case):
    """The state of a layer filled by name; {name: shape}. Vectors u and v get length 1."""
    import torch

    new = {}
    for name, old in layer.state_dict().items():
        if old.is_floating_point():
            value = filled(f"{case}.{name}", old.shape).astype(np.float64)
            unit = name.endswith(("_u", "_v"))
            new[name] = torch.tensor(value / np.linalg.norm(value) if unit else value)
    with torch.no_grad():
        for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
            if name in new:
                value.data = new[name]
    return {name: list(value.shape) for name, value in new.items()}


def call(layer, case, shape, found, *, label="", step=""):
    """One pass in float64: output, loss sum(g y), gradients, statistics afterwards."""
    import torch

    x = torch.tensor(filled(f"{case}.x{step}", shape), dtype=torch.float64, requires_grad=True)
    y = layer(x)
    g = torch.tensor(filled(f"{case}.g{step}", y.shape), dtype=torch.float64)
    loss, at = (g * y).sum(), f"{case}{label}"
    params = dict(layer.named_parameters()) if isinstance(layer, torch.nn.Module) else {}
    slopes = torch.autograd.grad(loss, [x, *params.values()])
    found |= {f"{at}/y": y, f"{at}/loss": loss}
    found |= {f"{at}/grads/{k}": v.clone() for k, v in zip(["x", *params], slopes)}
    if isinstance(layer, torch.nn.Module):
        for name, value in layer.named_buffers():
            if value.is_floating_point():
                found[f"{at}/stats/{name}"] = value.clone()


def main():
    import torch

    torch.set_num_threads(1)
    for part in (affine, norms, maps):
        found, shapes, inputs = {}, {}, {}
        for case, (layer, shape) in part().items():
            inputs[case] = list(shape)
            if not isinstance(layer, torch.nn.Module):
                call(layer, case, shape, found)
                continue
            layer, shapes[case] = layer.double(), state(layer, case)
            stateful = case.startswith(("norm_batch", "spectral"))
            if stateful:
                call(layer.eval(), case, shape, found, label="/before")
                call(layer.train(), case, shape, found, label="/first", step="1")
                call(layer.train(), case, shape, found, label="/second", step="2")
            call(layer.eval(), case, shape, found)
        about = {"reference": f"torch {torch.__version__.split('+')[0]}", "shapes": shapes}
        arrays = {k: v.detach().numpy() for k, v in found.items()}
        small = {k: v.astype(np.float32) for k, v in arrays.items()}
        write(f"torch_layers_{part.__name__}", about | {"inputs": inputs}, **small)


if __name__ == "__main__":
    main()
