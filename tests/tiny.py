"""The one tiny run that all tests of runs share, compiled once."""

import atexit
import functools
import shutil
import tempfile
from copy import copy as copy_of
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from metadyna.adapt.context import EncoderDecoder
from metadyna.adapt.gradient import GradientSteps, Meta
from metadyna.data.source import Gathering
from metadyna.improve.abstract import AbstractLearning
from metadyna.improve.ddqn import DDQN
from metadyna.improve.meta import MetaPPO, MetaTRPO, Rounds
from metadyna.improve.ppo import PPO
from metadyna.improve.sac import SAC
from metadyna.models.abstract import Vector
from metadyna.models.fit import Fit
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.planning.acting import TreeActing
from metadyna.planning.mpc import MPC
from metadyna.policies.squashed import ActorCritic
from metadyna.provenance.hashes import state_sha256
from metadyna.runs import cache, loop
from metadyna.runs import config as configs
from metadyna.runs.checkpoint import Checkpoints
from metadyna.runs.config import Config
from metadyna.runs.evaluate import Evaluation
from metadyna.runs.log import RunLog
from metadyna.runs.program import DeviceProgram, Program
from metadyna.search.cem import CEM
from metadyna.search.random import RandomShooting
from metadyna.systems.crar import CRAR
from metadyna.systems.dream import DREAM
from metadyna.systems.gmas import GMAS, ModelError
from metadyna.systems.maml import EMAML, MAML, ProMP
from metadyna.systems.mbmpo import MBMPO
from metadyna.systems.mbpo import MBPO
from metadyna.systems.metrpo import METRPO
from metadyna.systems.mpc import PETS, RandomShootingMPC
from metadyna.systems.ppo import ProximalPolicyOptimisation
from metadyna.systems.rl2 import RL2
from metadyna.systems.sac import SoftActorCritic
from metadyna.systems.trpo import TrustRegionPolicyOptimisation

SMALL = DDQN(warmup=2, batch=4, update_every=8)
TINY = Config(
    system=DREAM(EncoderDecoder(width=8), capacity=64, parallel=2, explore=SMALL, execute=SMALL),
    task="city-5x5",
    steps=400,
    chunk=5,
    eval_every=200,
    checkpoint_seconds=0.0,
)
"""The one configuration of all tests of runs: compiling it is what they spend their time on."""

MODEL = GaussianEnsemble(members=2, elites=2, widths=(8,), weight_decay=(0.0, 0.0))
SURE = GaussianEnsemble(members=2, elites=2, widths=(8,), weight_decay=(0.0, 0.0), probabilistic=False)
FIT = Fit(batch=16, holdout=0.0, max_updates=10)
PLANNER = MPC(search=CEM(population=10, elites=3, iterations=2), horizon=5)
POLICY: Any = {"networks": ActorCritic(widths=(8,)), "sac": SAC(batch=16)}

FEW: Any = {"tasks": 2, "episodes": 1, "widths": (8,), "shown_steps": 1}


@dataclass(frozen=True)
class Moving(MetaTRPO):
    """An outer step that only moves the initial policy; the true one takes long to compile."""

    def update(self, meta: Meta, optimiser: Any, rounds: Rounds) -> tuple[Meta, Any, dict[str, jax.Array]]:
        """Add a hundredth to all weights."""
        del rounds
        return meta._replace(weights=jax.tree.map(lambda x: x + 0.01, meta.weights)), optimiser, {"kl": jnp.float32(0)}


CONTINUOUS = {
    "e-maml": EMAML(**FEW),
    "maml": MAML(**FEW, outer=MetaTRPO(GradientSteps(learnt_rates="step", steps=2), every_step=True)),
    "mb-mpo": MBMPO(
        model=SURE, fit=FIT, widths=(8,), tasks=2, episodes=2, horizon=5, meta_steps=2, warmup=20, capacity=1_000,
    ),
    "mbpo": MBPO(
        **POLICY, model=MODEL, fit=FIT, refresh=10, branches=3, updates=2, warmup=20, capacity=100,
        horizon_end=3, horizon_from=20, horizon_until=60,
    ),
    "me-trpo": METRPO(
        model=SURE, fit=FIT, widths=(8,), collect=20, episodes=4, horizon=5, policy_steps=3, validate_every=2,
        capacity=100,
    ),
    "mpc-rs": RandomShootingMPC(
        model=replace(SURE, members=1, elites=1), fit=FIT, planner=MPC(search=RandomShooting(10), horizon=5),
        collect=20, warmup=20, capacity=200,
    ),
    "pets": PETS(model=MODEL, fit=FIT, planner=PLANNER, particles=2, collect=20, warmup=20, capacity=200),
    "promp": ProMP(**FEW, outer=MetaPPO(updates=2)),
    "ppo": ProximalPolicyOptimisation(PPO(minibatches=2, epochs=2), widths=(8,), parallel=2, collect=20),
    "rl2": RL2(PPO(minibatches=2, epochs=2), width=8, trials=2),
    "sac": SoftActorCritic(**POLICY, warmup=20, capacity=100),
    "trpo": TrustRegionPolicyOptimisation(widths=(8,), parallel=2, collect=20),
}  # fmt: skip
"""Systems for vectors of floats, as small as they can be."""


