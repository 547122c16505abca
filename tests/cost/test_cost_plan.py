"""`nk.plan` on CPU devices: bytes by arithmetic, what fits, what is sent, what is kept."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit.cost import Assumptions, chip, target
from nnkit.cost.budget import budget, roofline
from nnkit.cost.compiling import figures, kept_in, refusal, said_while, versions
from nnkit.cost.search import largest

WIDTHS = (64, 64, 8)
MATRICES, VECTORS = 32 * 64 + 64 * 64, 64 + 64 + 8  # split by fsdp, and too small for it
LAST = 64 * 8
N = MATRICES + VECTORS + LAST  # weights


def quiet(line):
    pass


def adam(**changes):
    task = nk.supervised(nk.models.MLP(WIDTHS), nk.losses.cross_entropy)
    gradient = nk.gradient(task)
    gradient = nk.accumulate(gradient, changes["n"]) if changes.get("n") else gradient
    return nk.step(gradient, optax.adam(1e-3))


def batch(b=64):
    return {
        "x": jax.ShapeDtypeStruct((b, 32), jnp.float32),
        "y": jax.ShapeDtypeStruct((b,), jnp.int32),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def plan(folder):
    """nk.plan that says nothing, and remembers what it compiled."""

    def made(step, batch, *args, **options):
        return nk.plan(step, batch, *args, **{"say": quiet, "folder": folder} | options)

    return made


def test_bytes_of_parameters_and_moments_are_the_arithmetic(plan):
    found = plan(adam(), batch(), "cpu:1")
    assert found.parameters == N
    assert found.memory.parameters == 4 * N
    assert found.memory.state == 3 * 4 * N + 4 + 4 + 8  # weights and two moments; counts; a key
    assert found.memory.batch == 64 * (32 + 1) * 4
    m = found.memory
    assert m.arguments == m.state + m.batch  # as the compiler says too
    assert m.aliased == m.state  # the new state takes the place of the old one
    assert m.peak == m.arguments + m.outputs - m.aliased + m.temporaries
    assert found.fits
    assert (found.units, found.amount, found.batch_size) == ("examples", 64, 64)


@pytest.mark.parametrize("n", [2, 8])
def test_fsdp_shows_its_share_of_the_bytes(plan, n):
    found = plan(adam(), batch(), f"cpu:{n}", mesh={"fsdp": n})
    own = MATRICES // n + VECTORS + LAST  # leaves under 1,024 numbers stay whole
    assert found.memory.parameters == 4 * own
    assert found.memory.state == 3 * 4 * own + 4 + 4 + 8
    assert found.memory.batch == 64 * 33 * 4 // n
    assert found.memory.arguments == found.memory.state + found.memory.batch
    kinds = {c.kind for c in found.collectives}
    assert "all-gather" in kinds
    assert found.mesh == {"fsdp": n}


def test_data_parallel_sends_the_gradient_once(plan):
    found = plan(adam(), batch(), "cpu:4")
    assert found.mesh == {"data": 4}
    assert found.memory.state == 3 * 4 * N + 16
    assert {c.kind for c in found.collectives} == {"all-reduce"}
    payload = sum(c.payload for c in found.collectives)
    assert payload == pytest.approx(4 * N, rel=0.01)  # and the metrics
    assert found.moved == pytest.approx(payload * 2 * 3 / 4)


def test_a_loop_multiplies_what_is_in_it(plan):
    once = plan(adam(), batch(), "cpu:4", mesh={"fsdp": 4})
    loop = plan(adam(n=4), batch(), "cpu:4", mesh={"fsdp": 4})
    assert loop.flops.products == once.flops.products
    assert loop.memory.batch == once.memory.batch
    assert not loop.notes


def test_a_mesh_of_two_axes_takes_both_rules(plan):
    model = nk.models.GPT(vocabulary=16, length=8, width=32, depth=1, heads=2)
    step = nk.step(nk.gradient(nk.causal_lm(model)), optax.sgd(0.1))
    tokens = jax.ShapeDtypeStruct((4, 8), jnp.int32)
    found = plan(
        step, {"tokens": tokens, "labels": tokens}, "cpu:4", mesh={"fsdp": 2, "tensor": 2},
        model=model, tokens=1e6,
    )  # fmt: skip
    whole = plan(step, {"tokens": tokens, "labels": tokens}, "cpu:1", model=model)
    assert found.memory.parameters < whole.memory.parameters / 2
    assert (found.units, found.amount) == ("tokens", 32)
    assert found.flops == whole.flops
    n = whole.parameters - 8 * 32  # without the positions
    assert whole.formula == 6 * n * 32 + 12 * 32 * 8 * 32
    assert whole.formula_of == "6 N D + 12 L d T D"


def test_too_large_a_batch_is_refused_with_the_largest_that_fits(plan):
    small = plan(adam(), batch(8), "cpu:1").memory.peak
    room = {"memory": small + 40_000}
    found = plan(adam(), batch(512), "cpu:1", chip=room)
    assert not found.fits
    low, high = found.largest
    assert high == low + 1
    assert plan(adam(), batch(low), "cpu:1", chip=room).fits
    assert not plan(adam(), batch(high), "cpu:1", chip=room, search=False).fits
    lines = str(found).splitlines()
    assert any(line.split() == ["fits", "NO"] for line in lines)
    assert any(f"{low:,} examples ({high:,} do not fit)" in line for line in lines)


def test_the_largest_batch_keeps_to_what_the_step_and_the_mesh_divide(plan):
    found = plan(adam(n=4), batch(64), "cpu:2", chip={"memory": 180_000}, search=True)
    low, high = found.largest
    assert low % 4 == 0  # two devices, four slices
    assert high == low + 4


def test_nothing_fits_is_said(plan):
    found = plan(adam(), batch(64), "cpu:1", chip={"memory": 1000})
    assert found.largest == (0, 1)
    assert "none: even 1 examples do not fit" in str(found)


@pytest.mark.parametrize("granule", [1, 8])
@pytest.mark.parametrize("start", [1, 8, 100, 5000])
def test_the_search_finds_the_largest_of_any_growing_memory(start, granule):
    rng = np.random.default_rng(start)
    peaks = np.cumsum(rng.exponential(1.0, 5001)) + 50.0 * np.sqrt(np.arange(5001))
    limit = float(peaks[1234])
    asked = []

    def peak(b):
        asked.append(b)
        return float(peaks[min(b, 5000)])

    low, high = largest(peak, limit, start=start, granule=granule, tries=40)
    assert low == 1234 // granule * granule
    assert high == low + granule
    assert len(asked) == len(set(asked)) <= 20


def test_the_search_needs_no_numbers_and_stops():
    refuse = lambda b: None if b > 37 else 1.0
    assert largest(refuse, 10.0, start=8, tries=30) == (37, 38)
    assert largest(lambda b: 1.0, 10.0, start=8, tries=3)[1] is None
    with pytest.raises(ValueError, match=r"largest\(start=0, granule=1, tries=16\)"):
        largest(refuse, 1.0, start=0)


def test_figures_are_kept_by_the_hash_of_the_program(tmp_path):
    said = []
    options = {"folder": tmp_path, "say": said.append}
    first = nk.plan(adam(), batch(), "cpu:1", **options)
    assert not first.cached
    assert said[0].startswith("compiling for cpu:1, batch 64 ...")
    again = nk.plan(adam(), batch(), "cpu:1", **options)
    assert again.cached
    assert len(list(tmp_path.iterdir())) == 1
    assert "compiled before" in said[-1]
    assert len(said[-1]) < 60 + len(str(tmp_path))
    assert [line.split()[:2] for line in str(first).splitlines()][-1] == ["compiled", "in"]
    assert str(again).splitlines()[-1].split()[:4] == ["compiled", "from", "the", "cache;"]
    assert dataclasses.replace(again, cached=False) == first
    other = nk.plan(adam(), batch(32), "cpu:1", **options)
    assert not other.cached
    nk.plan(adam(), batch(), "cpu:1", mesh={"data": 1}, **options)
    assert len(list(tmp_path.iterdir())) >= 2
    (file, *_) = tmp_path.glob("*.json")
    file.write_text("{")  # cut short: made again, not trusted
    for b in (64, 32):
        assert nk.plan(adam(), batch(b), "cpu:1", **options).fits


def test_where_figures_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("NNKIT_CACHE", str(tmp_path))
    assert kept_in() == tmp_path / "plans"
    monkeypatch.setenv("NNKIT_CACHE", "0")
    assert kept_in() is None
    assert nk.plan(adam(), batch(8), "cpu:1", say=quiet).cached is False


def test_a_long_compile_says_that_it_goes_on():
    import time

    said = []
    with said_while("compiling", said.append, often=0.02):
        time.sleep(0.1)
    assert said[0] == "compiling ..."
    assert said.count("compiling: 0 s so far") >= 2
    assert said[-1] == "compiling: 0 s"


@pytest.mark.parametrize(
    ("message", "needed", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 64.50G of 15.75G hbm.",
            64.5,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM (64.01G) exceeds available HBM (15.75G)",
            64.01,
            15.75,
        ),
    ],
)
def test_a_refusal_of_the_compiler_is_read(message, needed, limit):
    found = refusal(message)
    assert found["needed"] == int(needed * 2**30)
    assert found["limit"] == int(limit * 2**30)
    assert found["refused"].startswith("RESOURCE_EXHAUSTED")
    assert refusal("RESOURCE_EXHAUSTED: no number")["needed"] is None
    assert refusal("INVALID_ARGUMENT: something else") == {}


def test_a_compiler_that_refuses_makes_a_plan_that_does_not_fit(tmp_path):
    class Refused:
        def as_text(self):
            return "text"

        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 3G of 2G hbm.")

    found = figures(Refused(), "v5e:2x2", tmp_path, quiet)
    assert found["needed"] == 3 * 2**30
    assert json.loads(next(tmp_path.iterdir()).read_text())["refused"]

    class Broken(Refused):
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        figures(Broken(), "v5e:2x2", None, quiet)


def test_a_program_that_cannot_be_read_still_has_its_bytes(tmp_path, monkeypatch):
    """A libtpu newer than jaxlib can write programs that jaxlib does not read."""
    import jax.stages

    def unreadable(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: async-update should have 1 operands")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", unreadable)
    found = nk.plan(adam(), batch(), "cpu:2", say=quiet, folder=tmp_path)
    assert found.fits
    assert found.memory.peak > found.memory.state
    assert (found.traffic, found.collectives) == (None, ())
    assert any("cannot be read (INTERNAL: async-update" in note for note in found.notes)
    assert "sent by one device" not in str(found)
    roof = roofline({"bfloat16": 197e12}, 0.0, 0.0, 1, chip("v5e"), 1)
    on_chip = dataclasses.replace(found, chip=chip("v5e"), roofline=roof)
    assert "at least 1 s a step, for compute alone; the rest is unknown" in str(on_chip)


def test_the_roofline_is_the_largest_of_three_quotients():
    v5e, h100 = chip("v5e"), chip("h100")
    work = {"bfloat16": 197e12, "float32": 197e12}
    assert roofline(work, 819e9, 0.0, 2, v5e, 1)[:4] == (1.0, 1.0, 0.0, "compute")
    assert roofline(work, 2 * 819e9, 200e9, 2, v5e, 1)[:4] == (1.0, 2.0, 1.0, "memory")
    within = roofline({"bfloat16": 0.0}, 0.0, 450e9, 8, h100, 1)
    beyond = roofline({"bfloat16": 0.0}, 0.0, 450e9, 16, h100, 1)
    assert (within.network, beyond.network) == (1.0, 9.0)  # 50 GB/s outside of a host
    assert within.bound == "network"
    two = roofline({"bfloat16": 2307e12}, 0.0, 0.0, 2, chip("tpu7x"), 2)
    assert two.compute == 1.0  # two devices are one chip
    nothing = roofline(work, 1.0, 1.0, 1, chip("cpu"), 1)
    assert nothing == (None, None, None, "unknown", ("peak", "peak32", "bandwidth", "link"))
    assert nothing.seconds is None


def test_the_budget_is_arithmetic():
    assume = Assumptions(efficiency=0.5, price=2.0, overhead=1.2, carbon=0.4)
    found = budget(1e9, 1000, 1.8, 16, chip("v4"), assume)
    assert found.steps == 10**6
    assert found.hours == pytest.approx(1e6 * 3.6 / 3600)
    assert found.kwh == pytest.approx(192 * 16 * 1.2 * 1000 / 1000)
    assert found.kg == pytest.approx(found.kwh * 0.4)
    assert found.cost == pytest.approx(2 * 16 * 1000)
    assert budget(1001, 1000, 1.0, 1, chip("v4"), assume).steps == 2
    unknown = budget(1e9, 1000, 1.8, 16, chip("v5e"), Assumptions())
    assert (unknown.kwh, unknown.kg, unknown.cost) == (None, None, None)
    known = budget(1e9, 1000, 1.8, 16, chip("v5e"), Assumptions(watts=100.0))
    assert known.kwh > 0


def test_the_table_shows_every_assumption(plan):
    found = plan(adam(), batch(), "cpu:1", tokens=1e6)
    lines = {
        line.split("  ")[0].strip() or line.split()[0]: line for line in str(found).splitlines()
    }
    for name in ("plan", "batch", "parameters", "fits", "operations of a step", "compiled"):
        assert name in lines, name
    assert versions()["jax"] in lines["compiled"]
    on_chip = dataclasses.replace(
        found,
        chip=chip("h100"),
        roofline=roofline({"float32": 494e12}, 1e9, 0.0, 1, chip("h100"), 1),
        budget=budget(1e6, 64, 1.0, 1, chip("h100"), Assumptions(price=2.5)),
        assume=Assumptions(price=2.5),
    )
    text = str(on_chip)
    for words in (
        "1 s a step, bound by compute",
        "0.46 of the roofline",
        "0.75 (what JAX takes of a GPU beforehand",
        "700 W a chip (data sheet)",
        "1.56 times the chips' power",
        "0.445 kg CO2e per kWh",
        "2.5 a chip and hour",
        "NVIDIA H100 SXM data sheet",
    ):
        assert words in text, words
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.devices = 2


def test_chips_carry_their_source_and_are_as_their_makers_say():
    for name, memory, peak in (("v5e", 16, 197), ("v5p", 95, 459), ("v4", 32, 275), ("v3", 32, 123),
                               ("v6e", 32, 918), ("tpu7x", 192, 2307)):  # fmt: skip
        assert chip(name).memory == memory * 2**30
        assert chip(name).peak == peak * 1e12
    for name in nk.cost.CHIPS:
        found = chip(name)
        assert found.source
        assert found.peak >= found.peak32 > 0
        assert found.bandwidth > 0 < found.link
        assert (found.watts is None) == ("no power" in found.source)
        assert bool(found.about) == (found.kind == "gpu")
    assert chip("h200").memory > 140e9
    assert math.isnan(chip("cpu").peak)


WRONG = [
    (("v5:4x4",), {}, ValueError, r"there is no chip 'v5', expected one of cpu, v3.*meant 'v5"),
    (("cpu",), {}, ValueError, r"topology is 'cpu', expected a chip and how many.*'cpu:8'"),
    (("v5e:4*4",), {}, ValueError, r"topology is 'v5e:4\*4'.*such as 'v5e:4x4'"),
    (("cpu:0",), {}, ValueError, r"topology is 'cpu:0'"),
    (("cpu:99",), {}, ValueError, r"has 8 CPU devices; call jax.config.update\('jax_num_cpu_dev"),
    (("h100:12",), {}, (ValueError, ImportError), r"a host has 8 h100|CUDA plugin"),
    (("cpu:4",), {"mesh": {"data": 3}}, ValueError, r"needs 3 devices, the topology cpu:4 has 4"),
    (("cpu:4",), {"mesh": {"expert": 4}}, ValueError, r"rules.expert knows none of the"),
    (("cpu:4",), {"split": P("tensor")}, ValueError, r"names 'tensor'"),
    (("cpu:4",), {"assume": {"prize": 1.0}}, TypeError, r"no assumption 'prize', expected effic"),
    (("cpu:4",), {"assume": {"price": -1.0}}, ValueError, r"price=-1.0: expected a finite number"),
    (("cpu:4",), {"assume": {"efficiency": 2.0}}, ValueError, r"efficiency=2.0: a share, at most"),
    (("cpu:4",), {"assume": {"overhead": 0.5}}, ValueError, r"overhead=0.5: the site takes"),
    (("cpu:4",), {"chip": {"colour": 1}}, TypeError, r"a chip has no 'colour', it has name"),
]


@pytest.mark.parametrize(("args", "options", "kind", "message"), WRONG)
def test_wrong_words_are_refused_before_anything_is_compiled(args, options, kind, message):
    with pytest.raises(kind, match=message):
        nk.plan(adam(), batch(), *args, say=pytest.fail, **options)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"use a batch size of 60 or 64"):
        nk.plan(adam(), batch(62), "cpu:4", say=pytest.fail)
    with pytest.raises(TypeError, match=r"the batch is list, expected a mapping of arrays"):
        nk.plan(adam(), [1], "cpu:1", say=pytest.fail)
    ragged = {**batch(8), "y": jax.ShapeDtypeStruct((4,), jnp.int32)}
    with pytest.raises(ValueError, match=r"the fields of the batch differ in length"):
        nk.plan(adam(), ragged, "cpu:1", say=pytest.fail)
    with pytest.raises(TypeError, match=r"plan got str, expected a Step"):
        nk.plan("step", batch(), "cpu:1", say=pytest.fail)


def test_a_step_with_devices_of_its_own_is_refused(tmp_path):
    own = nk.shard(adam(), nk.mesh(data=2), batch=P("data"))
    with pytest.raises(
        ValueError,
        match=r"is spread over devices of its own.*without nk.shard.*mesh=\.\.\. and stat",
    ):
        nk.plan(own, batch(8), "cpu:1", say=pytest.fail, folder=tmp_path)


def test_members_that_are_spread_are_left_to_the_mesh_of_the_plan(plan):
    recipe = lambda h: nk.seeded(adam(), h["seed"])
    made = lambda each: nk.sweep(recipe, {"seed": jnp.arange(4)}, each=each)
    here = made(nk.spread(nk.mesh(run=4)))  # of this machine
    found = plan(here, batch(8), "cpu:2", mesh={"run": 2})
    side = plan(made(jax.vmap), batch(8), "cpu:2", mesh={"run": 2})
    assert found.memory == side.memory
    assert found.memory.parameters == 2 * 4 * N  # two of four members to a device
    assert found.parameters == 4 * N
    assert found.collectives == ()  # members say nothing to each other
    assert plan(here, batch(8), "cpu:2").mesh == {"data": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mesh": {"fspd": 8}}, ["'fspd'", "8 devices", "'fsdp', which is for state and batch"]),
        ({"mesh": {"data": 2, "fspd": 4}}, ["'fspd'", "4 devices", "perhaps you meant 'fsdp'"]),
        ({"mesh": {"data": 4, "zz": 2}}, ["'zz'", "data, fsdp, tensor, sequence, expert, run"]),
        ({"mesh": {"data": 4, "sequence": 2}, "split": P("data")},
         ["'sequence'", "the second axis of a batch", "or it is not to be split"]),
        ({"mesh": {"fsdp": 8}, "state": nk.parallel.rules.replicated, "split": P()},
         ["'fsdp'", "or it is not to be split", "state= or split="]),
        ({"mesh": {"fsdp": 8}, "state": lambda *a: P(), "split": P()}, ["'fsdp'", "8 devices"]),
        ({"mesh": {"fsdp": 4}}, ["mesh(fsdp=4) needs 4 devices", "topology cpu:8 has 8"]),
    ],
)  # fmt: skip
def test_an_axis_that_nothing_is_split_over_is_refused(options, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        nk.plan(adam(), batch(), "cpu:8", say=pytest.fail, folder=tmp_path, **options)
    for word in words:
        assert word in str(caught.value)


def test_an_axis_that_the_step_itself_uses_is_no_error(plan):
    mesh = nk.mesh(data=2, mine=4)
    place = jax.sharding.NamedSharding(mesh, P("data", "mine"))

    def loss(w, b, key):
        return (jax.lax.with_sharding_constraint(b["x"], place) @ w) ** 2

    task = nk.objective(lambda key, b: jnp.zeros(32), loss)
    step = nk.step(nk.gradient(task), optax.sgd(0.1))
    assert plan(step, batch(), "cpu:8", mesh={"data": 2, "mine": 4}).mesh["mine"] == 4


def test_a_mesh_is_sizes_by_axis_or_a_mesh(plan):
    made = plan(adam(), batch(), "cpu:4", mesh=nk.mesh(fsdp=4))
    assert made.mesh == {"fsdp": 4}
    assert made.memory == plan(adam(), batch(), "cpu:4", mesh={"fsdp": 4}).memory
    with pytest.raises(TypeError, match=r"mesh is 'fsdp=4', expected .*mesh=\{'fsdp': 4\}"):
        plan(adam(), batch(), "cpu:4", mesh="fsdp=4")


def test_devices_of_a_cpu_share_its_memory_and_the_table_says_so(plan):
    found = plan(adam(), batch(), "cpu:4", chip={"memory": 3 * 2**20})
    assert found.memory.limit == 3 * 2**18
    assert "of 768.00 KiB (4 devices share 3.00 MiB): " in str(found)


def test_a_figure_that_is_missing_is_named_and_nothing_is_nan(plan):
    known = {"bandwidth": 1e10, "peak": 1e11, "link": 1e9}
    found = plan(adam(), batch(), "cpu:2", chip=known, tokens=1e6)
    assert found.roofline.missing == ("peak32",)
    assert (found.roofline.bound, found.roofline.seconds) == ("unknown", None)
    assert (found.budget.hours, found.budget.cost) == (None, None)
    said = str(found)
    assert "nobody publishes peak32 of this cpu" in said
    assert "10 GB/s, 0.1 TFLOP/s bfloat16, unknown float32" in said
    assert "nan" not in said
    whole = plan(adam(), batch(), "cpu:2", chip={**known, "peak32": 1e11}, tokens=1e6)
    assert whole.roofline.seconds > 0
    assert f"bound by {whole.roofline.bound}" in str(whole)


def test_members_of_a_sweep_take_no_devices_of_this_machine(plan):
    """What `each=None` would do here is not what it does on the chips that are planned for."""
    task = nk.supervised(nk.models.MLP(WIDTHS), nk.losses.cross_entropy)
    recipe = lambda h: nk.step(nk.gradient(task), optax.sgd(h["rate"]))
    found = plan(nk.sweep(recipe, {"rate": jnp.ones(4)}), batch(), "cpu:1")
    assert found.parameters == 4 * N
    assert found.collectives == ()


def test_a_missing_compiler_names_the_extra(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    absent = lambda name: None if "libtpu" in name or "cuda" in name else real(name)
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    for topology in ("v5e:4x4", "h100:8"):
        with pytest.raises(ImportError, match=r"pip install 'nnkit-jax\[plan\]'"):
            target(topology)


def test_the_attached_devices_are_the_default(plan):
    found = plan(adam(), batch(64))
    assert found.devices == len(jax.devices())
    assert found.topology == "attached cpu"
