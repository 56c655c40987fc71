"""Ensembles of Gaussian dynamics networks: PETS (Chua et al. 2018), MBPO (Janner et al. 2019), ME-TRPO (Kurutach 2018).

A member maps what it is shown of (state, action) to the mean and the variance of what changes, or to the mean only.
Members are stacked on axis 0 of every weight, so that a product for all of them is one batched matrix product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.collect.returns import masked_mean
from metadyna.errors import UserError
from metadyna.models.fit import Errors
from metadyna.nets.layers import MLP, Linear
from metadyna.nets.moments import Moments
from metadyna.settings import Settings, Widths, check_ranges


def swish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x σ(x), written with a hyperbolic tangent, which XLA computes faster than an exponential and a quotient.

    A planning step takes an eighth less time.
    """
    return 0.5 * x * (1 + jnp.tanh(0.5 * x))


class Standardiser(eqx.Module):
    """Shift and scale of every column."""

    mean: Float[Array, "columns"]
    std: Float[Array, "columns"]

    @staticmethod
    def identity(columns: int) -> "Standardiser":
        """Changes nothing."""
        return Standardiser(jnp.zeros(columns), jnp.ones(columns))

    @staticmethod
    def of(moments: Moments) -> "Standardiser":
        """Mean and population deviation; a constant column keeps its scale."""
        return Standardiser(moments.mean, moments.std)

    def __call__(self, x: Float[Array, "columns"]) -> Float[Array, "columns"]:
        """Map one row to zero mean and unit deviation."""
        return (x - self.mean) / self.std

    def undo(self, x: Float[Array, "columns"]) -> Float[Array, "columns"]:
        """Map one row back."""
        return x * self.std + self.mean


class GaussianMLP(eqx.Module):
    """One member: a mean and an unbounded log-variance per output, or the mean only."""

    mlp: MLP
    probabilistic: bool = eqx.field(static=True)

    @staticmethod
    def create(
        inputs: int,
        outputs: int,
        key: PRNGKeyArray,
        widths: Sequence[int] = (200, 200, 200, 200),
        activation: Callable[[Array], Array] = swish,
        probabilistic: bool = True,
    ) -> "GaussianMLP":
        """Draw weights from N(0, 1/(4 fan_in)) cut at two standard deviations; biases are 0.

        As in the code of PETS and MBPO the scale is that of the normal before the cut; what is drawn has 0.88 of it.
        """
        sizes = (inputs, *widths, 2 * outputs if probabilistic else outputs)
        layers = []
        for k, (fan_in, fan_out) in zip(jax.random.split(key, len(sizes) - 1), pairwise(sizes), strict=True):
            weight = jax.random.truncated_normal(k, -2.0, 2.0, (fan_in, fan_out)) / (2 * fan_in**0.5)
            layers.append(Linear(weight, jnp.zeros(fan_out)))
        return GaussianMLP(MLP(tuple(layers), activation), probabilistic)

    def __call__(self, x: Float[Array, "inputs"]) -> tuple[Float[Array, "outputs"], Float[Array, "outputs"] | None]:
        """Mean and raw log-variance of one example; no log-variance in the deterministic form."""
        y = self.mlp(x)
        if not self.probabilistic:
            return y, None
        outputs = y.shape[0] // 2
        return y[:outputs], y[outputs:]


def bound_log_variance(
    raw: Float[Array, "outputs"], low: Float[Array, "outputs"], high: Float[Array, "outputs"]
) -> Float[Array, "outputs"]:
    """Bend a log-variance softly into the bounds; the upper one is exceeded by at most softplus(low − high).

    Chua et al. 2018, appendix A.1.
    """
    below = high - jax.nn.softplus(high - raw)
    return low + jax.nn.softplus(below - low)


def bounded_variance(
    raw: Float[Array, "outputs"], low: Float[Array, "outputs"], high: Float[Array, "outputs"]
) -> Float[Array, "outputs"]:
    """The exponential of `bound_log_variance`, which needs one sigmoid where that needs two softplus."""
    return jnp.exp(low) + jnp.exp(high) * jax.nn.sigmoid(raw - high)


class Weights(eqx.Module):
    """What gradients change: the members, stacked on axis 0, and the bounds of the log-variance that they share."""

    members: GaussianMLP
    max_log_variance: Float[Array, "outputs"]
    min_log_variance: Float[Array, "outputs"]


