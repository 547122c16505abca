"""Write the golden numbers of a PyTorch twin of Kim's text network.

Run      python tests/references/make_textcnn.py     (needs torch and numpy, no jax)
Takes    a second on a CPU
Writes   torch_textcnn.npz

The twin is what `torch.nn` offers for arXiv:1408.5882: Embedding with padding_idx, one Conv1d for
each window with h - 1 zeros on both sides, ReLU, maximum over time, Linear. Windows that touch no
word are excluded from the maximum by hand. The weights come from `weights.filled` by their names.
Cases: "padded" (a mask) and "whole" (none).
"""

from __future__ import annotations

import torch
import weights
from torch import nn
from torch.nn import functional

CONFIG = {"vocabulary": 30, "classes": 3, "width": 8, "windows": [2, 3, 5], "maps": 6}


class TextCNN(nn.Module):
    """The twin."""

    def __init__(self, vocabulary, classes, width, windows, maps):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.convs = nn.ModuleDict(
            {str(h): nn.Conv1d(width, maps, h, padding=h - 1) for h in windows}
        )
        self.head = nn.Linear(len(windows) * maps, classes)

    def forward(self, tokens, mask):
        x = (self.embed(tokens) * mask[..., None]).transpose(1, 2)  # [b width t]
        found = []
        for h, conv in self.convs.items():
            y = functional.relu(conv(x))  # [b maps t+h-1]
            words = functional.conv1d(
                mask[:, None].float(), torch.ones(1, 1, int(h)), padding=int(h) - 1
            )
            found.append(y.masked_fill(words == 0, 0.0).amax(2))
        return self.head(torch.cat(found, 1))


def main():
    """Logits, loss and every gradient, with padding and without."""
    net = TextCNN(**CONFIG)
    shapes = {name: list(p.shape) for name, p in net.state_dict().items()}
    filled = weights.all_filled(shapes)
    net.load_state_dict({name: torch.tensor(x) for name, x in filled.items()})
    torch.manual_seed(3)
    tokens, labels = torch.randint(CONFIG["vocabulary"], (4, 9)), torch.randint(3, (4,))
    lengths = torch.tensor([9, 4, 1, 6])
    cases = {"whole": torch.ones(4, 9, dtype=bool), "padded": torch.arange(9) < lengths[:, None]}
    found = {"tokens": tokens, "labels": labels, "mask": cases["padded"]}
    for case, mask in cases.items():
        net.zero_grad()
        logits = net(tokens, mask)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        found |= {f"{case}/logits": logits, f"{case}/loss": loss}
        found |= {f"{case}/grads/{name}": p.grad.clone() for name, p in net.named_parameters()}
    about = {
        "reference": f"torch {torch.__version__.split('+')[0]} Embedding, Conv1d, Linear",
        "dtype": "float32",
        "config": CONFIG,
        "shapes": shapes,
    }
    weights.write("torch_textcnn", about, **found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
