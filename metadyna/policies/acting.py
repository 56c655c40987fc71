"""Acting by what a policy says: any module that maps one observation to a distribution over actions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from metadyna.policies.distributions import Distribution
from metadyna.types import Carry, TimeStep

PolicyFn = Callable[[PyTree], Distribution]
"""A policy: from one observation to a distribution over actions."""


def practise(
    policy: PolicyFn, carry: Carry, timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, Carry, Float[Array, ""]]:
    """Draw an action; its log-density is noted."""
    action, log_prob = policy(timestep.obs).sample_with_log_prob(key)
    return action, carry, log_prob


def perform(policy: PolicyFn, carry: Carry, timestep: TimeStep, key: PRNGKeyArray) -> tuple[Array, Carry, tuple[()]]:
    """Take the most likely action."""
    del key
    return policy(timestep.obs).mode(), carry, ()


def practise_or_guess(
    params: tuple[PolicyFn, Bool[Array, ""]], carry: Carry, timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Float[Array, "actions"], Carry, tuple[()]]:
    """Draw an action of the policy, or, while it says so, any in [-1, 1]."""
    policy, guess = params
    k_action, k_guess = jax.random.split(key)
    action = policy(timestep.obs).sample(k_action)
    anything = jax.random.uniform(k_guess, action.shape, minval=-1, maxval=1)
    return jnp.where(guess, anything, action), carry, ()
