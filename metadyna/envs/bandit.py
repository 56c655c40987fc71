"""Bernoulli bandits: arms that pay 1 with a probability of their own, unknown to the agent.

The family on which RL2 was introduced (Duan et al. 2016, section 3.1): every pull is an episode, a trial is a number of
pulls of one bandit, and what can be earned in it beyond chance is earned by remembering.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.settings import Settings
from metadyna.types import Discrete, EnvSpec, TimeStep


class Arms(NamedTuple):
    """The probability that each arm pays."""

    pays: Float[Array, "arms"]


@dataclass(frozen=True)
class Bandit(Settings):
    """One pull is an episode, after which the bandit is as before; there is nothing to see."""

    arms: Annotated[int, "[2, 1000]"] = 5

    @property
    def spec(self) -> EnvSpec:
        """One observation, a choice of arms."""
        return EnvSpec(Discrete((1,)), Discrete((self.arms,)), 1)

    def reset(self, task: Arms, key: PRNGKeyArray) -> tuple[tuple[()], TimeStep]:
        """Stand before the bandit."""
        del task, key
        return (), _shown(jnp.float32(0), jnp.int32(-1), first=True)

    def step(
        self, task: Arms, state: tuple[()], action: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[tuple[()], TimeStep]:
        """Pull an arm."""
        reward = jax.random.bernoulli(key, task.pays[action]).astype(jnp.float32)
        return state, _shown(reward, action.astype(jnp.int32), first=False)


@dataclass(frozen=True)
class UniformArms(Settings):
    """Every arm's probability is uniform in [0, 1]; a split is a number of bandits, drawn once for all."""

    arms: Annotated[int, "[2, 1000]"] = 5
    count: Annotated[int, "[1, 1000000]"] = 100

    def sample(self, key: PRNGKeyArray) -> Arms:
        """Draw one bandit."""
        return Arms(jax.random.uniform(key, (self.arms,)))

    def enumerate(self) -> Arms:
        """The bandits of the split."""
        return jax.vmap(self.sample)(jax.random.split(jax.random.key(0), self.count))


def bayes_optimum(arms: int, pulls: int) -> float:
    """What the best of all agents earns on average in so many pulls, of probabilities uniform in [0, 1].

    By recursion over what is known of each arm, its successes and failures, in whatever order the arms stand.
    """

    @cache
    def worth(known: tuple[tuple[int, int], ...], left: int) -> float:
        if not left:
            return 0.0
        return max(pull(known, i, left) for i in range(len(known)) if known[i] not in known[:i])

    def pull(known: tuple[tuple[int, int], ...], arm: int, left: int) -> float:
        won, lost = known[arm]
        chance = (won + 1) / (won + lost + 2)
        others = known[:arm] + known[arm + 1 :]
        after = [tuple(sorted((*others, told))) for told in ((won + 1, lost), (won, lost + 1))]
        return chance * (1 + worth(after[0], left - 1)) + (1 - chance) * worth(after[1], left - 1)

    return worth(((0, 0),) * arms, pulls)


def _shown(reward: Array, action: Array, first: bool) -> TimeStep:
    nothing, last = jnp.zeros(1, jnp.int32), jnp.bool_(not first)
    return TimeStep(nothing, reward, 1 - last.astype(jnp.float32), jnp.bool_(first), last, action)
