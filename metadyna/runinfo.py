"""Where and with what a run was made, and where its compiled programs are kept."""

import hashlib
import os
import platform
import shlex
import stat
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


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs between processes; returns the folder, or None with a warning on stderr.

    Call it before the first computation, as JAX looks for the folder only once. The folder is private to the user,
    in `$XDG_CACHE_HOME` or `~/.cache`; one that was set by `JAX_COMPILATION_CACHE_DIR` is left alone. A cached
    program is run as it is, so a folder into which others can write is refused.
    """
    chosen = jax.config.jax_compilation_cache_dir
    folder = Path(chosen) if chosen else _cache_home() / "metadyna" / f"jax-{jax.__version__}-{_processor_tag()}"
    if not chosen:
        try:
            _make_private(folder.parent)
            _make_private(folder)
        except OSError as error:
            print(f"warning: compiled programs are not cached: {error}", file=sys.stderr)
            return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


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
    return _cpuinfo("model name") or platform.processor() or None


def _cpuinfo(field: str) -> str | None:
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


def _processor_tag() -> str:
    """Eight characters that differ between processors of different abilities.

    A home may be shared by several machines, and a program compiled for one may hold instructions that another
    lacks: XLA warns about it, then runs it.
    """
    abilities = f"{platform.machine()} {_cpuinfo('model name')} {_cpuinfo('flags')}"
    return hashlib.sha256(abilities.encode()).hexdigest()[:8]


def _cache_home() -> Path:
    """Cache folder of the user; the XDG specification wants a relative one ignored."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path.home() / ".cache"


def _make_private(folder: Path) -> None:
    """Create a folder with mode 0700, or raise PermissionError if one is there that others can write to."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()  # not through a symbolic link, which someone else may redirect
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is not a folder owned by this user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others can write to {folder}; 'chmod go-w' on it allows caching")
