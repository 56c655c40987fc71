"""Speed of CRAR and GMAS on the labyrinths: updates by schedule, planning for many mazes at once."""

import functools
from dataclasses import replace
from typing import Any

import jax

from benchmarks.control import median_seconds
from benchmarks.flops import matmul_flops
from metadyna import envs
from metadyna.collect.device import DeviceCollector
from metadyna.models.abstract import Abstract
from metadyna.nets.sight import sight
from metadyna.planning.tree import at_a_time, planned_values
from metadyna.systems.crar import CRAR
from metadyna.systems.gmas import GMAS

OFFICIAL_UPDATE = 0.361
"""Seconds of the official Keras code per update on such a machine (shared/stack.md)."""
OFFICIAL_PLAN = 1.1
"""Seconds of the official code for one plan of depth 3 (shared/stack.md)."""


def bench_updates(peak: float, updates: int = 40) -> dict[str, Any]:
    """Milliseconds per update of batch 32, the losses one by one or summed; GMAS of depth 3 and breadth 2."""
    family = envs.make("labyrinth")
    collector, found = DeviceCollector(family.env, family.train), {}
    for schedule in ("joint", "each"):
        for name, base in (("crar", CRAR()), ("gmas", GMAS())):
            learning = replace(base.learning, schedule=schedule)
            data = replace(base.data, transitions=20_000)
            system = replace(base, learning=learning, data=data, updates=updates)
            state = jax.jit(system.init, static_argnums=0)(collector, jax.random.key(0))
            found[f"{name} {schedule}"] = _update(peak, system, collector, state)
    return found


def _update(peak: float, system: Any, collector: DeviceCollector, state: Any) -> dict[str, Any]:
    iterate = jax.jit(lambda state, key: system.iterate(state, collector, key)[0])
    seconds = median_seconds(lambda: iterate(state, jax.random.key(1))) / system.updates
    once = replace(system, updates=1)
    operations = matmul_flops(lambda state: once.iterate(state, collector, jax.random.key(1))[0], state)
    return {
        "milliseconds": round(1e3 * seconds, 1),
        "times_official": round(OFFICIAL_UPDATE / seconds, 1),
        "million_flops": round(operations / 1e6),
        "share_of_matmul_peak": round(operations / seconds / 1e9 / peak, 3),
    }


def bench_planning(peak: float, mazes: int = 200) -> dict[str, Any]:
    """Milliseconds per state of plans for the starts of many mazes at once, seeing included; breadth 2."""
    family = envs.make("labyrinth")
    see, found = sight(family.env), {}
    model = jax.jit(CRAR().form.create, static_argnums=(0, 1))((48, 48), 4, jax.random.key(0))
    tasks = jax.tree.map(lambda x: x[:mazes], family.test.enumerate())
    boards = jax.vmap(family.env.reset, (0, None))(tasks, jax.random.key(0))[1].obs
    for depth in (0, 1, 3, 5):

        @jax.jit
        def plan(model: Abstract, depth: int = depth) -> jax.Array:
            states, batch = see(model.encoder, boards), at_a_time(model.actions, 2, depth)
            return jax.lax.map(lambda x: planned_values(model, x, depth, 2), states, batch_size=batch)

        seconds = median_seconds(functools.partial(plan, model))
        operations = matmul_flops(plan, model)
        found[f"depth {depth}"] = {
            "milliseconds_per_state": round(1e3 * seconds / mazes, 3),
            "share_of_matmul_peak": round(operations / seconds / 1e9 / peak, 3),
        }
    found["depth 3"]["times_official"] = round(1e3 * OFFICIAL_PLAN / found["depth 3"]["milliseconds_per_state"])
    return found