class Ensemble(eqx.Module):
    """K members with the scales of their data; `elites` are the members to imagine with, the best first.

    Inputs and predictions are in the data's own units.
    """

    weights: Weights
    input_scale: Standardiser
    target_scale: Standardiser
    elites: Int[Array, "elites"]

    @property
    def num_members(self) -> int:
        """K."""
        return jax.tree.leaves(self.weights.members)[0].shape[0]

    @property
    def num_inputs(self) -> int:
        """Numbers that a member reads."""
        return self.input_scale.mean.shape[-1]

    @property
    def num_outputs(self) -> int:
        """Numbers that a member predicts."""
        return self.target_scale.mean.shape[-1]

    def best(self) -> "Ensemble":
        """The elites alone, in their order."""
        if self.elites.shape[0] == self.num_members:
            return self  # spares copying all weights
        members = jax.tree.map(lambda w: w[self.elites], self.weights.members)
        return replace(self, weights=replace(self.weights, members=members), elites=jnp.arange(self.elites.shape[0]))

    def only(self, member: Int[Array, ""]) -> "Ensemble":
        """One member alone, as an ensemble."""
        members = jax.tree.map(lambda w: w[member][None], self.weights.members)
        return replace(self, weights=replace(self.weights, members=members), elites=jnp.zeros(1, self.elites.dtype))

    def predict(
        self, inputs: Float[Array, "K n inputs"]
    ) -> tuple[Float[Array, "K n outputs"], Float[Array, "K n outputs"]]:
        """Mean and log-variance that each member gives its own rows.

        In the deterministic form the log-variance is −∞.
        """

        def one(member: GaussianMLP, x: Array) -> tuple[Array, Array]:
            mean, log_variance = self.standardised(member, x)
            mean = self.target_scale.undo(mean)
            if log_variance is None:
                return mean, jnp.full_like(mean, -jnp.inf)
            return mean, log_variance + 2 * jnp.log(self.target_scale.std)

        return self._each(one, inputs)

    def predict_all(
        self, inputs: Float[Array, "n inputs"]
    ) -> tuple[Float[Array, "K n outputs"], Float[Array, "K n outputs"]]:
        """Mean and log-variance that every member gives the same rows."""
        return self.predict(jnp.broadcast_to(inputs, (self.num_members, *inputs.shape)))

    def sample(
        self, inputs: Float[Array, "K n inputs"], noise: Float[Array, "K n outputs"] | None
    ) -> Float[Array, "K n outputs"]:
        """What each member makes of its own rows and standard normal noise; the mean where `noise` is None."""

        def one(member: GaussianMLP, x: Array, noise: Array | None) -> Array:
            y, raw = member(self.input_scale(x))
            if raw is not None and noise is not None:
                bounds = self.weights.min_log_variance, self.weights.max_log_variance
                y = y + jnp.sqrt(bounded_variance(raw, *bounds)) * noise
            return self.target_scale.undo(y)

        return self._each(one, inputs, noise)

    def standardised(
        self, member: GaussianMLP, x: Float[Array, "inputs"]
    ) -> tuple[Float[Array, "outputs"], Float[Array, "outputs"] | None]:
        """Mean and bounded log-variance of one member for one row, in standardised units of the target."""
        mean, raw = member(self.input_scale(x))
        if raw is None:
            return mean, None
        return mean, bound_log_variance(raw, self.weights.min_log_variance, self.weights.max_log_variance)

    def _each(self, one: Callable[..., Any], *rows: Array | None) -> Any:
        """Apply `one(member, *row)` to every member's own rows [K, n, ...]."""
        over_rows = jax.vmap(one, (None, *(0 for _ in rows)))
        return jax.vmap(over_rows)(self.weights.members, *rows)


Examples = tuple[Float[Array, "*rows inputs"], Float[Array, "*rows outputs"]]
"""Inputs and targets."""


