"""Worlds: what a model says of one environment, step by step.

The model proper predicts numbers; a world says what they mean. Planners, branches and policies in imagination know
nothing else of a model: a latent, which `begin` makes of what was lived, `step` advances and `features` shows. Where
observations are all there is to know, the latent is the observation (`MarkovWorld`); others keep a memory in it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from metadyna.collect.windows import History
from metadyna.errors import UserError
from metadyna.types import Box, Known, Space, Transition

Latent = PyTree
"""Where a world is: arrays of a fixed shape."""

Noise = PyTree
"""What a step leaves to chance, drawn beforehand."""


class Prediction(NamedTuple):
    """What a world says that a step leads to; `obs` is () where observations are not decoded."""

    obs: PyTree
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]


@runtime_checkable
class World(Protocol):
    """K members that each advance rows of their own: latents, actions and noise are [K, n, ...]."""

    @property
    def num_members(self) -> int:
        """K."""
        ...

    @property
    def action(self) -> Space:
        """What actions look like."""
        ...

    def best(self) -> "World":
        """The members to imagine with."""
        ...

    def averaged(self) -> "World":
        """One member that moves by the mean of all, without noise."""
        ...

    def begin(self, history: History) -> Latent:
        """Where one copy is, after what it lived."""
        ...

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Noise:
        """The noise of steps of a shape [..., K, n]: all at once, for a loop of small draws costs by their number."""
        ...

    def step(self, latent: Latent, action: PyTree, noise: Noise) -> tuple[Latent, Prediction]:
        """Advance every row by one action."""
        ...

    def features(self, latent: Latent) -> PyTree:
        """What policies, critics and planners read of one latent."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """K members that map rows of inputs to rows of outputs; `gaussian.Ensemble` is one."""

    @property
    def num_members(self) -> int:
        """K."""
        ...

    @property
    def num_outputs(self) -> int:
        """Numbers that a member predicts."""
        ...

    @property
    def elites(self) -> Int[Array, "elites"]:
        """The members to imagine with, the best first."""
        ...

    def best(self) -> "Predictor":
        """The elites alone, in their order."""
        ...

    def only(self, member: Int[Array, ""]) -> "Predictor":
        """One member alone."""
        ...

    def sample(
        self, inputs: Float[Array, "K n inputs"], noise: Float[Array, "K n outputs"] | None
    ) -> Float[Array, "K n outputs"]:
        """What each member makes of its own rows and standard normal noise; the mean where `noise` is None."""
        ...


def never(next_obs: Float[Array, "obs"]) -> Bool[Array, ""]:
    """The MDP does not terminate."""
    del next_obs
    return jnp.bool_(False)


@dataclass(frozen=True)
class Meaning:
    """What a predictor's inputs and outputs mean in one environment; functions are of one copy.

    It reads the observation and the action, clipped to [-1, 1] as every environment does, and predicts the change of
    the observation. The reward and the end of an environment that is `types.Known` are given with its task filled in.
    """

    action: Space = Box((1,), -1.0, 1.0)
    """What actions look like."""
    reward: Callable[[Array, Array, Array], Array] | None = None
    """(obs, action, next_obs) to reward; None if it is predicted as the first output, as MBPO does."""
    terminated: Callable[[Array], Array] = never
    """next_obs to whether the MDP ends there."""

    def inputs(self, obs: Float[Array, "obs"], action: Float[Array, "action"]) -> Float[Array, "inputs"]:
        """What is read: the observation, then the action."""
        return jnp.concatenate([obs, jnp.clip(action, -1, 1)])

    def targets(
        self, obs: Float[Array, "obs"], reward: Float[Array, ""], next_obs: Float[Array, "obs"]
    ) -> Float[Array, "outputs"]:
        """What is to be predicted: the reward unless it is known, then the change of the observation."""
        change = next_obs - obs
        return change if self.reward is not None else jnp.concatenate([reward[None], change])

    def examples(self, rows: Transition) -> tuple[Float[Array, "*rows inputs"], Float[Array, "*rows outputs"]]:
        """What is learnt from transitions of any batch: inputs and their targets."""
        inputs = jnp.concatenate([rows.obs, jnp.clip(rows.action, -1, 1)], axis=-1)
        change = rows.next_obs - rows.obs
        known = self.reward is not None
        return inputs, change if known else jnp.concatenate([rows.reward[..., None], change], axis=-1)

    def decode(
        self, obs: Float[Array, "obs"], action: Float[Array, "action"], outputs: Float[Array, "outputs"]
    ) -> Prediction:
        """Next observation, reward and end that a prediction stands for."""
        if self.reward is None:
            next_obs = obs + outputs[1:]
            return Prediction(next_obs, outputs[0], self.terminated(next_obs))
        next_obs = obs + outputs
        return Prediction(next_obs, self.reward(obs, jnp.clip(action, -1, 1), next_obs), self.terminated(next_obs))

    def world(self, predictor: Predictor) -> "MarkovWorld":
        """The world that a predictor of these inputs and outputs makes."""
        return MarkovWorld(predictor, self)


class MarkovWorld(eqx.Module):
    """A world whose observations are all there is to know: the latent is the observation."""

    predictor: Predictor
    meaning: Meaning = eqx.field(static=True)

    @property
    def num_members(self) -> int:
        """K."""
        return self.predictor.num_members

    @property
    def action(self) -> Space:
        """What actions look like."""
        return self.meaning.action

    def best(self) -> "MarkovWorld":
        """The members to imagine with."""
        return replace(self, predictor=self.predictor.best())

    def averaged(self) -> "MarkovWorld":
        """One member that moves by the mean of the members' means."""
        return replace(self, predictor=Averaged(self.predictor))

    def begin(self, history: History) -> Float[Array, "obs"]:
        """The latest observation."""
        return history.obs

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."] | None:
        """Standard normal; none where nothing is left to chance."""
        if isinstance(self.predictor, Averaged):
            return None
        return jax.random.normal(key, (*shape, self.predictor.num_outputs))

    def step(
        self,
        latent: Float[Array, "K n obs"],
        action: Float[Array, "K n action"],
        noise: Float[Array, "K n outputs"] | None,
    ) -> tuple[Float[Array, "K n obs"], Prediction]:
        """Member k advances its own rows, without noise by its mean."""
        outputs = self.predictor.sample(_each(self.meaning.inputs)(latent, action), noise)
        predicted = _each(self.meaning.decode)(latent, action, outputs)
        return predicted.obs, predicted

    def features(self, latent: Float[Array, "obs"]) -> Float[Array, "obs"]:
        """The observation."""
        return latent


