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


ENOUGH = 9 * 2**28
"""Bytes of memory that a worker may use before it forgets its compiled programs."""
LEAST = 2**29
"""Bytes of them that are worth forgetting."""

_kept = {"bytes": 0}


def resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def forget_programs():
    """Free what was compiled; what is needed again is compiled again."""
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed stays with the process
    _kept["bytes"] = resident()


def pytest_collection_modifyitems(items):
    """Tests that share large programs come in a row, and a worker begins with them: what is left last is exchanged.

    The first of two workers begins with the systems, the second, in the middle, with the runs. Those that forget all
    programs come first of all, when there are none.
    """
    forgetful, systems, runs, others = [], [], [], []
    for item in items:
        used, alike = item.fixturenames, item.path.parent.name == "systems"
        kind = forgetful if "watching" in used else runs if "compiled_once" in used else systems if alike else others
        kind.append(item)
    first = [*forgetful, *systems, *others]
    middle = len(items) // 2
    items[:] = [*first[:middle], *runs, *first[middle:]]


def pytest_collection_finish():
    """What was imported stays: the garbage collector, which the compiler's objects call often, need not look at it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def optimised():
    """Optimise programs after all: for a test that runs them for longer than that takes."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def little_memory():
    """Forget compiled programs before they use up the memory."""
    yield
    if Path("/proc/self/statm").exists() and resident() > max(ENOUGH, _kept["bytes"] + LEAST):
        forget_programs()


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Forget them before they use up the memory maps that Linux allows a process (65,530).

    Each takes some, and beyond that the compiler dies of a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        forget_programs()
