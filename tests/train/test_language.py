"""Objectives of language models: the mean over tokens by the definition, and who sees what."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnkit as nk
from nnkit import data, metrics, models
from nnkit.core.ranges import ranges

V = 13
RNG = np.random.default_rng(0)
GPTS = {
    "learned": models.GPT(vocabulary=V, length=12, width=8, depth=2, heads=2),
    "rope": models.GPT(vocabulary=V, length=12, width=8, depth=2, heads=2, learned=False, rope=1e4),
}
DOCUMENTS = [RNG.integers(0, V, n).tolist() for n in (5, 3, 7, 2, 1, 6)]


def given(logits):
    """A model that gives its parameter [b t v], whatever it reads."""
    start = lambda key, x: ({"logits": jnp.asarray(logits)}, {})
    return start, lambda params, carry, x, key: (params["logits"], carry)


def log_softmax(logits):
    """In float64, the slow way."""
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def alone(documents=DOCUMENTS):
    """One document per row, padded at the end: the same labels as packed ones have."""
    tokens, labels = data.pad(documents, 12), data.pad([one[1:] for one in documents], 12)
    return {**tokens, "labels": labels["tokens"], "label_mask": labels["token_mask"]}


def started(task, batch, seed=0):
    """(params, carry) of fresh weights."""
    return jax.jit(task.init)(jax.random.key(seed), batch)


def evaluated(task, batch, seed=0):
    """(value, metrics) of fresh weights."""
    params, carry = task.init(jax.random.key(seed), batch)
    mean, (_, log) = jax.jit(lambda p, c, batch: task.loss(p, c, batch, None))(params, carry, batch)
    return float(mean.value), {name: float(m.value) for name, m in log.items()}


@functools.cache
def slope(name):
    """(task, weights, (params, batch) -> (value, gradient)) of a GPT, compiled per batch shape."""
    task = nk.causal_lm(GPTS[name])
    params, carry = started(task, alone(), seed=1)
    params = jax.tree.map(lambda x: 5 * x, params)  # far from uniform
    value = lambda p, batch: task.loss(p, carry, batch, None)[0].value
    return task, params, jax.jit(jax.value_and_grad(value))


# --- packing changes nothing ---
@pytest.mark.parametrize("name", list(GPTS))
def test_packed_logits_are_those_of_every_document_alone(name):
    model, packed, single = GPTS[name], data.pack(DOCUMENTS, 12), alone()
    assert packed["segments"].max() > 1
    params = slope(name)[1]
    x = {"segments": packed["segments"], "mask": packed["segments"] > 0}
    call = jax.jit(model.apply)
    together = np.asarray(call({"params": params}, packed["tokens"], **x))
    apart = np.asarray(call({"params": params}, single["tokens"], single["token_mask"]))
    found = {}
    for r, c in np.argwhere(packed["segments"] > 0):
        found.setdefault((r, packed["segments"][r, c]), []).append((r, c))
    for places in found.values():
        tokens = [packed["tokens"][place] for place in places]
        want = apart[DOCUMENTS.index(tokens), : len(tokens)]
        np.testing.assert_allclose(
            np.stack([together[place] for place in places]), want, rtol=1e-5, atol=1e-5
        )
    assert len(found) == len(DOCUMENTS)


@pytest.mark.parametrize("name", list(GPTS))
def test_packed_loss_and_gradient_are_those_of_every_document_alone(name):
    _, params, value = slope(name)
    a, grad_a = value(params, data.pack(DOCUMENTS, 12))
    b, grad_b = value(params, alone())
    np.testing.assert_allclose(a, b, rtol=1e-6)
    for x, y in zip(jax.tree.leaves(grad_a), jax.tree.leaves(grad_b)):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert any(float(jnp.abs(x).max()) > 1e-3 for x in jax.tree.leaves(grad_a))


def test_packing_without_segments_is_another_number():
    """The test above can fail: documents that see each other have another loss."""
    _, params, value = slope("rope")
    packed = data.pack(DOCUMENTS, 12)
    seen = {name: x for name, x in packed.items() if name != "segments"}
    assert abs(float(value(params, seen)[0] - value(params, packed)[0])) > 1e-3


@pytest.mark.parametrize("kind", ["packed", "alone", "left"])
def test_editing_masked_places_changes_nothing(kind):
    """Padding tokens, labels that do not count, and examples that fill the batch."""
    _, params, value = slope("rope")
    batch = data.pack(DOCUMENTS, 12) if kind == "packed" else alone()
    if kind == "left":
        rows = data.pad(DOCUMENTS, 12, side="left")
        labels = data.pad([one[1:] + [0] for one in DOCUMENTS], 12, side="left")["tokens"]
        counts = rows["token_mask"] & (np.arange(12) < 11)
        batch = rows | {"labels": labels, "label_mask": counts}
    real = batch["segments"] > 0 if kind == "packed" else batch["token_mask"]
    edited = dict(batch)
    edited["tokens"] = np.where(real, batch["tokens"], 7)
    edited["labels"] = np.where(batch["label_mask"], batch["labels"], -100)
    assert (edited["tokens"] != batch["tokens"]).any()
    (a, grad_a), (b, grad_b) = value(params, batch), value(params, edited)
    assert float(a) == float(b)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(grad_a), jax.tree.leaves(grad_b)))


def test_left_padding_is_right_padding():
    """Positions count real tokens: learned ones too."""
    for name in GPTS:
        _, params, value = slope(name)
        rows = data.pad(DOCUMENTS, 12, side="left")
        labels = data.pad([one[1:] + [0] for one in DOCUMENTS], 12, side="left")["tokens"]
        counts = rows["token_mask"] & (np.arange(12) < 11)
        left = rows | {"labels": labels, "label_mask": counts}
        np.testing.assert_allclose(value(params, left)[0], value(params, alone())[0], rtol=1e-6)


def test_examples_that_fill_a_batch_do_not_count():
    _, params, value = slope("rope")
    packed = data.pack(DOCUMENTS, 12)
    n = len(packed["tokens"])
    filled = {name: np.concatenate([x, np.zeros_like(x)]) for name, x in packed.items()}
    filled["mask"] = np.float32([1] * n + [0] * n)
    (a, grad_a), (b, grad_b) = value(params, packed), value(params, filled)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    for x, y in zip(jax.tree.leaves(grad_a), jax.tree.leaves(grad_b)):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


# --- causal_lm: the definition ---
def small():
    logits = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    labels = RNG.integers(0, 5, (3, 4)).astype(np.int32)
    labels[0, 3] = -100
    return logits, {"tokens": np.zeros((3, 4), np.int32), "labels": labels, "label_mask": mask}


def test_every_number_is_that_of_the_definition():
    logits, batch = small()
    batch["mask"] = np.float32([1, 1, 0])
    bytes_of = np.array([0, 1, 2, 3, 4])
    task = nk.causal_lm(given(logits), smoothing=0.1, z_loss=0.01, byte_lengths=bytes_of)
    value, log = evaluated(task, batch)
    log_p = log_softmax(logits)
    log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    loss = nats = right = weight = size = 0
    for b in range(2):
        for t in range(4):
            if batch["label_mask"][b, t]:
                y = batch["labels"][b, t]
                nats -= log_p[b, t, y]
                loss += -0.9 * log_p[b, t, y] - 0.1 * log_p[b, t].mean() + 0.01 * log_z[b, t] ** 2
                right += logits[b, t].argmax() == y
                size += bytes_of[y]
                weight += 1
    want = {"loss": loss, "nats": nats, "accuracy": right}
    want = {name: x / weight for name, x in want.items()}
    want["bits_per_byte"] = nats / math.log(2) / size
    assert sorted(set(log) - {*ranges(log)}) == sorted(want)
    for name, x in want.items():
        np.testing.assert_allclose(log[name], x, rtol=1e-5)
    np.testing.assert_allclose(value, log["loss"])
    perplexity = float(metrics.perplexity(log["nats"]))
    np.testing.assert_allclose(perplexity, math.exp(nats / weight), rtol=1e-5)
    by_hand = metrics.bits_per_byte(log["nats"], tokens=weight, bytes=size)
    np.testing.assert_allclose(log["bits_per_byte"], by_hand, rtol=1e-6)


def test_plain_loss_is_nats_and_weights_are_tokens():
    logits, batch = small()
    task = nk.causal_lm(given(logits))
    mean, (_, log) = task.loss({"logits": jnp.asarray(logits)}, {}, batch, None)
    assert float(mean.weight) == batch["label_mask"].sum() == float(log["accuracy"].weight)
    assert float(mean.total) == float(log["nats"].total) == float(log["loss"].total)
    whole = {"tokens": batch["tokens"], "labels": np.abs(batch["labels"]) % 5}
    assert float(task.loss({"logits": jnp.asarray(logits)}, {}, whole, None)[0].weight) == 12


def test_auxiliary_losses_weigh_as_their_tokens():
    logits, batch = small()
    extra = {"balance": np.float32([1, 2, 3]), "z": np.float32([4, 5, 6]), "mine": np.ones(3)}
    start, _ = given(logits)
    model = (start, lambda p, c, x, key: ((p["logits"], jax.tree.map(jnp.float32, extra)), c))
    tokens = batch["label_mask"].sum(1)
    balance, z = ((extra[name] * tokens).sum() / tokens.sum() for name in ("balance", "z"))
    value, log = evaluated(nk.causal_lm(model), batch)
    np.testing.assert_allclose(value, log["nats"] + 0.01 * balance + 0.001 * z, rtol=1e-6)
    np.testing.assert_allclose([log["balance"], log["z"], log["mine"]], [balance, z, 1], rtol=1e-6)
    value, log = evaluated(nk.causal_lm(model, aux={"mine": 2.0}), batch)
    np.testing.assert_allclose(value, log["nats"] + 2.0, rtol=1e-6)
    with pytest.raises(ValueError, match="aux names 'other', but the model gives"):
        evaluated(nk.causal_lm(model, aux={"other": 1.0}), batch)
    with pytest.raises(ValueError, match=r"gives logits alone; models.GPT\(experts"):
        evaluated(nk.causal_lm(given(logits), aux={"z": 1.0}), batch)
    odd = (start, lambda p, c, x, key: ((p["logits"], p["logits"]), c))
    with pytest.raises(TypeError, match=r"expected logits .* auxiliary losses"):
        evaluated(nk.causal_lm(odd), batch)


def test_experts_are_balanced_by_what_the_model_gives():
    model = models.GPT(
        vocabulary=V, length=12, width=8, depth=1, heads=2, experts=2, top_k=1, with_aux=True
    )
    task, batch = nk.causal_lm(model), data.pack(DOCUMENTS, 12)
    params, carry = started(task, batch)
    value = jax.jit(lambda batch: task.loss(params, carry, batch, None))
    mean, (_, log) = value(batch)
    segments = batch["segments"]
    call = jax.jit(lambda *x: model.apply({"params": params}, *x[:2], segments=x[2]))
    _, aux = call(batch["tokens"], segments > 0, segments)
    want = log["nats"].value + 0.01 * aux["balance"][0] + 0.001 * aux["z"][0]
    np.testing.assert_allclose(mean.value, want, rtol=1e-5)
    np.testing.assert_allclose(log["balance"].value, aux["balance"][0], rtol=1e-5)
    edited = batch | {"tokens": np.where(segments > 0, batch["tokens"], 7)}  # padding is no load
    assert float(value(edited)[0].total) == float(mean.total)


def test_a_text_is_learned_and_evaluated_token_by_token():
    letters = data.Characters.of("abc")
    text = b"abcaabbcc" * 9
    model = models.RecurrentLM(vocabulary=len(letters), width=8, depth=1)
    rows = {"length": 10, "tokenizer": letters}
    train = data.text(text, batch_size=4, **rows)
    held = data.text(text, batch_size=3, shuffle=False, **rows)
    task = nk.causal_lm(model, byte_lengths=letters.byte_lengths)
    step = nk.step(nk.gradient(task), optax.adam(3e-2))
    state = nk.init(step, jax.random.key(0), next(iter(train)))
    evaluation = nk.evaluate(task, held)
    before = evaluation(*step.weights(state))
    state, _ = nk.fit(step, state, train, steps=60, every={})
    params, carry = step.weights(state)
    after = evaluation(params, carry)
    assert after["nats"] < 0.6 * before["nats"] and before["nats"] < 1.5
    ids, total, call = letters.encode(text), 0.0, jax.jit(model.apply)
    for s in range(0, len(ids) - 1, 10):  # row after row, without batches
        piece = ids[s : s + 11]
        log_p = log_softmax(call({"params": params}, piece[None, :-1])[0])
        total -= log_p[np.arange(len(piece) - 1), piece[1:]].sum()
    np.testing.assert_allclose(after["nats"], total / (len(ids) - 1), rtol=1e-4)
    np.testing.assert_allclose(
        after["bits_per_byte"], total / math.log(2) / (len(text) - 1), rtol=1e-4
    )


def test_a_model_without_segments_refuses_packed_documents():
    batch = data.pack(DOCUMENTS, 12)
    lstm = models.RecurrentLM(vocabulary=V, width=8, depth=1)
    with pytest.raises(ValueError, match=r"RecurrentLM takes no argument segments=: it would not"):
        nk.causal_lm(lstm).init(jax.random.key(0), batch)
    bert = models.BERT(vocabulary=V, length=12, width=8, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"BERT takes no argument segments=.*nk\.data\.pad"):
        nk.masked_lm(bert, mask_id=12).init(jax.random.key(0), batch)
    jax.eval_shape(nk.causal_lm(lstm).init, jax.random.key(0), alone())  # a row each is well


# --- masked_lm ---
def chosen_of(key, tokens, **more):
    return jax.tree.map(np.asarray, nk.mask_tokens(key, tokens, mask_id=30, vocabulary=31, **more))


def test_masking_is_that_of_bert():
    """Counts are exact; 80/10/10 within four standard deviations of a binomial."""
    tokens = np.random.default_rng(1).integers(0, 29, (200, 100)).astype(np.int32)
    real = np.arange(100) < np.arange(200)[:, None] // 2
    special = (0, 1)
    seen, chosen = chosen_of(jax.random.key(0), tokens, special=special, token_mask=real)
    able = real & ~np.isin(tokens, special)
    assert not chosen[~able].any()
    n = able.sum(1)
    want = np.where(n == 0, 0, np.maximum(np.round(0.15 * n), 1))
    assert np.abs(chosen.sum(1) - want).max() == 0
    assert (seen[~chosen] == tokens[~chosen]).all()
    total = chosen.sum()
    hidden, same = (seen[chosen] == 30).sum(), (seen[chosen] == tokens[chosen]).sum()
    swapped = total - hidden - same
    by_chance = 0.1 / 28  # 28 ordinary tokens, one of which is the token itself
    for count, p in ((hidden, 0.8), (same, 0.1 + by_chance), (swapped, 0.1 - by_chance)):
        assert abs(count - p * total) < 4 * math.sqrt(total * p * (1 - p)), (count, p, total)
    assert not np.isin(seen[chosen & (seen != 30)], special).any()


def test_every_ordinary_token_and_place_is_equally_likely():
    tokens = np.full((4000, 10), 7, np.int32)
    seen, chosen = chosen_of(jax.random.key(2), tokens, special=(0,), share=0.3, hide=0.0, swap=1.0)
    assert (chosen.sum(1) == 3).all()
    places = chosen.sum(0)
    assert np.abs(places - 1200).max() < 4 * math.sqrt(4000 * 0.3 * 0.7)
    counts = np.bincount(seen[chosen], minlength=31)
    assert counts[0] == counts[30] == 0
    expected = chosen.sum() / 29
    chi = ((counts[1:30] - expected) ** 2 / expected).sum()
    assert chi < 28 + 4 * math.sqrt(2 * 28)


def test_evaluation_hides_the_same_in_any_batch():
    tokens = np.random.default_rng(3).integers(0, 30, (20, 16)).astype(np.int32)
    seen, chosen = chosen_of(None, tokens)
    order = np.random.default_rng(4).permutation(20)
    again, same = chosen_of(None, tokens[order])
    assert (again == seen[order]).all() and (same == chosen[order]).all()
    one, _ = chosen_of(None, tokens[5:6])
    assert (one == seen[5:6]).all()
    assert len({tuple(row) for row in chosen.tolist()}) > 10  # other texts, other places
    real = np.ones_like(tokens, bool)
    real[:, 12:] = False
    a, _ = chosen_of(None, tokens, token_mask=real)
    b, _ = chosen_of(None, np.where(real, tokens, 3), token_mask=real)
    assert (a == b)[real].all()  # what stands in the padding does not matter


def test_training_hides_something_else_every_time():
    tokens = np.random.default_rng(3).integers(0, 30, (8, 64)).astype(np.int32)
    a, b = (chosen_of(jax.random.key(i), tokens)[1] for i in (0, 1))
    assert (a != b).any(1).all()
    assert (chosen_of(jax.random.key(0), tokens)[1] == a).all()


def test_only_chosen_tokens_are_in_the_loss():
    tokens = np.random.default_rng(5).integers(1, 29, (6, 20)).astype(np.int32)
    batch = {"tokens": tokens, "token_mask": np.arange(20) < np.array([[20], [9]] * 3)}
    logits = np.random.default_rng(6).normal(size=(6, 20, 31)).astype(np.float32)
    task = nk.masked_lm(given(logits), mask_id=30, special=(0,), vocabulary=31)
    key = jax.random.key(9)
    params = {"logits": jnp.asarray(logits)}

    @jax.jit
    def value(params, key):
        mean = task.loss(params, {}, batch, key)[0]
        return mean.value, mean

    (_, mean), grad = jax.value_and_grad(value, has_aux=True)(params, key)
    grad = grad["logits"]
    chosen = np.abs(np.asarray(grad)).max(-1) > 0
    assert (chosen.sum(1) == [3, 1] * 3).all() and not chosen[~batch["token_mask"]].any()
    log_p = log_softmax(logits)
    want = -sum(log_p[b, t, tokens[b, t]] for b, t in np.argwhere(chosen)) / chosen.sum()
    np.testing.assert_allclose(mean.value, want, rtol=1e-5)
    assert float(mean.weight) == chosen.sum()


def test_the_model_reads_the_corrupted_tokens():
    """A model that repeats what it reads is right for the 10 % that are left as they are."""
    start = lambda key, x: ({"scale": jnp.float32(9)}, {})
    model = (start, lambda p, c, x, key: (p["scale"] * jax.nn.one_hot(x, 31), c))
    tokens = np.random.default_rng(7).integers(0, 30, (400, 40)).astype(np.int32)
    _, log = evaluated(nk.masked_lm(model, mask_id=30, vocabulary=31), {"tokens": tokens})
    p = 0.1 + 0.1 / 30
    assert abs(log["accuracy"] - p) < 4 * math.sqrt(p * (1 - p) / 2400)


def test_bert_reads_masks_and_types_and_evaluates_the_same_twice():
    bert = models.BERT(vocabulary=V, length=12, width=8, depth=1, heads=2, dropout=0.0)
    task, batch = nk.masked_lm(bert, mask_id=12, special=(0,)), data.pad(DOCUMENTS, 12)
    batch["token_types"] = (np.arange(12) > 2).astype(np.int32) + 0 * batch["tokens"]
    params, carry = started(task, batch)
    value = jax.jit(lambda batch, key=None: task.loss(params, carry, batch, key)[0])
    mean = value(batch)
    assert float(value(batch).total) == float(mean.total)
    edited = batch | {"tokens": np.where(batch["token_mask"], batch["tokens"], 3)}
    np.testing.assert_allclose(value(edited).total, mean.total, rtol=1e-6)
    other = batch | {"token_types": 0 * batch["tokens"]}
    assert abs(float(value(other).total - mean.total)) > 1e-4
    a, b = (value(batch, jax.random.key(i)).total for i in (0, 1))
    assert float(a) != float(b)


# --- seq2seq ---
def test_a_target_is_scored_as_by_hand():
    sizes = {"width": 8, "depth": 1, "heads": 2, "head_dim": 4, "hidden": 8, "dropout": 0.0}
    model = models.EncDec(vocabulary=V, **sizes)
    source = data.pad([[1, 2, 3], [4, 5], [6]], 4)
    target = data.pad([[3, 2, 12], [5, 12], [7, 8, 9, 12]], 4)
    batch = {"source": source["tokens"], "source_mask": source["token_mask"]}
    batch |= {"target": target["tokens"], "target_mask": target["token_mask"]}
    lengths = np.r_[np.ones(V - 1, int), 0]
    task = nk.seq2seq(model, begin=11, smoothing=0.2, byte_lengths=lengths)
    params, carry = started(task, batch)
    value = jax.jit(lambda batch: task.loss(params, carry, batch, None))
    mean, (_, log) = value(batch)
    call, nats, loss, weight, size = jax.jit(model.apply), 0, 0, 0, 0
    for s, t in zip([[1, 2, 3], [4, 5], [6]], [[3, 2, 12], [5, 12], [7, 8, 9, 12]]):
        read = np.array([[11, *t[:-1]]])  # alone, without padding
        log_p = log_softmax(call({"params": params}, np.array([s]), read)[0])
        for i, y in enumerate(t):
            nats -= log_p[i, y]
            loss -= 0.8 * log_p[i, y] + 0.2 * log_p[i].mean()
            weight, size = weight + 1, size + lengths[y]
    np.testing.assert_allclose(mean.value, loss / weight, rtol=1e-5)
    np.testing.assert_allclose(log["nats"].value, nats / weight, rtol=1e-5)
    np.testing.assert_allclose(log["bits_per_byte"].value, nats / math.log(2) / size, rtol=1e-5)
    assert (float(mean.weight), float(log["bits_per_byte"].weight)) == (weight, size)
    edited = dict(batch)
    for name in ("source", "target"):
        edited[name] = np.where(batch[f"{name}_mask"], batch[name], 10)
    np.testing.assert_allclose(value(edited)[0].total, mean.total, rtol=1e-6)
    whole = {"source": batch["source"], "target": batch["target"]}
    assert float(value(whole)[0].weight) == 12  # without masks everything counts


# --- wrong input ---
def test_missing_fields_are_named():
    task, key = nk.causal_lm(GPTS["rope"]), jax.random.key(0)
    with pytest.raises(KeyError, match=r"fields \['tokens'\], causal_lm needs 'labels'"):
        task.init(key, {"tokens": np.zeros((1, 3), int)})
    batch = alone()
    del batch["label_mask"]
    with pytest.raises(KeyError, match="has 'token_mask' but no 'label_mask'"):
        task.init(key, batch)
    with pytest.raises(KeyError, match="masked_lm needs 'tokens'"):
        nk.masked_lm(GPTS["rope"], mask_id=12).init(key, {"x": np.zeros(1)})
    with pytest.raises(KeyError, match="seq2seq needs 'target'"):
        nk.seq2seq(models.EncDec()).init(key, {"source": np.zeros((1, 2), int)})


def test_ids_outside_the_vocabulary_are_named():
    task, key = nk.causal_lm(GPTS["rope"]), jax.random.key(0)
    batch = alone()
    wrong = batch | {"labels": np.where(batch["label_mask"], V, 0)}
    with pytest.raises(ValueError, match="labels run from 0 to 13, but the logits have 13 classes"):
        task.init(key, wrong)
    wrong = batch | {"tokens": batch["tokens"] + V}
    with pytest.raises(ValueError, match="13"):
        task.init(key, wrong)
    with pytest.raises(ValueError, match=r"byte_lengths has shape \(256,\), expected \(v\) with v"):
        nk.causal_lm(GPTS["rope"], byte_lengths=data.Bytes().byte_lengths).init(key, batch)
    params = {"logits": jnp.zeros((1, 2, 5))}
    short = nk.causal_lm(given(params["logits"]), byte_lengths=np.ones(3))
    batch = {"tokens": np.zeros((1, 2), np.int32), "labels": np.array([[0, 4]], np.int32)}
    with pytest.raises(ValueError, match="a label is 4, but byte_lengths has 3 tokens"):
        short.init(key, batch)
    log = jax.jit(short.loss)(params, {}, batch, None)[1][1]
    assert math.isnan(log["bits_per_byte"].value)


def test_shapes_that_do_not_fit_are_named():
    logits, batch = small()
    with pytest.raises(ValueError, match=r"label_mask has shape \(3, 3\), expected \(b t\)"):
        evaluated(nk.causal_lm(given(logits)), batch | {"label_mask": np.ones((3, 3), bool)})
    with pytest.raises(ValueError, match=r"mask has shape \(2,\), expected \(b\)"):
        evaluated(nk.causal_lm(given(logits)), batch | {"mask": np.ones(2)})
    with pytest.raises(ValueError, match=r"labels has shape \(3, 4\), expected \(b t\) with t = 2"):
        evaluated(nk.causal_lm(given(logits[:, :2])), batch)
    target = {"source": np.ones((1, 2), int), "target": np.ones((1, 2), int)}
    with pytest.raises(ValueError, match=r"target_mask has shape \(1, 3\)"):
        nk.seq2seq(given(logits)).init(None, target | {"target_mask": np.ones((1, 3))})


def test_models_that_do_not_fit_are_named():
    with pytest.raises(TypeError, match="expected a Flax Linen module"):
        nk.causal_lm(models.GPT)
    with pytest.raises(ValueError, match=r"tuple has no field `vocabulary`; say vocabulary="):
        nk.masked_lm(given(0), mask_id=3)
    batch = {"source": np.ones((1, 2), int), "target": np.ones((1, 2), int)}
    batch["source_mask"] = np.ones((1, 2), bool)
    with pytest.raises(ValueError, match="GPT takes no argument source_mask="):
        nk.seq2seq(GPTS["rope"]).init(jax.random.key(0), batch)


def test_masks_that_are_none_are_named():
    tokens, key = np.ones((2, 4), np.int32), jax.random.key(0)
    mask = functools.partial(nk.mask_tokens, key, tokens, mask_id=3, vocabulary=4)
    with pytest.raises(ValueError, match=r"mask_id=4 and special=.* give the model one token more"):
        mask(mask_id=4)
    with pytest.raises(ValueError, match="all 4 tokens are special"):
        mask(special=range(4))
    with pytest.raises(ValueError, match=r"share is 15, expected a number in \(0, 1\]"):
        mask(share=15)
    with pytest.raises(ValueError, match=r"hide=0\.8 and swap=0\.3, expected shares"):
        mask(swap=0.3)
    with pytest.raises(TypeError, match="tokens is float32, expected integer ids"):
        nk.mask_tokens(key, jnp.ones((1, 2)), mask_id=3, vocabulary=4)
    with pytest.raises(ValueError, match=r"token_mask has shape \(2, 3\)"):
        mask(token_mask=np.ones((2, 3), bool))
