"""Five tiny environments with known action values; a learner that misses one has a bug in the part it isolates.

Source: the probe environments of Jones 2021 (andyljones.com, "Debugging reinforcement learning without the pain").
"""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.settings import Horizon, Settings
from metadyna.types import Discrete, EnvSpec, TimeStep


class ProbeState(NamedTuple):
    """The observed number, and how many steps were taken."""

    number: Int[Array, "*batch"]
    time: Int[Array, "*batch"]


@dataclass(frozen=True)
class Probe(Settings):
    """An environment whose observation is its whole state, one number.

    `rewards[number][action]` is paid for an action. An episode starts at a number uniform over the first
    `num_starts`; every step adds one, and after `horizon` steps the episode terminates. Tasks are ignored.
    """

    rewards: tuple[tuple[Annotated[float, "[-1000000, 1000000]"], ...], ...]
    num_starts: Annotated[int, "[1, 1000000]"] = 1
    horizon: Horizon = 1

    @property
    def spec(self) -> EnvSpec:
        """One discrete number in, one action out."""
        return EnvSpec(Discrete((len(self.rewards),)), Discrete((len(self.rewards[0]),)), self.horizon)

    def reset(self, task: Any, key: PRNGKeyArray) -> tuple[ProbeState, TimeStep]:
        """Start at a random number."""
        del task
        number = jax.random.randint(key, (), 0, self.num_starts)
        nothing, yes, no = jnp.int32(-1), jnp.bool_(True), jnp.bool_(False)
        timestep = TimeStep(number[None], jnp.float32(0), jnp.float32(1), yes, no, nothing)
        return ProbeState(number, jnp.int32(0)), timestep

    def step(
        self, task: Any, state: ProbeState, action: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[ProbeState, TimeStep]:
        """Pay for the action and move on."""
        del task, key
        reward = jnp.asarray(self.rewards, jnp.float32)[state.number, action]
        number = jnp.minimum(state.number + 1, len(self.rewards) - 1)
        state = ProbeState(number, state.time + 1)
        last = state.time >= self.horizon
        action = action.astype(jnp.int32)
        discount = 1 - last.astype(jnp.float32)
        return state, TimeStep(number[None], reward, discount, jnp.bool_(False), last, action)


PROBES: dict[str, Probe] = {
    # the value is learnt at all
    "constant": Probe(rewards=((1.0, 1.0),)),
    # it depends on the observation
    "observation": Probe(rewards=((-1.0, -1.0), (1.0, 1.0)), num_starts=2),
    # it travels back one step, discounted
    "two-step": Probe(rewards=((0.0, 0.0), (1.0, 1.0)), horizon=2),
    # it depends on the action
    "action": Probe(rewards=((-1.0, 1.0),)),
    # it depends on both, and so does the best action
    "observation-action": Probe(rewards=((1.0, -1.0), (-1.0, 1.0)), num_starts=2),
}
"""From the simplest to the hardest; each needs one ability more than those before."""


def values(env: Probe, discount: float) -> Float[np.ndarray, "observations actions"]:
    """The optimal action values."""
    known = np.array(env.rewards)
    for number in reversed(range(env.horizon - 1)):  # only a probe with one start has more than one step
        known[number] += discount * known[number + 1].max()
    return known
