"""JAX made strict for the whole suite, docstring examples included.

Strict dtype promotion, no silent broadcasting over ranks, no key used twice, 8 CPU devices,
warnings as errors (pyproject.toml), programs compiled quickly, and one compilation cache shared by
all tests and their child processes.
"""

import builtins
import os
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
