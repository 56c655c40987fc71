"""Where and with what a run was made, and where its compiled programs are kept."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import metadyna

_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "orbax-checkpoint")


def environment_record() -> dict[str, Any]:
    """Everything needed to tell two runs apart, as JSON: versions, machine, devices, commit, command, start time.

    What cannot be found out is None. `memory_bytes` is the machine's; `cores` those that this process may use.
    Initialises JAX's backend.
    """
    return {
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "git": _git_state(),
        "versions": _versions(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
        "jax_backend": jax.default_backend(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "devices": [device.device_kind for device in jax.devices()],
    }


def _versions() -> dict[str, str]:
    """Version of MetaDyna, of Python and of the packages that compute."""
    packages = {name: metadata.version(name) for name in _PACKAGES}
    return {"metadyna": metadyna.__version__, "python": platform.python_version(), **packages}


def _git_state() -> dict[str, Any] | None:
    """Commit of this package and whether its tree differs from it; None if the package is not in a checkout."""
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # installed below someone else's checkout, it fails
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    """Output of one git command in the folder of this package."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=10).stdout.strip()


def _cpu_model() -> str | None:
    """Name of the processor."""
    return cpuinfo("model name") or platform.processor() or None


def cpuinfo(field: str) -> str | None:
    """A field of the first processor in Linux's /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field)
    return next(values, None)


def _usable_cores() -> int | None:
    """Cores that this process may run on, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_bytes() -> int | None:
    """Memory of the machine, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