class Averaged(eqx.Module):
    """The mean of a predictor's members, as a predictor of one member without noise."""

    predictor: Predictor

    @property
    def num_members(self) -> int:
        """One."""
        return 1

    @property
    def num_outputs(self) -> int:
        """As many as the members predict."""
        return self.predictor.num_outputs

    @property
    def elites(self) -> Int[Array, "1"]:
        """Itself."""
        return jnp.zeros(1, jnp.int32)

    def best(self) -> "Averaged":
        """Itself."""
        return self

    def only(self, member: Int[Array, ""]) -> "Averaged":
        """Itself."""
        del member
        return self

    def sample(self, inputs: Float[Array, "1 n inputs"], noise: None) -> Float[Array, "1 n outputs"]:
        """The mean of the members' means."""
        del noise
        everywhere = jnp.broadcast_to(inputs, (self.predictor.num_members, *inputs.shape[1:]))
        return jnp.mean(self.predictor.sample(everywhere, None), axis=0, keepdims=True)


@cache
def known_world(env: Any) -> Meaning:
    """Reward and end are the environment's own functions of what is observed."""
    if not isinstance(env, Known):
        raise UserError(
            f"this method needs the reward as a function of what is observed, but {type(env).__name__} has none; "
            "choose a method that learns the reward, such as mbpo"
        )
    return Meaning(
        env.spec.action,
        reward=lambda obs, action, next_obs: env.reward(None, obs, action, next_obs),
        terminated=lambda next_obs: env.terminated(None, next_obs),
    )


@cache
def learnt_world(env: Any) -> Meaning:
    """The reward is predicted; the end is the environment's own function of what is observed."""
    if not callable(getattr(env, "terminated", None)):
        raise UserError(f"this method needs to know when an episode ends, but {type(env).__name__} does not say")
    return Meaning(env.spec.action, terminated=lambda next_obs: env.terminated(None, next_obs))


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of one copy to every row of every group."""
    return jax.vmap(jax.vmap(function))
