"""What is saved on any devices by any number of processes is restored on any others, bit by bit."""

from __future__ import annotations

import hosts_program
import jax.numpy as jnp
import launching
import numpy as np
import pytest

import nnkit as nk
from nnkit.checkpoint import Checkpoints, disk

ONE = (1, 2, 4, 8)
TWO = (2, 4, 8)  # devices in all, half of them in each process


def test_pairs_of_device_counts_in_one_process(tmp_path):
    for n in ONE:
        with Checkpoints(tmp_path / f"1x{n}") as saver:
            saver.save(1, hosts_program.state_of(n))
    digests = {hosts_program.saved(tmp_path, f"1x{n}") for n in ONE}
    assert len(digests) == 1
    for n in ONE:
        for m in ONE:
            assert {hosts_program.restored(tmp_path, f"1x{n}", m)} == digests


@pytest.mark.nightly
def test_all_pairs_of_topologies(tmp_path):
    for n in ONE:
        with Checkpoints(tmp_path / f"1x{n}") as saver:
            saver.save(1, hosts_program.state_of(n))
    for n in TWO:
        launching.Job(tmp_path, "save", f"2x{n}", devices=n // 2).found()
    names = [f"1x{n}" for n in ONE] + [f"2x{n}" for n in TWO]
    digest = hosts_program.saved(tmp_path, "1x1")
    pairs = 0
    for m in TWO:
        for found in launching.Job(tmp_path, "restore", *names, devices=m // 2).found():
            assert found == [[digest, digest]] * len(names)
        pairs += len(names)
    for m in ONE:
        for name in names:
            assert hosts_program.restored(tmp_path, name, m) == digest
            pairs += 1
    assert pairs == 49
    assert nk.checkpoint.verify(tmp_path / "2x8") == []


def saved(tmp_path, **tree):
    with Checkpoints(tmp_path) as saver:
        saver.save(1, tree)
    return saver


BODY = {"layer": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}


def zeros(tree):
    return {k: zeros(v) if isinstance(v, dict) else jnp.zeros_like(v) for k, v in tree.items()}


def test_parameters_only(tmp_path):
    saver = saved(tmp_path, params=BODY, opt={"m": jnp.zeros(4)})
    assert nk.digest(saver.restore(zeros(BODY), under="params").state) == nk.digest(BODY)
    assert nk.digest(saver.restore(zeros(BODY), 1, under="params").state) == nk.digest(BODY)
    one = saver.restore(jnp.zeros((2, 3)), under="params/layer/kernel").state
    assert one.tolist() == BODY["layer"]["kernel"].tolist()
    with pytest.raises(ValueError, match=r"under names 'param', which .* perhaps you meant 'param"):
        saver.restore(zeros(BODY), under="param")
    with pytest.raises(ValueError, match=r"opt/m was saved as float32\[4\], the model has none"):
        saver.restore({"params": zeros(BODY)})
    with pytest.raises(
        ValueError, match=r"layer/kernel was saved as float32\[2,3\], the model wan"
    ):
        saver.restore({"layer": {**zeros(BODY)["layer"], "kernel": jnp.zeros(2)}}, under="params")


def test_renamed_parts(tmp_path):
    saver = saved(tmp_path, params=BODY, opt={"m": jnp.zeros(4)})
    new = {"dense": {"weight": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    names = {"layer": "dense", "layer/kernel": "dense/weight"}  # the longest that fits counts
    state = saver.restore(new, under="params", rename=names).state
    assert state["dense"]["weight"].tolist() == BODY["layer"]["kernel"].tolist()
    whole = {"model": zeros(BODY), "opt": {"m": jnp.ones(4)}}
    state = saver.restore(whole, rename={"params": "model"}).state
    assert nk.digest(state["model"]) == nk.digest(BODY)
    with pytest.raises(ValueError, match=r"rename names 'parms', .* perhaps you meant 'params'"):
        saver.restore(whole, rename={"parms": "model"})
    with pytest.raises(ValueError, match=r"would both be 'layer/bias': rename them"):
        saver.restore(new, under="params", rename={"layer/kernel": "layer/bias"})
    with pytest.raises(ValueError, match=r"dense/weight is not in it"):
        saver.restore(new, under="params", rename={"layer": "dense"})


def test_large_states_are_read_a_few_leaves_at_a_time(tmp_path, monkeypatch):
    tree = {f"w{i}": jnp.full((100,), i, jnp.float32) for i in range(7)} | {"n": jnp.zeros((0,))}
    saver = saved(tmp_path, **tree)
    monkeypatch.setattr(disk, "_TOGETHER", 900)
    held = []
    read = disk.read
    monkeypatch.setattr(disk, "read", lambda *a: held.append(len(a[1])) or read(*a))
    assert nk.digest(saver.restore(zeros(tree)).state) == nk.digest(tree)
    assert sum(held) == len(tree)
    assert max(held) <= 3


def test_a_damaged_leaf_is_found_in_a_part_too(tmp_path):
    saver = saved(tmp_path, params=BODY, opt=np.arange(4000.0))
    data = max((tmp_path / "00000001").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(nk.checkpoint.CorruptCheckpoint, match="has sha256"):
        saver.restore(zeros(BODY), 1, under="params")
