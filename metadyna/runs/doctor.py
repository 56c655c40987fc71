"""Checks of a machine and an installation."""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from metadyna import envs
from metadyna.provenance import machine


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    finding: str
    good: bool


def examine(cache: Path | None) -> list[Check]:
    """Look at versions, devices, speed, cache and disk, and take one step of an environment."""
    record = machine.environment_record()
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    memory = (record["memory_bytes"] or 0) / 2**30
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    return [
        Check("versions", versions, True),
        Check("machine", f"{record['cpu']}, {record['cores']} cores, {memory:.0f} GiB", True),
        Check("devices", f"{record['jax_backend']}: {', '.join(record['devices'])}", True),
        Check("matrix product", f"{matmul_gflops():.0f} GFLOP/s at 1024 x 1024", True),
        Check("compilation cache", str(cache) if cache else "not in use (see the warning)", cache is not None),
        Check("disk", f"{free:.1f} GiB free in {os.getcwd()}", free > 1),
        _writable(),
        _environment(),
    ]


def matmul_gflops(size: int = 1024, repeats: int = 10) -> float:
    """Best rate of a square single-precision matrix product, in GFLOP/s."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(a))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def _writable() -> Check:
    try:
        with tempfile.TemporaryFile(dir="."):
            return Check("this folder", "can be written", True)
    except OSError as error:
        return Check("this folder", f"cannot be written: {error.strerror}", False)


def _environment() -> Check:
    family = envs.make("city-5x5")
    task = jax.tree.map(lambda x: x[0], family.test.enumerate())
    state, _ = family.env.reset(task, jax.random.key(0))
    _, timestep = family.env.step(task, state, jnp.int32(0), jax.random.key(0))
    return Check("environment", f"one step of city-5x5 pays {float(timestep.reward):.1f}", float(timestep.reward) < 0)