JOINT = AbstractLearning(batch=4, schedule="joint")
ABSTRACT = {
    "crar": CRAR(form=Vector(2), learning=JOINT, data=Gathering(200), acting=TreeActing((0,)), updates=5),
    "gmas": GMAS(
        form=Vector(2), learning=JOINT, data=Gathering(200), depth=1, weighting=ModelError(), doubt=0.9,
        acting=TreeActing((1,)), updates=5,
    ),
}  # fmt: skip
"""Systems for pictures and a few actions; their steps are updates."""


ITERATION = {
    "sac": 1, "mbpo": 10, "ppo": 40, "trpo": 40, "crar": 5, "gmas": 5,
    "e-maml": 800, "maml": 1200, "rl2": 800, "promp": 800, "mb-mpo": 400,
    ("maml", "inverted-pendulum"): 20, ("e-maml", "inverted-pendulum"): 20, ("promp", "inverted-pendulum"): 20,
    ("mb-mpo", "inverted-pendulum"): 10, ("rl2", "inverted-pendulum"): 10, ("rl2", "city-5x5"): 40,
}  # fmt: skip
"""Steps of an iteration, where they are not about 20."""


def tiny(name: str, task: str = "pendulum", **changes: Any) -> Config:
    """A run of a tiny system: two episodes or so."""
    iteration = ITERATION.get((name, task), ITERATION.get(name, 20))
    config = Config(
        {**CONTINUOUS, **ABSTRACT}[name],
        task,
        steps=max(80, 2 * iteration),
        chunk=max(1, 20 // iteration),
        eval_every=max(40, iteration),
        checkpoint_seconds=0.0,
    )
    return replace(config, **changes)


PROGRAM = loop.build


@functools.cache
def _first(config: Config) -> Program:
    return PROGRAM(config)


@functools.cache
def shared(config: Config) -> Program:
    """The program of a configuration; those that differ in what is no part of the compiled functions have the same."""
    first = _first(replace(config, seed=0, steps=1, eval_every=1, stop_at=None, checkpoint_seconds=0.0))
    if not isinstance(first, DeviceProgram):
        return PROGRAM(config)  # whose compiled functions are shared by their settings
    program = copy_of(first)
    vars(program).update(config=config, _compiled=first._compiled, _evaluations=first._evaluations)
    return program


@functools.cache
def home() -> Path:
    """One folder per process: trained runs that tests only read or copy, and compiled programs."""
    folder = Path(tempfile.mkdtemp(prefix="metadyna-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def trained(config: Config = TINY) -> loop.Result:
    return loop.run(config, home() / f"run-{len(list(home().iterdir()))}", progress=False)


@pytest.fixture(scope="module")
def compiled_once():
    """Compile each configuration once per process, and each program once for all the processes of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build", shared)
        patch.setenv("XDG_CACHE_HOME", str(home() / "cache"))
        before = jax.config.jax_compilation_cache_dir
        compilation_cache.reset_cache()  # JAX may have decided to go without
        cache.enable_compilation_cache()
        yield
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def copy(folder, result=None):
    """A run that a test may change."""
    return Path(shutil.copytree((result or trained()).folder, folder / "copy"))


def sha256(result):
    return state_sha256(result.state)


@functools.cache
def drawn(config: Config = TINY) -> loop.Result:
    """As `trained`, but its weights were drawn by NumPy: for tests that look at any run, since nothing is compiled."""
    program, rng = loop.build(config), np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray((rng.normal(0, 0.3, x.shape) if floats else np.zeros(x.shape)).astype(x.dtype))

    state = jax.tree.map(draw, program.like())
    folder = home() / f"run-{len(list(home().iterdir()))}"
    configs.save(config, folder)
    metadata = {"chunk": 0, "seconds": 0.0, "config": configs.to_dict(config)}
    Checkpoints(folder / "checkpoints").save(0, state, metadata)
    return loop.Result(folder, config, state)


def logged(result: loop.Result, folder: Path, rows: dict[int, dict[str, float]]) -> loop.Result:
    """The same run, having logged these metrics by step."""
    with RunLog(folder, -1.0) as log:
        for step, metrics in rows.items():
            log.write(step, metrics)
    return replace(result, folder=folder)


def scores(result: loop.Result) -> dict[str, float]:
    """What a run would log of an evaluation now."""
    return {name: value.item() for name, value in jax.vmap(Evaluation.metrics)(result.evaluate()).items()}
