"""Squashed Gaussian policies, and the critics of actions that they are learnt with."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.nets.layers import MLP
from metadyna.policies.distributions import Normal, TanhNormal, bend
from metadyna.settings import Settings, Widths

LOG_STD_RANGE = (-20.0, 2.0)


class SquashedPolicy(eqx.Module):
    """Squashed Gaussian over actions in (-1, 1), given features."""

    mlp: MLP

    def __call__(self, x: Float[Array, "features"]) -> TanhNormal:
        """The distribution over actions."""
        mean, log_std = jnp.split(self.mlp(x), 2, axis=-1)
        return TanhNormal(Normal(mean, bend(log_std, *LOG_STD_RANGE)))


class Critic(eqx.Module):
    """Q(features, action)."""

    mlp: MLP

    def __call__(self, x: Float[Array, "features"], action: Float[Array, "actions"]) -> Float[Array, ""]:
        """Value one pair."""
        return self.mlp(jnp.concatenate([x, action]))[0]


class TwinCritic(eqx.Module):
    """Two critics of the same actions, of which the lower is believed (Fujimoto et al. 2018, arXiv 1802.09477)."""

    one: Critic
    other: Critic

    def __call__(self, x: Float[Array, "features"], action: Float[Array, "actions"]) -> Float[Array, "2"]:
        """Both values of one pair."""
        return jnp.stack([self.one(x, action), self.other(x, action)])


@dataclass(frozen=True)
class ActorCritic(Settings):
    """Networks for actions in [-1, 1]: a squashed policy and two critics."""

    widths: Widths = (256, 256)
    """Hidden layers of each."""
    layer_norm: bool = False
    """Normalise the critics' hidden layers."""

    def create(self, features: int, actions: int, key: PRNGKeyArray) -> tuple[SquashedPolicy, TwinCritic]:
        """Draw them for so many numbers observed and actions."""
        k_actor, *k_critics = jax.random.split(key, 3)
        actor = SquashedPolicy(MLP.create((features, *self.widths, 2 * actions), k_actor))
        sizes = (features + actions, *self.widths, 1)
        return actor, TwinCritic(*(Critic(MLP.create(sizes, k, layer_norm=self.layer_norm)) for k in k_critics))
