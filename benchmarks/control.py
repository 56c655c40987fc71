# The binding has no stubs.
# pyright: reportAttributeAccessIssue=false
"""Speed of the control half: simulators, SAC beside Stable-Baselines3, model fitting, planning, MBPO."""

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from gymnasium.vector import SyncVectorEnv
from mujoco import rollout

from benchmarks.flops import matmul_flops
from metadyna import envs
from metadyna.collect import replay
from metadyna.collect.compute import compiled
from metadyna.collect.host import HostCollector
from metadyna.envs.mujoco import FULL
from metadyna.experiments.presets import PRESETS
from metadyna.improve.sac import SAC
from metadyna.models import fit as fits
from metadyna.models.fit import Fit, Rows
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.models.imagine import sequence_returns
from metadyna.models.worlds import Meaning, known_world
from metadyna.policies.squashed import ActorCritic
from metadyna.provenance import machine
from metadyna.runs import loop
from metadyna.systems.mbpo import MBPO
from metadyna.systems.sac import SoftActorCritic
from metadyna.types import TimeStep, Transition

PEER = Path(__file__).with_name("sb3_sac.py")
ROBOT_OBSERVED, ROBOT_ACTIONS = 17, 6
"""Of HalfCheetah."""
ENSEMBLES = {
    "7x4x200": GaussianEnsemble(),
    "5x2x512": GaussianEnsemble(members=5, elites=5, widths=(512, 512), weight_decay=(1e-4, 1e-4, 1e-4)),
}
"""MBPO's, and a wider one."""


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time of a call whose result is waited for; the first call is not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def bench_stepping(copies: int = 16, steps: int = 250) -> dict[str, Any]:
    """Control steps per second of HalfCheetah with random actions; a control step is 5 of the simulator's."""
    family = envs.make("half-cheetah")
    env: Any = family.env
    collector = HostCollector(env, family.train)
    lived: Any = collector.begin((), copies, jax.random.key(0))
    generator = np.random.default_rng(0)

    def ours() -> Any:
        return collector.collect(random_action, (), lived, jax.random.key(1), steps)

    start = lived.env.physics.view(np.float64)
    controls = generator.uniform(-1, 1, (copies, steps * env.frame_skip, ROBOT_ACTIONS))
    states = np.empty((copies, steps * env.frame_skip, start.shape[1]))
    threads = machine.usable_cores()
    data = [mujoco.MjData(env.model) for _ in range(threads)]
    pool = rollout.Rollout(nthread=threads)
    assert start.shape[1] == mujoco.mj_stateSize(env.model, FULL)

    def raw() -> None:
        pool.rollout(env.model, data, start, controls, state=states)

    vector = SyncVectorEnv([lambda: gymnasium.make("HalfCheetah-v5")] * copies)
    vector.reset(seed=0)
    actions = generator.uniform(-1, 1, (steps, copies, ROBOT_ACTIONS)).astype(np.float32)

    def gymnasium_steps() -> None:
        for action in actions:
            vector.step(action)

    rates = {
        name: round(copies * steps / median_seconds(call))
        for name, call in {"collector": ours, "raw_rollout": raw, "sync_vector_env": gymnasium_steps}.items()
    }
    vector.close()
    return {
        "copies": copies,
        "control_steps_per_second": rates,
        "times_sync_vector_env": round(rates["collector"] / rates["sync_vector_env"], 2),
        "share_of_raw_rollout": round(rates["collector"] / rates["raw_rollout"], 2),
    }


def random_action(params: Any, carry: Any, timestep: TimeStep, key: jax.Array) -> tuple[jax.Array, Any, tuple[()]]:
    """Uniform in the box."""
    return jax.random.uniform(key, (ROBOT_ACTIONS,), minval=-1, maxval=1), carry, ()


