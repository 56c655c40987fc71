"""Speed of MB-MPO at the sizes of the half-cheetah: imagination, meta-optimisation, model fit; and what recompiles."""

import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.control import bench_fit, median_seconds
from benchmarks.flops import matmul_flops
from metadyna import envs
from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.experiments.presets import PRESETS
from metadyna.models.bounded import Nearby
from metadyna.models.imagine import branch
from metadyna.models.worlds import known_world
from metadyna.policies.acting import practise
from metadyna.runs import loop
from metadyna.systems.mbmpo import MBMPO, State

SIZES = {"5 tasks of 20": MBMPO(), "20 tasks of 50": MBMPO(tasks=20, episodes=50, horizon=200)}
"""Ours, and the paper's; five models of 2 x 512 either way."""

compiled: list[float] = []
"""Seconds that each compilation of this process took."""


def _note(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del kwargs
    if event == "/jax/core/compile/backend_compile_duration":
        compiled.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_note)


def bench_imagination(peak: float) -> dict[str, Any]:
    """Imagined steps per second of a policy in the models, episodes of every task at once."""
    return {name: _imagination(peak, system) for name, system in SIZES.items()}


def _imagination(peak: float, system: MBMPO) -> dict[str, Any]:
    state, world = _ready(system)

    def imagine(state: State, key: jax.Array) -> jax.Array:
        starts = replay.sample(state.starts, key, system.tasks * system.episodes)
        starts = starts.reshape(system.tasks, system.episodes, -1)

        def of_task(policy: Any, member: Any, starts: jax.Array, key: jax.Array) -> jax.Array:
            only = Nearby(state.model.ensemble.only(member), system.reach)
            return branch(world.world(only), practise, policy, starts, system.horizon, key).reward

        return jax.vmap(of_task)(state.policies, system.models, starts, jax.random.split(key, system.tasks))

    compiled_once, key = jax.jit(imagine), jax.random.key(1)
    seconds = median_seconds(lambda: compiled_once(state, key), repeats=21)
    return {
        "imagined_steps_per_second": round(system.tasks * system.episodes * system.horizon / seconds),
        "share_of_matmul_peak": round(matmul_flops(imagine, state, key) / seconds / 1e9 / peak, 3),
    }


def bench_meta_learning() -> dict[str, Any]:
    """Seconds of all meta-steps of one iteration: 5 tasks, 20 episodes of 100 steps, 10 meta-steps."""
    system = SIZES["5 tasks of 20"]
    state, world = _ready(system)

    @jax.jit
    def learn(state: State, key: jax.Array) -> Any:
        return system._meta_learn(world, state, key)[0].meta

    seconds = median_seconds(lambda: learn(state, jax.random.key(1)), repeats=3)
    return {
        "tasks": system.tasks,
        "episodes": system.episodes,
        "horizon": system.horizon,
        "meta_steps": system.meta_steps,
        "seconds": round(seconds, 2),
    }


def bench_fitting(peak: float) -> dict[str, Any]:
    """Updates of the same models."""
    return bench_fit(peak, MBMPO().model)


def count_recompiling(iterations: int = 4) -> dict[str, Any]:
    """Seconds of whole iterations on the half-cheetah in MuJoCo, and how many programs each compiled."""
    base = PRESETS["mb-mpo"]["half-cheetah"]
    system: Any = replace(base.system, warmup=1, meta_steps=2)
    program = loop.build(replace(base, system=system))
    state = program.init()
    seconds, counts = [], []
    for _ in range(iterations):
        before, started = len(compiled), time.perf_counter()
        state, _, _ = jax.block_until_ready(program.chunk(state))
        seconds.append(round(time.perf_counter() - started, 1))
        counts.append(len(compiled) - before)
    return {"seconds_by_iteration": seconds, "programs_compiled_by_iteration": counts}


def _ready(system: MBMPO) -> tuple[State, Any]:
    """A state whose random steps are over, with starts to imagine from; and the world."""
    family = envs.make("half-cheetah-200")
    env: Any = family.env
    state = jax.jit(lambda key: system.init(DeviceCollector(env, family.train), key))(jax.random.key(0))
    starts = 0.1 * jax.random.normal(jax.random.key(1), (100, *env.spec.observation.shape))
    return state._replace(starts=replay.add(state.starts, starts), steps=jnp.int32(system.warmup)), known_world(env)
