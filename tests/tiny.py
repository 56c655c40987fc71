"""The one tiny run that all tests of runs share, compiled once."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from metadyna import run, runinfo
from metadyna.checkpoint import state_sha256
from metadyna.config import Config
from metadyna.improve.ddqn import DDQN
from metadyna.systems.dream import DREAM

SMALL = DDQN(warmup=2, batch=4, update_every=8)
TINY = Config(
    system=DREAM(capacity=64, parallel=2, context_width=8, explore=SMALL, execute=SMALL),
    task="city-5x5",
    steps=400,
    chunk=5,
    eval_every=200,
    checkpoint_seconds=0.0,
)
"""The one configuration of all tests of runs: compiling it is what they spend their time on."""

PROGRAM = run.Program
SHARED = functools.cache(PROGRAM)


@functools.cache
def home() -> Path:
    """One folder per process: trained runs that tests only read or copy, and compiled programs."""
    folder = Path(tempfile.mkdtemp(prefix="metadyna-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def trained(config: Config = TINY) -> run.Result:
    return run.run(config, home() / f"run-{len(list(home().iterdir()))}", progress=False)


@pytest.fixture(scope="module")
def compiled_once():
    """Compile each configuration once per process, and each program once for all the processes of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Program", SHARED)
        patch.setenv("XDG_CACHE_HOME", str(home() / "cache"))
        before = jax.config.jax_compilation_cache_dir
        compilation_cache.reset_cache()  # JAX may have decided to go without
        runinfo.enable_compilation_cache()
        yield
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def copy(folder, result=None):
    """A run that a test may change."""
    return Path(shutil.copytree((result or trained()).folder, folder / "copy"))


def sha256(result):
    return state_sha256(result.state)