def bench_sac(peak: float, peer: Path | None, every: int, rounds: int = 3, steps: int = 1_000) -> dict[str, Any]:
    """SAC on HalfCheetah, 2 x 256, batch 256, one update per step: whole training, once warm.

    `every` steps are taken, then as many updates made, by both.

    `peer` is a Python that has Stable-Baselines3: the two take turns, so that both meet the same machine.
    """
    system = SoftActorCritic(warmup=1_000, collect=every)
    program = loop.build(replace(PRESETS["sac"]["paper"], system=system, chunk=steps // every))
    state, _, _ = program.chunk(program.init())
    state, _, _ = program.chunk(state)  # compiles the updates' part where it was skipped
    ours, theirs = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        state, _, _ = jax.block_until_ready(program.chunk(state))
        ours.append(steps / (time.perf_counter() - started))
        if peer:
            theirs.append(
                json.loads(subprocess.check_output([peer, PEER, "speed", str(steps), str(every)]))["steps_per_second"]
            )
    rate, flops = statistics.median(ours), sac_flops(system.sac, system.networks)
    result = {
        "steps_and_updates_per_second": round(rate, 1),
        "each_round": [round(r, 1) for r in ours],
        "million_flops_per_update": round(flops / 1e6),
        "share_of_matmul_peak": round(rate * flops / 1e9 / peak, 3),
    }
    if peer:
        result["stable_baselines3_2_9_2"] = {
            "steps_and_updates_per_second": round(statistics.median(theirs), 1),
            "each_round": [round(r, 1) for r in theirs],
        }
        result["times_stable_baselines3"] = round(rate / statistics.median(theirs), 2)
    return result


def sac_flops(sac: SAC, networks: ActorCritic) -> int:
    """Matrix products of one update on HalfCheetah's sizes."""
    learner = sac.start(*networks.create(ROBOT_OBSERVED, ROBOT_ACTIONS, jax.random.key(0)))
    return matmul_flops(sac.update, learner, _rows(sac.batch), jax.random.key(1))


def bench_learner(peak: float, width: int, times: int = 100) -> dict[str, Any]:
    """Updates per second of SAC alone, in one compiled loop without a simulator."""
    sac, networks = SAC(), ActorCritic(widths=(width, width))
    learner = sac.start(*networks.create(ROBOT_OBSERVED, ROBOT_ACTIONS, jax.random.key(0)))
    rows = _rows(10_000)

    @jax.jit
    def many(learner: Any, rows: Transition) -> Any:
        def once(learner: Any, key: jax.Array) -> tuple[Any, None]:
            k_batch, k_update = jax.random.split(key)
            chosen = jax.random.randint(k_batch, (sac.batch,), 0, rows.reward.shape[0])
            return sac.update(learner, jax.tree.map(lambda x: x[chosen], rows), k_update)[0], None

        return jax.lax.scan(once, learner, jax.random.split(jax.random.key(2), times))[0]

    rate = times / median_seconds(lambda: many(learner, rows))
    return _updates(rate, sac_flops(sac, networks), peak)


def bench_fit(peak: float, model: GaussianEnsemble, rows: int = 5_000) -> dict[str, Any]:
    """Fitting an ensemble to HalfCheetah's sizes, 256 rows per member and update."""
    settings, meaning = Fit(max_updates=100, max_epochs=1_000_000, patience=1_000_000), Meaning()
    sizes = ROBOT_OBSERVED + ROBOT_ACTIONS, 1 + ROBOT_OBSERVED
    state, ring = fits.start(model, model.create(*sizes, jax.random.key(0))), replay.full(_rows(rows))
    fit = jax.jit(lambda ring, key: fits.fit(settings, model, state, Rows(ring, meaning.examples), key)[0])
    seconds = median_seconds(lambda: fit(ring, jax.random.key(1)))
    inputs, targets = (jnp.zeros((model.members, settings.batch, size)) for size in sizes)

    def loss(weights: Any) -> Any:
        return model.loss(replace(state.ensemble, weights=weights), (inputs, targets), jnp.ones(settings.batch, bool))

    return _updates(settings.max_updates / seconds, matmul_flops(jax.grad(loss), state.ensemble.weights), peak)


def bench_planner(peak: float, steps: int = 50) -> dict[str, Any]:
    """One MPC step of the reduced PETS on pendulum: 4 iterations of 100 sequences of 25 steps, 5 particles."""
    system: Any = PRESETS["pets"]["quick"].system
    family = envs.make("pendulum")
    program = loop.build(replace(PRESETS["pets"]["quick"], system=system))
    collector: Any = program.collector
    state: Any = jax.tree.map(lambda x: x[0], program.stacked(program.init())).system
    ensemble = state.model.ensemble
    act, params = system.acting(family.env), (ensemble, jnp.bool_(False))
    collect = jax.jit(lambda env, key: collector.collect(act, params, env, key, steps)[1].reward)
    seconds = median_seconds(lambda: collect(state.env, jax.random.key(0))) / steps
    world, search = known_world(family.env).world(ensemble), system.planner.search
    sequences = jnp.zeros((search.population, system.planner.horizon, 1))
    scoring = matmul_flops(
        lambda s, k: sequence_returns(world, jnp.zeros(3), s, k, system.particles, system.propagation),
        sequences,
        jax.random.key(0),
    )
    flops = scoring * search.iterations
    return {
        "milliseconds_per_step": round(1e3 * seconds, 1),
        "model_rows_per_step": search.population * search.iterations * system.planner.horizon * system.particles,
        "share_of_matmul_peak": round(flops / seconds / 1e9 / peak, 3),
    }


def bench_mbpo(peak: float, width: int) -> dict[str, Any]:
    """MBPO on HalfCheetah: policy updates per second on real and imagined rows."""
    system = MBPO(ActorCritic(widths=(width, width)), warmup=10, refresh=10, fit=Fit(max_updates=10))
    program = loop.build(replace(PRESETS["mbpo"]["quick"], system=system, task="half-cheetah", chunk=1))
    state, _, _ = program.chunk(program.init())
    state, _, _ = program.chunk(state)
    one: Any = jax.tree.map(lambda x: x[0], program.stacked(state)).system
    lived = jax.tree.map(lambda x: x[None], _rows(1))
    state, improve = one._replace(env=(), steps=jnp.int32(100)), compiled(system._improve, 0, donate=True)

    def learn() -> Any:  # donated, so each call goes on from the last
        nonlocal state
        state, _ = improve(state, lived, jax.random.key(0))
        return state.learner

    return _updates(system.updates / median_seconds(learn, 11), sac_flops(system.sac, system.networks), peak)


def _updates(rate: float, flops: int, peak: float) -> dict[str, Any]:
    return {
        "updates_per_second": round(rate, 1),
        "million_flops_per_update": round(flops / 1e6),
        "share_of_matmul_peak": round(rate * flops / 1e9 / peak, 3),
    }


def _rows(count: int) -> Transition:
    """Transitions of HalfCheetah's sizes."""
    keys = jax.random.split(jax.random.key(7), 4)
    obs, after = (jax.random.normal(k, (count, ROBOT_OBSERVED)) for k in keys[:2])
    action = jax.random.uniform(keys[2], (count, ROBOT_ACTIONS), minval=-1, maxval=1)
    reward = jax.random.normal(keys[3], (count,))
    return Transition(obs, action, reward, jnp.ones(count), after, jnp.zeros(count, bool), ())
