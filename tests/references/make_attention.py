"""Write the golden numbers of attention, embeddings, positions and mixtures of experts.

Run      python tests/references/make_attention.py     (needs torch, transformers and numpy, no jax)
Takes    seconds on a CPU
Writes   attention_torch.npz attention_transformers.npz

Weights and inputs are `weights.filled(name, shape)`, so that the files hold outputs and gradients
only. The loss is the sum of output times cotangent, with a cotangent filled the same way. All is
float32 but for what says float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from weights import filled, write

B, T, S, WIDTH, HEADS = 2, 5, 7, 8, 2
PADDED = (3, 7)  # real keys of each row of the context


def given(name, *shape):
    """An input of that name as a leaf that keeps its gradient."""
    return torch.from_numpy(filled(name, shape)).requires_grad_()


def load(module):
    """The module with weights made from their names, and {name: shape}."""
    shapes = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    module.load_state_dict({n: torch.from_numpy(filled(n, s)) for n, s in shapes.items()})
    return module, shapes


def pulled(y, module, **inputs):
    """Output, and the gradients of sum(y cotangent) by name."""
    (y * torch.from_numpy(filled("cotangent", y.shape))).sum().backward()
    weights = {} if module is None else dict(module.named_parameters())
    grads = {f"grads/{name}": p.grad for name, p in {**weights, **inputs}.items()}
    return {"y": y, **grads}


def under(case, arrays):
    return {f"{case}/{name}": x.detach().clone() for name, x in arrays.items()}


def multihead():
    """nn.MultiheadAttention: to itself, causal, with padded keys, and to a context."""
    out, hidden = {}, torch.arange(S)[None] >= torch.tensor(PADDED)[:, None]
    later = torch.ones(S, S, dtype=torch.bool).triu(1)
    cases = {
        "self": {},
        "causal": {"attn_mask": later},
        "padded": {"key_padding_mask": hidden},
    }
    for case, options in cases.items():
        net, shapes = load(torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
        x = given("x", B, S, WIDTH)
        y, p = net(x, x, x, average_attn_weights=False, **options)
        out |= under(f"mha_{case}", {**pulled(y, net, x=x), "weights": p})
    net, shapes = load(torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    x, c = given("x", B, T, WIDTH), given("context", B, S, WIDTH)
    y, p = net(x, c, c, key_padding_mask=hidden, average_attn_weights=False)
    out |= under("mha_cross", {**pulled(y, net, x=x, context=c), "weights": p})
    return out, {name: list(s) for name, s in shapes.items()}


def scaled():
    """functional.scaled_dot_product_attention: grouped, causal, with a bias, with a mask."""
    out, seen = {}, torch.arange(S)[None] < torch.tensor(PADDED)[:, None]
    cases = {
        "plain": (T, {}),
        "causal": (S, {"is_causal": True}),
        "mask": (T, {"attn_mask": seen[:, None, None]}),
        "bias": (T, {"scale": 0.5}),
    }
    for case, (t, options) in cases.items():
        q, k, v = given("q", B, t, 4, 6), given("k", B, S, 2, 6), given("v", B, S, 2, 6)
        inputs = {"q": q, "k": k, "v": v}
        if case == "bias":
            inputs["bias"] = options["attn_mask"] = given("bias", 1, 4, t, S)
        heads = (x.transpose(1, 2) for x in (q, k, v))
        y = functional.scaled_dot_product_attention(*heads, enable_gqa=True, **options)
        out |= under(f"sdpa_{case}", pulled(y.transpose(1, 2), None, **inputs))
    return out


def embedding():
    net, _ = load(torch.nn.Embedding(11, WIDTH))
    tokens = torch.tensor([[1, 10, 0], [1, 1, 7]])
    return under("embedding", pulled(net(tokens), net)) | {"embedding/tokens": tokens}


def rotations():
    """q and k turned by Llama (half) and GPT-J (interleaved), at positions 3 to 3 + S - 1."""
    from transformers import LlamaConfig
    from transformers.models.gptj import modeling_gptj as gptj
    from transformers.models.llama import modeling_llama as llama

    out, positions = {}, torch.arange(3, 3 + S)
    config = LlamaConfig(hidden_size=16, num_attention_heads=2, head_dim=8)
    q, k = given("q", B, S, 2, 8), given("k", B, S, 2, 8)
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, positions[None].expand(B, -1))
    turned = llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    out |= under("llama", {"q": turned[0], "k": turned[1]})
    table = gptj.create_sinusoidal_positions(16, 8)[positions][None]
    sin, cos = table[..., :4], table[..., 4:]
    turned = [gptj.apply_rotary_pos_emb(x, sin, cos) for x in (q, k)]
    return out | under("gptj", {"q": turned[0], "k": turned[1]})


def biases():
    """Slopes of BLOOM for 1 to 20 heads, and the buckets of T5 for distances -200 to 200."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.t5.modeling_t5 import T5Attention

    out, two = {}, torch.ones(1, 2)
    for heads in range(1, 21):
        out[f"alibi/{heads}"] = build_alibi_tensor(two, heads, torch.float32)[:, 0, 1]
    distance = torch.arange(-200, 201)
    for both in (True, False):
        out[f"bucket/{both}"] = T5Attention._relative_position_bucket(distance, both, 32, 128)
    return out


def mixture():
    """MixtralSparseMoeBlock and the balance loss, with 2 of 4 experts and with 1."""
    from transformers import MixtralConfig
    from transformers.models.mixtral import modeling_mixtral as mixtral

    out, shapes, kept = {}, {}, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    for k in (1, 2):
        config = MixtralConfig(
            hidden_size=WIDTH, intermediate_size=12, num_local_experts=4, num_experts_per_tok=k
        )
        net, shapes = load(mixtral.MixtralSparseMoeBlock(config))
        x = given("x", B, T, WIDTH)
        y = net(x * 1)
        logits = net.gate(x.reshape(-1, WIDTH))[0]
        balance = mixtral.load_balancing_loss_func((logits,), 4, k)
        masked = mixtral.load_balancing_loss_func((logits,), 4, k, kept)
        found = {**pulled(y, net, x=x), "balance": balance, "balance_masked": masked}
        out |= under(f"mixtral_{k}", found)
    return out, {name: list(s) for name, s in shapes.items()}


def main():
    import transformers

    torch.manual_seed(0)
    about = {"dtype": "float32", "torch": torch.__version__, "padded": PADDED}
    found, shapes = multihead()
    write("attention_torch", {**about, "shapes": shapes}, **found, **scaled(), **embedding())
    found, shapes = mixture()
    about |= {"transformers": transformers.__version__, "shapes": shapes}
    write("attention_transformers", about, **found, **rotations(), **biases())
    for name in ("attention_torch", "attention_transformers"):
        with np.load(f"{__file__.rsplit('/', 1)[0]}/{name}.npz") as file:
            assert all(np.isfinite(file[k]).all() for k in file.files if k != "about")


if __name__ == "__main__":
    main()
