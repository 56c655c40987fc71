"""Compiling what a system computes between two calls of a collector."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax


@cache
def compiled(function: Callable[..., Any], static: int, donate: bool) -> Callable[..., Any]:
    """A function whose first `static` arguments are constants; with `donate` the next one's memory is used again.

    The same for the same function, such as a method of equal settings, so that it compiles once.
    """
    return jax.jit(function, static_argnums=tuple(range(static)), donate_argnums=(static,) if donate else ())
