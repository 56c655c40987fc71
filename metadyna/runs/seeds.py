"""Several seeds in one program.

Everything that a run keeps has a leading axis of seeds. On accelerators the seeds are `vmap`ped. On CPUs they are
spread over the host's devices (one per core that may be used, where the command line asked XLA for them) and taken in
turn on each: small matrices gain nothing from a batch there, loops whose length differs between seeds would run as long
as the longest, and a seed computes exactly the same numbers alone and in company.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metadyna.provenance import machine


def use_cores(seeds: int) -> None:
    """Ask JAX for one CPU device per seed, at most two per core. Call before JAX computes anything.

    More devices than cores keep all cores busy where the seeds do not divide evenly. Without a call, or after JAX has
    computed, all seeds take turns on one core.
    """
    with contextlib.suppress(RuntimeError):  # the devices are there already
        jax.config.update("jax_num_cpu_devices", max(1, min(seeds, 2 * machine.usable_cores())))


def mesh(seeds: int) -> Mesh:
    """The devices to use: as many as divide the seeds evenly."""
    devices = jax.devices()
    count = max(n for n in range(1, min(seeds, len(devices)) + 1) if seeds % n == 0)
    return Mesh(np.array(devices[:count]), ("seed",))


def over_seeds(function: Callable[..., Any], on: Mesh, donate: bool = False) -> jax.stages.Wrapped:
    """Compile `function` of one seed's arguments into one of all seeds' arguments, stacked on axis 0.

    With `donate` the memory of the first argument is reused for the result.
    """

    def one_device(*arguments: Any) -> Any:
        if on.devices.flat[0].platform == "cpu":
            return jax.lax.map(lambda each: function(*each), arguments)
        return jax.vmap(function)(*arguments)

    spec = PartitionSpec("seed")
    mapped = jax.shard_map(one_device, mesh=on, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


def place(stacked: Any, on: Mesh) -> Any:
    """Put a pytree with a leading seed axis where `over_seeds` expects it."""
    return jax.device_put(stacked, NamedSharding(on, PartitionSpec("seed")))


def sharded(shapes: Any, on: Mesh) -> Any:
    """The shapes of a pytree that `place` has placed."""
    where = NamedSharding(on, PartitionSpec("seed"))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
