"""Where compiled programs are kept between processes."""

import hashlib
import os
import platform
import stat
import sys
from pathlib import Path

import jax

from metadyna.provenance.machine import cpuinfo


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


def _processor_tag() -> str:
    """Eight characters that differ between processors of different abilities.

    A home may be shared by several machines, and a program compiled for one may hold instructions that another
    lacks: XLA warns about it, then runs it.
    """
    abilities = f"{platform.machine()} {cpuinfo('model name')} {cpuinfo('flags')}"
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
