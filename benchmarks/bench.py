"""Speed: environments, DREAM at the published cadence, control, CRAR and GMAS, MB-MPO, shares of the matmul peak.

Run by `make bench`; writes one JSON file per device under benchmarks/results/. Rates are medians of repeats in one
process; compile time is reported apart; the matmul peak is measured in the same run.
"""

import json
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import abstract, control, meta
from benchmarks.control import median_seconds
from benchmarks.flops import matmul_flops
from metadyna import envs
from metadyna.collect import replay
from metadyna.experiments.presets import PRESETS
from metadyna.provenance import machine
from metadyna.runs import loop, seeds
from metadyna.runs.doctor import matmul_gflops
from metadyna.types import sizes

OFFICIAL_STEPS_PER_SECOND = 115
"""The official code on such a machine, one thread, once both agents learn (shared/stack.md)."""


def main(
    part: Annotated[str, tyro.conf.arg(help="all, env, dream, control, abstract or meta")] = "all",
    num_seeds: Annotated[int, tyro.conf.arg(help="seeds in one program for DREAM")] = 1,
    chunks: Annotated[int, tyro.conf.arg(help="timed chunks of DREAM")] = 7,
    sb3: Annotated[
        Path | None, tyro.conf.arg(help="a Python that has stable-baselines3 2.9.2, to compare with")
    ] = None,
    out: Annotated[Path, tyro.conf.arg(help="folder for the JSON file")] = Path("benchmarks/results"),
) -> None:
    """Measure and report."""
    seeds.use_cores(num_seeds)
    peak = matmul_gflops()
    results: dict[str, Any] = {"matmul_peak_gflops": round(peak)}
    if part in ("all", "env"):
        results["env"] = {name: bench_env(name) for name in envs.GRIDS}
    if part in ("all", "dream"):
        results["dream"] = bench_dream(peak, num_seeds, chunks)
    if part in ("all", "control"):
        results["control"] = {
            "stepping": control.bench_stepping(),
            "sac": {f"every_{n}": control.bench_sac(peak, sb3, n) for n in (1, 8)},
            "sac_updates": {f"2x{width}": control.bench_learner(peak, width) for width in (256, 512)},
            "fit": {name: control.bench_fit(peak, model) for name, model in control.ENSEMBLES.items()},
            "planner": control.bench_planner(peak),
            "mbpo": {f"2x{width}": control.bench_mbpo(peak, width) for width in (256, 512)},
        }
    if part in ("all", "abstract"):
        results["abstract"] = {"update": abstract.bench_updates(peak), "planning": abstract.bench_planning(peak)}
    if part in ("all", "meta"):
        results["meta"] = {
            "imagination": meta.bench_imagination(peak),
            "meta_learning": meta.bench_meta_learning(),
            "fit": meta.bench_fitting(peak),
            "recompiling": meta.count_recompiling(),
        }
    results["environment"] = machine.environment_record()
    text = json.dumps(results, indent=2)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    device = results["environment"]["devices"][0].replace(" ", "-").lower()
    (out / f"bench-{part}-{device}-seeds{num_seeds}.json").write_text(text + "\n")


def bench_env(name: str, copies: int = 1024, steps: int = 1000) -> dict[str, float]:
    """Environment steps per second with a uniformly random policy, `copies` at once, under one jitted scan."""
    family = envs.make(name)
    env, actions = family.env, sizes(family.env.spec.action)[0]
    tasks = jax.vmap(family.train.sample)(jax.random.split(jax.random.key(0), copies))

    @jax.jit
    def roll(key: jax.Array) -> jax.Array:
        state, _ = jax.vmap(env.reset)(tasks, jax.random.split(key, copies))

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            state, total = carry
            chosen = jax.random.randint(key, (copies,), 0, actions)
            state, timestep = jax.vmap(env.step, in_axes=(0, 0, 0, None))(tasks, state, chosen, key)
            return (state, total + timestep.reward), None

        carry = (state, jnp.zeros(copies))
        return jax.lax.scan(step, carry, jax.random.split(key, steps))[0][1]

    seconds = median_seconds(lambda: roll(jax.random.key(1)))
    return {"copies": copies, "million_steps_per_second": round(copies * steps / seconds / 1e6, 1)}


def bench_dream(peak: float, num_seeds: int, chunks: int) -> dict[str, Any]:
    """DREAM REC on the distracting buses, batch and cadence of the published code, once both agents learn."""
    base = PRESETS["dream"]["code"]
    system: Any = base.system
    system = replace(system, explore=replace(system.explore, warmup=100))
    system = replace(system, execute=replace(system.execute, warmup=100))
    program = loop.build(replace(base, system=system, seeds=num_seeds, chunk=100))
    started = time.perf_counter()
    state = jax.block_until_ready(program.init())
    state, _, _ = jax.block_until_ready(program.chunk(state))
    first = time.perf_counter() - started
    state, _, before = program.chunk(state)  # both agents are warm after the first chunk
    updates_before = _updates(state)
    rates, times = [], []
    for _ in range(chunks):
        started = time.perf_counter()
        state, _, after = jax.block_until_ready(program.chunk(state))
        times.append(time.perf_counter() - started)
        rates.append(float(np.sum(np.asarray(after) - np.asarray(before))) / times[-1])
        before = after
    updates = _updates(state) - updates_before
    flops = update_flops(program, state)
    done = updates[0] * flops["explore"] + updates[1] * flops["execute"]
    rate = statistics.median(rates)
    return {
        "seeds": num_seeds,
        "env_steps_per_second": round(rate),
        "times_official": round(rate / OFFICIAL_STEPS_PER_SECOND, 2),
        "updates_per_second": round(float(updates.sum()) / sum(times), 1),
        "first_chunk_seconds_with_compilation": round(first, 1),
        "million_flops_per_update": {name: round(value / 1e6) for name, value in flops.items()},
        "gflops": round(float(done) / sum(times) / 1e9, 1),
        "share_of_matmul_peak": round(float(done) / sum(times) / 1e9 / peak, 3),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def _updates(state: loop.RunState) -> np.ndarray:
    system = state.system
    return np.array([np.sum(system.explore.updates), np.sum(system.execute.updates)], np.int64)


def update_flops(program: loop.Program, state: loop.RunState) -> dict[str, int]:
    """Matmul operations in the gradient of each agent's loss, as written (padding included)."""
    system: Any = program.config.system
    env: Any = program.family.env
    one = jax.tree.map(lambda x: x[0], state.system)
    batch = replay.sample(one.attempts, jax.random.key(0), system.execute.batch).swapped()
    lived, source = jnp.ones(system.execute.batch, bool), one.execute.weights.source

    def explore(weights: Any) -> jax.Array:
        return system._explore_loss(env, weights, one.explore.target, source, batch)[0]

    def execute(weights: Any) -> jax.Array:
        return system._execute_loss(env, weights, one.execute.target, batch, lived, jax.random.key(0))[0]

    return {
        "explore": matmul_flops(jax.grad(explore), one.explore.weights),
        "execute": matmul_flops(jax.grad(execute), one.execute.weights),
    }


if __name__ == "__main__":
    tyro.cli(main)
