"""Squashed Gaussian policies."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.nets.layers import MLP
from metadyna.policies.distributions import squashed_normal
from metadyna.types import TimeStep

LOG_STD_RANGE = (-20.0, 2.0)


class Actor(eqx.Module):
    """Squashed Gaussian over actions in (-1, 1), given features."""

    mlp: MLP

    def __call__(self, x: Float[Array, "features"]) -> tuple[Float[Array, "actions"], Float[Array, "actions"]]:
        """Mean and log standard deviation before the squashing."""
        mean, log_std = jnp.split(self.mlp(x), 2, axis=-1)
        return mean, jnp.clip(log_std, *LOG_STD_RANGE)


def sac_action(
    actor: Actor, x: Float[Array, "features"], key: PRNGKeyArray, stochastic: bool | Array = True
) -> Float[Array, "actions"]:
    """Draw an action, or take the squashed mean."""
    mean, log_std = actor(x)
    return jnp.where(stochastic, squashed_normal(mean, log_std, key)[0], jnp.tanh(mean))


def practise(
    params: tuple[Actor, Array], carry: tuple[()], timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, tuple[()], tuple[()]]:
    """Draw from the policy, or uniformly while warming up."""
    actor, random = params
    k_action, k_random = jax.random.split(key)
    action = sac_action(actor, timestep.obs, k_action)
    uniform = jax.random.uniform(k_random, action.shape, minval=-1, maxval=1)
    return jnp.where(random, uniform, action), carry, ()


def perform(
    actor: Actor, carry: tuple[()], timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, tuple[()], tuple[()]]:
    """Take the policy's mean action."""
    return sac_action(actor, timestep.obs, key, stochastic=False), carry, ()
