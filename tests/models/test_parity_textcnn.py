"""TextCNN equals a PyTorch twin: logits, loss and every gradient, with padding and without."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import same
from references.weights import all_filled, part, read

from nnkit import losses, models


def ours(arrays):
    """{name: torch's array} as our tree."""
    tree = {"embed": {"embedding": arrays["embed.weight"]}}
    tree["head"] = {"kernel": arrays["head.weight"].T, "bias": arrays["head.bias"]}
    for name in arrays:
        if name.startswith("convs."):
            h, kind = name.split(".")[1:]
            x = arrays[name]
            conv = tree.setdefault(f"conv_{h}", {})
            if kind == "weight":
                conv["kernel"] = x.transpose(2, 1, 0)  # torch: [out in h]
            else:
                conv["bias"] = x
    return jax.tree.map(jnp.asarray, tree)


@pytest.mark.parametrize("case", ["whole", "padded"])
def test_textcnn_gives_the_logits_loss_and_gradients_of_torch(case):
    about, g = read("torch_textcnn")
    model = models.TextCNN(**about["config"], dropout=0.0)
    tokens, labels = g["tokens"].astype(np.int32), g["labels"].astype(np.int32)
    mask = jnp.asarray(g["mask"]) if case == "padded" else None

    def loss(params):
        logits = model.apply({"params": params}, tokens, mask)
        return losses.cross_entropy(logits, labels).mean(), logits

    params = ours(all_filled(about["shapes"]))
    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
    found = {"logits": logits, "loss": value, "grads": grads}
    want = {"logits": g[f"{case}/logits"], "loss": g[f"{case}/loss"]}
    want["grads"] = ours(part(g, f"{case}/grads/"))
    same("models.TextCNN", about["reference"], found, want)
