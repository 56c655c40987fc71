"""Suite settings: silent broadcasting raises, warnings are errors, shapes and types are checked at run time."""

import ctypes
import gc
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
def few_programs():
    """Forget compiled programs before they use up the memory, or the memory maps that Linux allows a process (65,530).

    Each takes some of both, and beyond the latter the compiler dies of a segmentation fault.
    """
    yield
    maps, statm = Path("/proc/self/maps"), Path("/proc/self/statm")
    if not statm.exists():
        return
    resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident > 1.5 * 2**30 or maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed stays with the process
