"""Write the golden numbers of ResNet, WideResNet, ConvNeXt and U-Net that nnkit is compared with.

Run      python tests/references/make_convolutional.py   (needs torch, torchvision, transformers)
Takes    a minute on a CPU
Writes   convolutional_*.npz

Weights are `weights.filled` by the reference's names. What the reference computes is float64 from
these float32 weights and inputs: ours is compared with it in both precisions, and the rounding of
the reference is not part of the error.

- transformers' ResNet and ConvNext with tiny settings: logits, loss, all gradients, statistics;
- torchvision's resnet18, resnet50 and convnext_tiny in full: as their gradients do not fit,
  resnet18 has the norm and 8 signed sums of each (`sketch`), the other two logits and loss;
- the ResNet of CIFAR-10, the wide residual network and the U-Net have no reference in these
  packages: they are written here, from the papers.
"""

from __future__ import annotations

from sketches import sketch
from weights import filled, write


def pictures(*shape):
    """Random pictures [shape] in steps of 1/16, which compress."""
    import torch

    return torch.randn(*shape).mul(16).round() / 16


def fill(net):
    """The state of a torch module, from names and shapes alone, in float64."""
    import torch

    state = net.state_dict()
    new = {k: torch.tensor(filled(k, v.shape)) for k, v in state.items() if v.is_floating_point()}
    net.load_state_dict(state | new)
    return net.double()


def settings(net, reference, **config):
    """What stands in "about"."""
    import torch
    import torchvision
    import transformers

    shapes = {k: list(v.shape) for k, v in net.state_dict().items() if v.is_floating_point()}
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, transformers)}
    return {"reference": reference, "version": versions, "config": config, "shapes": shapes}


def seen(net, x, y, *, train, small=lambda name, g: g):
    """Logits, loss, gradients (through `small`) and new statistics of one pass, in a flat dict."""
    from torch.nn import functional

    fill(net).train(train).zero_grad()
    out = net(x.double())
    logits = getattr(out, "logits", out)
    loss = functional.cross_entropy(logits, y)
    loss.backward()
    found = {"logits": logits, "loss": loss}
    found |= {f"grads/{k}": small(k, p.grad) for k, p in net.named_parameters()}
    if train:
        stats = {k: v for k, v in net.named_buffers() if v.is_floating_point()}
        found |= {f"stats/{k}": small(k, v) for k, v in stats.items()}
    return found


def golden(name, net, reference, x, y, *, config=(), **rest):
    """One file. With running statistics: a training step, and outputs alone in evaluation."""
    stats, found = any("running" in k for k, _ in net.named_buffers()), {}
    for train in (False, True) if stats else (False,):
        then = seen(net, x, y, train=train, **rest)
        kept = {k: v for k, v in then.items() if train == stats or "/" not in k}
        found |= {f"train={train}/{k}": v for k, v in kept.items()}
    write(f"convolutional_{name}", settings(net, reference, **dict(config)), x=x, y=y, **found)


def transformers_models(torch):
    """Tiny ResNets of both blocks, and a tiny ConvNeXt."""
    from transformers import (
        ConvNextConfig,
        ConvNextForImageClassification,
        ResNetConfig,
        ResNetForImageClassification,
    )

    x, y = pictures(8, 3, 32, 32), torch.randint(5, (8,))
    for kind, stem, widths in [("basic", 4, [4, 6, 8]), ("bottleneck", 4, [16, 24, 24])]:
        config = ResNetConfig(
            embedding_size=stem,
            hidden_sizes=widths,
            depths=[2, 1, 2],
            layer_type=kind,
            num_labels=5,
        )
        net = ResNetForImageClassification(config)
        name = "transformers ResNetForImageClassification"
        golden(f"resnet_{kind}", net, name, x, y, config={"widths": widths})
    config = ConvNextConfig(
        hidden_sizes=[4, 6, 8], depths=[1, 2, 1], num_stages=3, layer_norm_eps=1e-6, num_labels=5
    )
    net = ConvNextForImageClassification(config)
    golden("convnext", net, "transformers ConvNextForImageClassification", x, y)


def torchvision_models(torch):
    """Published sizes in full, on small pictures."""
    from torchvision import models

    x, y = pictures(4, 3, 64, 64), torch.randint(1000, (4,))
    golden("resnet18", models.resnet18(), "torchvision resnet18", x, y, small=sketch)
    for name in ("resnet50", "convnext_tiny"):
        net = fill(getattr(models, name)()).eval()
        with torch.no_grad():
            logits = net(x.double())
            loss = torch.nn.functional.cross_entropy(logits, y)
        about = settings(net, f"torchvision {name}")
        write(f"convolutional_{name}", about, x=x, y=y, logits=logits, loss=loss)


