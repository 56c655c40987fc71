"""Where and with what a run was made, and where its compiled programs are kept."""

import contextlib
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import metadyna
from metadyna.errors import UserError

_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "orbax-checkpoint")


def environment_record() -> dict[str, Any]:
    """Everything needed to tell two runs apart, as JSON: versions, machine, devices, commit, command, start time.

    What cannot be found out is None. `memory_bytes` is the machine's; `cores` those that this process may use. Whoever
    publishes it gives away no folder and no user of the machine. Initialises JAX's backend.
    """
    return {
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "git": _git_state(),
        "versions": _versions(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": _memory_bytes(),
        "jax_backend": jax.default_backend(),
        "xla_flags": _xla_flags(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def command() -> str:
    """How this process was called: `metadyna` or `python PROGRAM`, and the arguments, as `impersonal` has them.

    The text of `python -c` is left out, for it may hold anything.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program, *arguments = sys.argv or [""]
    if module is not None:
        name = module.name.removesuffix(".__main__")
        called = [name] if name == "metadyna" else ["python", "-m", name]
    elif Path(program).stem == "metadyna":  # what pip installs
        called = ["metadyna"]
    else:
        called = ["python", impersonal(program)] if program else ["python"]
    return shlex.join([*called, *map(impersonal, arguments)])


def impersonal(argument: str) -> str:
    """An argument without the folders of whoever gave it.

    Paths inside the working folder are made relative to it; of others the last name is left, and `~` of a home. A path
    is what holds a slash or begins with `~` or `..`, between the signs that may surround one.
    """
    return "".join(_impersonal(part) for part in _AROUND_PATHS.split(argument))


_AROUND_PATHS = re.compile(r"""([:,;="'()\[\]{}]\s*|\s+(?=[/~])|^-\w(?=[/~]))""")


def _impersonal(part: str) -> str:
    if not ("/" in part or part.startswith(("~", ".."))):
        return part
    here, home = Path.cwd(), Path(os.path.expanduser("~"))
    path = Path(os.path.normpath(here / re.sub("^~[^/]*", str(home), part)))
    if path == home:
        return "~"
    above_homes = here != home and here in home.parents  # a relative path may then name a user
    return str(path.relative_to(here)) if here in (path, *path.parents) and not above_homes else path.name


def _xla_flags() -> str | None:
    """Flags of the compiler; the files that they name are the machine's own."""
    flags = os.environ.get("XLA_FLAGS")
    return None if flags is None else " ".join(map(impersonal, flags.split()))


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


def refuse_64_bits() -> None:
    """Raise a `UserError` where JAX was told to compute in 64 bits: states, checkpoints and results have 32."""
    if jax.config.read("jax_enable_x64"):
        raise UserError("MetaDyna computes in 32 bits, but JAX is set to 64; unset JAX_ENABLE_X64 (jax_enable_x64)")


def usable_cores(membership: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may keep busy, at least 1: those it may run on, and no more than its CPU quota pays for.

    The quota is the least of those of its control group, of version 1 or 2, and the groups around it; a part of a core
    counts as one. `membership` says which group that is, and `mounts` is where groups are seen.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(membership, mounts))]))


def _quotas(membership: Path, mounts: Path) -> Iterator[float]:
    """CPU quotas, in cores, of a process's control group and of those around it; none where there are no limits."""
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = mounts / controllers
            # In a container the path may be the host's and not be seen; then only the root, its own group, is.
            for group in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
                yield from _quota(group)
                if group == root:
                    break


def _quota(group: Path) -> Iterator[float]:
    """The quota of one control group: of version 2 in one file, of version 1 in two; "max" and -1 are none."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            told = " ".join((group / name).read_text(encoding="utf-8") for name in files)
            quota, period = (float(word) for word in told.split())
            if quota > 0 and period > 0:
                yield quota / period


def _memory_bytes() -> int | None:
    """Memory of the machine, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
