"""Policies that are learnt directly, by the gradient of what they earn: Gaussian or categorical over actions."""

from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.errors import UserError
from metadyna.nets.inputs import Inputs
from metadyna.nets.layers import MLP, Linear
from metadyna.policies.distributions import Categorical, Normal, bend
from metadyna.types import Box, Discrete, EnvSpec, Space

Activation = Literal["tanh", "relu"]

_ACTIVATIONS: Mapping[str, Any] = {"tanh": jax.nn.tanh, "relu": jax.nn.relu}

LOG_STD_RANGE = (-5.0, 2.0)


class GaussianPolicy(eqx.Module):
    """Diagonal Gaussian over actions: the mean is an MLP of the observation, the spread is free of it.

    Samples are not bounded; environments clip them to [-1, 1]. The log standard deviation is bent into `LOG_STD_RANGE`.
    """

    mlp: MLP
    raw_log_std: Float[Array, "actions"]
    inputs: Inputs = eqx.field(static=True, default=Inputs())

    def __call__(self, obs: Array) -> Normal:
        """The distribution over actions at one observation."""
        return Normal(self.mlp(self.inputs(obs)), self.log_std)

    @property
    def log_std(self) -> Float[Array, "actions"]:
        """Within the range."""
        return bend(self.raw_log_std, *LOG_STD_RANGE)


class CategoricalPolicy(eqx.Module):
    """One of a few actions: logits are an MLP of the observation."""

    mlp: MLP
    inputs: Inputs = eqx.field(static=True, default=Inputs())

    def __call__(self, obs: Array) -> Categorical:
        """The distribution over actions at one observation."""
        return Categorical(self.mlp(self.inputs(obs)))


Policy = GaussianPolicy | CategoricalPolicy


def create(
    spec: EnvSpec,
    widths: tuple[int, ...],
    key: PRNGKeyArray,
    log_std: float = 0.0,
    activation: Activation = "tanh",
    read: Inputs | None = None,
) -> Policy:
    """A fresh policy for the spaces of an environment, with hidden layers of some widths.

    It reads observations, or something of them if `read` is given. The last layer is drawn 100 times smaller, so that
    means and logits begin near 0.
    """
    inputs, outputs = Inputs.of(spec.observation) if read is None else read, num_outputs(spec.action)
    mlp = MLP.create((inputs.width, *widths, outputs), key, _ACTIVATIONS[activation])
    last = Linear(mlp.layers[-1].weight * 0.01, mlp.layers[-1].bias * 0)
    mlp = MLP((*mlp.layers[:-1], last), mlp.activation)
    if isinstance(spec.action, Discrete):
        return CategoricalPolicy(mlp, inputs)
    return GaussianPolicy(mlp, jnp.full(outputs, log_std, jnp.float32), inputs)


def num_outputs(space: Space) -> int:
    """Numbers that a policy says of one action: a mean each, or a logit per choice; `UserError` for other spaces."""
    if isinstance(space, Discrete) and len(space.sizes) == 1:
        return space.sizes[0]
    if isinstance(space, Box) and len(space.shape) == 1 and space.dtype == "float32":
        return space.shape[0]
    raise UserError(f"this method needs a vector of floats or one choice of a few as actions, not {space}")