def cifar(torch):
    """He et al., section 4.2, with n = 2 blocks in each of three stages, both shortcuts."""
    from torch import nn
    from torch.nn import functional as f

    class Block(nn.Module):
        def __init__(self, d, width, stride, project):
            super().__init__()
            self.stride, self.more = stride, width - d
            self.conv_0 = nn.Conv2d(d, width, 3, stride, 1, bias=False)
            self.norm_0 = nn.BatchNorm2d(width)
            self.conv_1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.norm_1 = nn.BatchNorm2d(width)
            if project and self.more:
                self.shortcut = nn.Conv2d(d, width, 1, stride, bias=False)
                self.shortcut_norm = nn.BatchNorm2d(width)

        def forward(self, x):
            h = f.relu(self.norm_0(self.conv_0(x)))
            h = self.norm_1(self.conv_1(h))
            if hasattr(self, "shortcut"):
                x = self.shortcut_norm(self.shortcut(x))
            elif self.more:  # option A: every second pixel, and channels of zeros
                x = f.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
            return f.relu(h + x)

    class Net(nn.Module):
        def __init__(self, widths, n, project):
            super().__init__()
            self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
            self.stem_norm, d = nn.BatchNorm2d(widths[0]), widths[0]
            self.names = []
            for i, width in enumerate(widths):
                for j in range(n):
                    self.names.append(f"block_{i}_{j}")
                    block = Block(d, width, 2 if i and not j else 1, project)
                    self.add_module(self.names[-1], block)
                    d = width
            self.head = nn.Linear(d, 5)

        def forward(self, x):
            x = f.relu(self.stem_norm(self.stem(x)))
            for name in self.names:
                x = getattr(self, name)(x)
            return self.head(x.mean((2, 3)))

    x, y = pictures(4, 3, 16, 16), torch.randint(5, (4,))
    for option in "AB":
        net = Net((4, 6, 8), 2, option == "B")
        golden(f"cifar_{option}", net, f"He et al. 4.2, option {option}, in torch", x, y)


def wide(torch):
    """Zagoruyko and Komodakis: BN-ReLU-conv twice; the projection sees the activated input."""
    from torch import nn
    from torch.nn import functional as f

    class Block(nn.Module):
        def __init__(self, d, width, stride):
            super().__init__()
            self.norm_0 = nn.BatchNorm2d(d)
            self.conv_0 = nn.Conv2d(d, width, 3, stride, 1, bias=False)
            self.norm_1 = nn.BatchNorm2d(width)
            self.conv_1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            if d != width:
                self.shortcut = nn.Conv2d(d, width, 1, stride, bias=False)

        def forward(self, x):
            active = f.relu(self.norm_0(x))
            if hasattr(self, "shortcut"):
                x = self.shortcut(active)
            return x + self.conv_1(f.relu(self.norm_1(self.conv_0(active))))

    class Net(nn.Module):
        def __init__(self, channels, width, n):
            super().__init__()
            self.stem, d = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False), channels[0]
            self.names = []
            for i, c in enumerate(channels):
                for j in range(n):
                    self.names.append(f"block_{i}_{j}")
                    block = Block(d, c * width, 2 if i and not j else 1)
                    self.add_module(self.names[-1], block)
                    d = c * width
            self.norm, self.head = nn.BatchNorm2d(d), nn.Linear(d, 5)

        def forward(self, x):
            x = self.stem(x)
            for name in self.names:
                x = getattr(self, name)(x)
            return self.head(f.relu(self.norm(x)).mean((2, 3)))

    x, y = pictures(4, 3, 16, 16), torch.randint(5, (4,))
    golden("wide", Net((4, 5, 6), 2, 2), "Zagoruyko & Komodakis WRN-16, in torch", x, y)


def unet(torch):
    """Ronneberger et al., figure 1; also padded, normalised, and with resized pictures."""
    from torch import nn
    from torch.nn import functional as f

    class Pair(nn.Module):
        def __init__(self, d, width, pad, norm):
            super().__init__()
            for i in range(2):
                conv = nn.Conv2d(d if i == 0 else width, width, 3, 1, pad, bias=norm is None)
                self.add_module(f"conv_{i}", conv)
                self.add_module(f"norm_{i}", norm(width) if norm else nn.Identity())

        def forward(self, x):
            x = f.relu(self.norm_0(self.conv_0(x)))
            return f.relu(self.norm_1(self.conv_1(x)))

    class Net(nn.Module):
        def __init__(self, channels, valid, resize, norm):
            super().__init__()
            pad, d, self.deep, self.resize = 0 if valid else 1, 1, len(channels) - 1, resize
            for i, width in enumerate(channels):
                self.add_module(f"down_{i}", Pair(d, width, pad, norm))
                d = width
            for i in reversed(range(self.deep)):
                width = channels[i]
                grow = nn.Conv2d(d, width, 3, 1, pad) if resize else None
                self.add_module(f"grow_{i}", grow or nn.ConvTranspose2d(d, width, 2, 2))
                self.add_module(f"up_{i}", Pair(2 * width, width, pad, norm))
                d = width
            self.head = nn.Conv2d(d, 3, 1)

        def forward(self, x):
            skips = []
            for i in range(self.deep):
                x = getattr(self, f"down_{i}")(x)
                skips.append(x)
                x = f.max_pool2d(x, 2)
            x = getattr(self, f"down_{self.deep}")(x)
            for i in reversed(range(self.deep)):
                if self.resize:
                    x = f.interpolate(x, scale_factor=2, mode="nearest")
                x, skip = getattr(self, f"grow_{i}")(x), skips[i]
                a, b = ((skip.shape[k] - x.shape[k]) // 2 for k in (2, 3))
                skip = skip[:, :, a : a + x.shape[2], b : b + x.shape[3]]
                x = getattr(self, f"up_{i}")(torch.cat([skip, x], 1))
            return self.head(x)

    cases = {
        "valid": (True, False, None, (44, 60)),
        "valid_resize": (True, True, None, (52, 56)),
        "batch": (False, True, nn.BatchNorm2d, (12, 16)),
        "group": (False, False, lambda width: nn.GroupNorm(2, width), (12, 16)),
    }
    for name, (valid, resize, norm, size) in cases.items():
        net = Net((4, 6, 8), valid, resize, norm)
        x = pictures(2, 1, *size)
        with torch.no_grad():
            y = torch.randint(3, fill(net)(x.double()).argmax(1).shape)
        golden(f"unet_{name}", net, "Ronneberger et al. figure 1, in torch", x, y)


if __name__ == "__main__":
    import torch

    torch.manual_seed(22)
    for part in (transformers_models, torchvision_models, cifar, wide, unet):
        part(torch)
