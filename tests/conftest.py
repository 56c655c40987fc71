"""Suite settings: silent broadcasting raises, warnings are errors, shapes and types are checked at run time."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most programs of the suite run a few times: optimising them would take longer than it saves. Also for what it starts.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from jaxtyping import install_import_hook

import tests.checking

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("metadyna", f"{tests.checking.__name__}.checked")


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Forget compiled programs before they use up the memory maps that Linux allows a process (65,530).

    Each takes some, and beyond that the compiler dies of a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