@dataclass(frozen=True)
class GaussianEnsemble(Settings):
    """Settings of an ensemble; the defaults are MBPO's.

    PETS: `members=5, elites=5`. ME-TRPO: `members=5, elites=5, widths=(1024, 1024), activation="relu",
    probabilistic=False, weight_decay=(0, 0, 0), standardise_targets=True`.
    """

    members: Annotated[int, "[1, 1024]"] = 7
    """Networks, K."""
    elites: Annotated[int, "[1, 1024]"] = 5
    """Members to imagine with; chosen by their error on held-out data."""
    widths: Widths = (200, 200, 200, 200)
    """Units of the hidden layers."""
    activation: Literal["swish", "relu"] = "swish"
    """Between layers."""
    probabilistic: bool = True
    """Predict a variance beside the mean."""
    learning_rate: Annotated[float, "(0, 1]"] = 1e-3
    """Adam's step size."""
    weight_decay: tuple[Annotated[float, "[0, 1000000]"], ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    """λ per layer, the output last: λ/2 ‖W‖² is added to the loss."""
    max_log_variance: Annotated[float, "[-50, 50]"] = 0.5
    """Upper bound of the log-variance at the start."""
    min_log_variance: Annotated[float, "[-50, 50]"] = -10.0
    """Lower bound of the log-variance at the start."""
    learned_bounds: bool = True
    """Whether both bounds are learnt, or stay."""
    log_variance_penalty: Annotated[float, "[0, 1000000]"] = 0.01
    """Price of the distance between the learnt bounds."""
    standardise_targets: bool = False
    """Learn targets of unit deviation. Published code does not; small columns are learnt better with it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, elites=f"[1, {self.members}]", max_log_variance=f"({self.min_log_variance}, 50]")
        layers = len(self.widths) + 1
        if len(self.weight_decay) != layers:
            raise UserError(
                f"GaussianEnsemble.weight_decay = {self.weight_decay} must be {layers} numbers, "
                "one for every layer of widths and one for the output"
            )

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """Adam; the weight decay is in the loss."""
        return optax.adam(self.learning_rate)

    def create(self, inputs: int, outputs: int, key: PRNGKeyArray) -> Ensemble:
        """Draw the members' weights; data count as standardised until the first fit."""
        activation = {"swish": swish, "relu": jax.nn.relu}[self.activation]

        def member(key: PRNGKeyArray) -> GaussianMLP:
            return GaussianMLP.create(inputs, outputs, key, self.widths, activation, self.probabilistic)

        weights = Weights(
            jax.vmap(member)(jax.random.split(key, self.members)),
            # With a type of their own, or a fitted ensemble would compile anew.
            jnp.full(outputs, self.max_log_variance, jnp.float32),
            jnp.full(outputs, self.min_log_variance, jnp.float32),
        )
        scales = Standardiser.identity(inputs), Standardiser.identity(outputs)
        return Ensemble(weights, *scales, jnp.arange(self.elites))

    def drawn_anew(self, ensemble: Ensemble, key: PRNGKeyArray) -> Ensemble:
        """An ensemble of the same shapes, as fresh as the first."""
        return self.create(ensemble.num_inputs, ensemble.num_outputs, key)

    def scaled(self, ensemble: Ensemble, scales: tuple[Moments, Moments]) -> Ensemble:
        """The ensemble with the scales of its data; targets keep theirs unless they are to be standardised."""
        inputs, targets = (Standardiser.of(moments) for moments in scales)
        return replace(
            ensemble,
            input_scale=inputs,
            target_scale=targets if self.standardise_targets else ensemble.target_scale,
        )

    def errors(self, ensemble: Ensemble, examples: Examples, scales: tuple[Moments, Moments]) -> Errors:
        """Every member's errors on its own rows [K, n, ...], averaged over outputs."""
        inputs, targets = examples
        mean, log_variance = ensemble.predict(inputs)
        residual = mean - targets
        squared = (residual / scales[1].std[None, None]) ** 2
        likelihood = residual**2 * jnp.exp(-log_variance) + log_variance
        return Errors(jnp.mean(squared, axis=-1), jnp.mean(likelihood, axis=-1))

    def loss(self, ensemble: Ensemble, examples: Examples, valid: Bool[Array, "n"]) -> Float[Array, ""]:
        """Σ over members of mean [(μ − y)² exp(−v) + v] over valid rows and outputs, and the penalties; v = log σ².

        Examples are inputs and targets [K, n, ...], each member's own.

        The deterministic form has mean (μ − y)². Chua et al. 2018, eq. 1, and appendix A.1. Gradients with
        respect to `ensemble.weights` are meant.
        """
        inputs, targets = examples
        if not self.learned_bounds:
            low, high = jax.lax.stop_gradient((ensemble.weights.min_log_variance, ensemble.weights.max_log_variance))
            weights = replace(ensemble.weights, min_log_variance=low, max_log_variance=high)
            ensemble = replace(ensemble, weights=weights)

        def error(member: GaussianMLP, x: Array, y: Array) -> Array:
            mean, log_variance = ensemble.standardised(member, x)
            squared = (mean - ensemble.target_scale(y)) ** 2
            return jnp.mean(squared if log_variance is None else squared * jnp.exp(-log_variance) + log_variance)

        errors = jax.vmap(jax.vmap(error, (None, 0, 0)))(ensemble.weights.members, inputs, targets)
        total = jnp.sum(jax.vmap(masked_mean, (0, None))(errors, valid))
        layers = ensemble.weights.members.mlp.layers
        for decay, layer in zip(self.weight_decay, layers, strict=True):
            total = total + decay / 2 * jnp.sum(layer.weight**2)
        if self.probabilistic and self.learned_bounds:
            gap = ensemble.weights.max_log_variance - ensemble.weights.min_log_variance
            total = total + self.log_variance_penalty * jnp.sum(gap)
        return total
