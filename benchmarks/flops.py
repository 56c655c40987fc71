"""Count the floating-point operations of matrix products in a JAX function, loops included."""

import math
from typing import Any

import jax
from jax.extend import core


def matmul_flops(function: Any, *arguments: Any) -> int:
    """Two operations per multiply-add of every `dot_general`; a scan counts once per step, a cond its dearest branch.

    Bodies of `while` loops count once, as their trip count is not known.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
            total += 2 * math.prod(_shape(equation.outvars[0])) * depth
        elif name == "scan":
            total += params["length"] * _count(params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        else:
            total += sum(_count(inner) for inner in _inner(params))
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        closed = getattr(value, "jaxpr", value)
        if isinstance(closed, core.Jaxpr):
            found.append(closed)
    return found
