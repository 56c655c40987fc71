"""True dynamics in the place of a model: what a planner would know that knew everything."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from metadyna.collect.windows import History
from metadyna.models.worlds import Prediction
from metadyna.types import Observed, Space, Task


class Place(NamedTuple):
    """A state of the environment, and what is observed there."""

    state: PyTree
    obs: PyTree


class TrueDynamics(eqx.Module):
    """A world (`worlds.World`) that is the environment itself, on one task; all its members know the same."""

    env: Observed = eqx.field(static=True)
    task: Task = None
    num_members: int = eqx.field(static=True, default=1)

    @property
    def action(self) -> Space:
        """What actions look like."""
        return self.env.spec.action

    def best(self) -> "TrueDynamics":
        """Itself."""
        return self

    def averaged(self) -> "TrueDynamics":
        """One member."""
        return TrueDynamics(self.env, self.task)

    def begin(self, history: History) -> Place:
        """The state that shows as the latest observation; how much time has passed is not known."""
        return Place(self.env.state_of(self.task, history.obs), history.obs)

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Key[Array, "..."]:
        """The environment's own randomness."""
        return jax.random.split(key, shape)

    def step(self, latent: Place, action: PyTree, noise: Key[Array, "K n"] | None) -> tuple[Place, Prediction]:
        """Step every row's copy of the environment; of what is random, always the same where `noise` is None."""
        keys = jax.random.split(jax.random.key(0), latent.obs.shape[:2]) if noise is None else noise

        def one(place: Place, action: Any, key: PRNGKeyArray) -> tuple[Place, Prediction]:
            state, timestep = self.env.step(self.task, place.state, action, key)
            return Place(state, timestep.obs), Prediction(timestep.obs, timestep.reward, timestep.discount == 0)

        return jax.vmap(jax.vmap(one))(latent, action, keys)

    def features(self, latent: Place) -> PyTree:
        """The observation."""
        return latent.obs
