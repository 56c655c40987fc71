"""Gaussian policies for on-policy methods."""

from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.nets.layers import MLP, Linear
from metadyna.policies.distributions import normal_log_prob
from metadyna.types import TimeStep

Activation = Literal["tanh", "relu"]

_ACTIVATIONS: Mapping[str, Any] = {"tanh": jax.nn.tanh, "relu": jax.nn.relu}


class GaussianPolicy(eqx.Module):
    """Diagonal Gaussian over actions: the mean is an MLP of the observation, the spread is free of it.

    Samples are not bounded; environments clip them to [-1, 1].
    """

    mlp: MLP
    log_std: Float[Array, "actions"]

    @staticmethod
    def create(
        observed: int,
        actions: int,
        widths: tuple[int, ...],
        key: PRNGKeyArray,
        log_std: float = 0.0,
        activation: Activation = "tanh",
    ) -> "GaussianPolicy":
        """The last layer is drawn 100 times smaller, so that means begin near 0."""
        mlp = MLP.create((observed, *widths, actions), key, _ACTIVATIONS[activation])
        last = Linear(mlp.layers[-1].weight * 0.01, mlp.layers[-1].bias * 0)
        mlp = MLP((*mlp.layers[:-1], last), mlp.activation)
        return GaussianPolicy(mlp, jnp.full(actions, log_std, jnp.float32))

    def __call__(self, obs: Float[Array, "observed"]) -> tuple[Float[Array, "actions"], Float[Array, "actions"]]:
        """Mean and log standard deviation."""
        return self.mlp(obs), jnp.clip(self.log_std, -5, 2)

    def sample(
        self, obs: Float[Array, "observed"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "actions"], Float[Array, ""]]:
        """Draw an action, with its log-density."""
        mean, log_std = self(obs)
        action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return action, normal_log_prob(action, mean, log_std)


def practise(
    policy: GaussianPolicy, carry: tuple[()], timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, tuple[()], Array]:
    """Draw an action; its log-density is noted."""
    action, log_prob = policy.sample(timestep.obs, key)
    return action, carry, log_prob


def perform(
    policy: GaussianPolicy, carry: tuple[()], timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, tuple[()], tuple[()]]:
    """Take the mean action."""
    del key
    return policy(timestep.obs)[0], carry, ()
