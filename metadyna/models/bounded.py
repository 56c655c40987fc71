"""Keeping imagination near the data."""

from dataclasses import replace
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metadyna.models.gaussian import Standardiser
from metadyna.models.worlds import Predictor


@runtime_checkable
class Scaled(Predictor, Protocol):
    """A predictor that knows mean and deviation of every column of the data that it was fitted to."""

    @property
    def input_scale(self) -> Standardiser:
        """Of what it reads."""
        ...

    @property
    def target_scale(self) -> Standardiser:
        """Of what it predicts."""
        ...


class Nearby(eqx.Module):
    """A predictor of changes, by which no entry of the observation gets further than `reach` deviations from its mean.

    Beyond its data a network goes on in straight lines, so that an imagined robot may fly off and be paid for it. What
    is read begins with the observation, what is told is its change.
    """

    predictor: Scaled
    reach: float = eqx.field(static=True)

    @property
    def num_members(self) -> int:
        """K."""
        return self.predictor.num_members

    @property
    def num_outputs(self) -> int:
        """Numbers that a member predicts: as many as are observed."""
        return self.predictor.num_outputs

    @property
    def elites(self) -> Int[Array, "elites"]:
        """The members to imagine with, the best first."""
        return self.predictor.elites

    def best(self) -> "Nearby":
        """The members to imagine with."""
        return replace(self, predictor=self.predictor.best())

    def only(self, member: Int[Array, ""]) -> "Nearby":
        """One member alone."""
        return replace(self, predictor=self.predictor.only(member))

    def sample(
        self, inputs: Float[Array, "K n inputs"], noise: Float[Array, "K n outputs"] | None
    ) -> Float[Array, "K n outputs"]:
        """The change, as far as the bound."""
        observed, scale = self.num_outputs, self.predictor.input_scale
        mean, room = scale.mean[:observed], self.reach * scale.std[:observed]
        obs = inputs[..., :observed]
        low, high = (bound[None, None] for bound in (mean - room, mean + room))
        return jnp.clip(obs + self.predictor.sample(inputs, noise), low, high) - obs
