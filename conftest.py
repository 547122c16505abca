"""JAX made strict for the whole suite, docstring examples included.

Strict dtype promotion, no silent broadcasting over ranks, no key used twice, 8 CPU devices,
warnings as errors (pyproject.toml), programs compiled quickly, and one compilation cache shared by
all tests and their child processes.
"""

import builtins
import os
import re
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NNKIT_CACHE", str(Path.home() / ".cache" / "nnkit" / "tests"))
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # children would import 3 times slower
os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(os.environ["NNKIT_CACHE"]) / "bytecode"))

import jax
import pytest

collect_ignore_glob = ["tests/references/make_*.py"]  # they need the libraries compared with

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_compilation_cache_dir", os.environ["NNKIT_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Tests run a program a few times on tiny arrays: most of their time would go into optimising it.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    """The names that docstring examples may use without importing them."""
    import flax.linen as nn
    import jax.numpy as jnp
    import numpy as np
    import optax

    import nnkit as nk

    doctest_namespace.update(jax=jax, jnp=jnp, np=np, optax=optax, nn=nn, nk=nk)


KEPT = 800  # programs alive
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
alive = 0


def _count(event: str, seconds: float, **_):
    global alive
    alive += event == LOWERED


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.fixture(autouse=True)
def _forgotten():
    """Programs of earlier tests are dropped when there are many.

    jax keeps each program that it lowered in an MLIR context of its own, and making the next
    context takes time in proportion to those alive: with 2,000 of them, three times as long.
    """
    global alive
    yield
    vars(builtins).pop("_", None)  # the last value that an example showed: libraries trip over it
    if alive > KEPT:
        jax.clear_caches()
        alive = 0


@pytest.fixture(scope="module")
def optimised():
    """For programs whose memory or text is looked at, or that few optimisations make wrong."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


# Long, and with a shorter sibling that runs on every commit: nightly.
SELDOM = [
    r"test_laws\.py::.*\[((step\()?(masked_lm|seq2seq)\)?|causal_lm)\]",
    r"test_laws\.py::.*\[(sweep_(unrolled|in_chunks|spread)|skip\(sweep\)|ensemble\(sweep\))\]",
    r"test_laws\.py::test_shard_is_the_step\[shard(_fsdp)?\]",
    r"test_model_laws\.py::test_rows.*\[\w+_(modern|experts|classes|mean|individual|layer_norm)\]",
    r"test_model_laws\.py::test_an_ensemble.*\[(PatchTST|RecurrentLM|ResNet|GPT)\]",
    r"test_model_laws\.py::test_it_trains_in_bfloat16\[EncDec\]",
    r"test_layer_laws\.py::test_(jit|gradients).*\[.*(MoE|Attention|LSTM|GRU|RNN|Stacked|Bidirect).*\]",
    r"test_layers_recurrent\.py::test_fast_is_plain.*\[(False-True|True-False)",
    r"test_layers_initialisers\.py::test_(under_mup|he_and_relu_keep)",
    r"test_models_parity\.py::test_a_convnet.*\[(True-False|False-True)\]",
    r"test_parity_convolutional\.py::(test_in_float64|test_logits.*\[(?!resnet_bottleneck).*-False\])",
    r"test_experiment_language\.py::test_(what_was_read|names_are|sentences_are_judged)",
    r"test_experiment_mnist1d\.py::test_two.*\[(gru|logistic)\]",
    r"test_resume\.py::test_forty_then_sixty.*\[sweep\]",
    r"test_cli_generate\.py::test_drawn_text",
    r"test_cli_plan\.py::test_a_published_size",
    r"test_shard_laws\.py::test_shard_is_the_step_at_each_of_20_steps\[expert\]",
    r"test_remat\.py::test_the_numbers_are_the_same\[EncDec\]",
    r"test_shard_models\.py::.*\[BERT-tensor\]",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    seldom = re.compile("|".join(SELDOM))
    for item in items:
        if seldom.search(item.nodeid):
            item.add_marker(pytest.mark.nightly)


@pytest.fixture(scope="session")
def data_dir() -> str:
    """The folder with the real data sets in TFDS format; without it the test is skipped."""
    folder = os.environ.get("NNKIT_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("NNKIT_DATA_DIR is not set to a folder with data sets in TFDS format")
    return folder


def pytest_sessionfinish(session):
    """Write the table of parity, if NNKIT_PARITY_TABLE names a file (see tests/parity.py)."""
    if os.environ.get("NNKIT_PARITY_TABLE"):
        import parity

        Path(os.environ["NNKIT_PARITY_TABLE"]).write_text(parity.table())
