"""GMAS: gradient matching in the abstract space (slopes after explanation-based networks, Mitchell & Thrun 1993).

CRAR (François-Lavet et al. 2019) whose Q-function also learns how the planner's value changes with the abstract
state: what the model knows of the dynamics reaches the Q-function without planning at test time.

    as CRAR, but the step on Q is on
        (Q(x, a) − Y)² + α dist(∂Q(x, a)/∂x, v)                                                       (eq. 7)
        v = 1/(D+1) Σ_d ∂Q̂ᵈ(x, a)/∂x,   Q̂⁰ = Q⁻,
        Q̂ᵈ(x, a) = ρ(x, a) + g(x, a) max_{a' ∈ A*} Q̂ᵈ⁻¹(x + τ(x, a), a')                             (eqs. 4, 5)

Names: α `alpha`, dist `distance`, D `depth` (of training; that of acting is `acting.depths`), A* `breadth`.

Equation numbers are those of the GMAS text, which is ambiguous in places. Read here as: the next state's derivative is
I + ∂τ/∂x; the action that is derived is the one taken; the mean is over D + 1 depths; the L2 distance is the norm over
all coordinates, not its square; ρ, g, τ and x are held constant in v, while ∂Q/∂x reaches the encoder. The three
remedies that the text proposes for the model's errors, and does not try, are `weighting` and `doubt`.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.data.source import Gathering
from metadyna.errors import UserError
from metadyna.improve.abstract import AbstractLearner, AbstractLearning, Encoded
from metadyna.improve.descend import descend, rmsprop
from metadyna.improve.repeat import repeat_updates
from metadyna.improve.slopes import Distance, distance, slope_loss
from metadyna.models.abstract import Abstract, Spatial, SpatialHead, Vector, with_action
from metadyna.nets.layers import MLP, glorot
from metadyna.nets.sight import Sight, picture_shape, sight
from metadyna.planning.acting import TreeActing, look
from metadyna.planning.tree import at_a_time, depth_values
from metadyna.settings import Settings
from metadyna.types import Collector, Metrics, Task, Transition, Trial, num_actions


@dataclass(frozen=True)
class Uniform(Settings):
    """Every depth counts the same, as in the text's experiments."""


@dataclass(frozen=True)
class FarDiscount(Settings):
    """Deeper counts less: depth d in proportion to γ'ᵈ (a proposal of the text)."""

    rate: Annotated[float, "(0, 1]"] = 0.7
    """γ'."""


@dataclass(frozen=True)
class ModelError(Settings):
    """Depths count less where the model has been wrong: by a softmax of −Ŵ_d(x, a) / T (a proposal of the text).

    Ŵ_d, the squared error that d imagined steps add up to, is learnt by temporal differences (after AdaMVE, Xiao et
    al. 2019, arXiv 1912.11206): Ŵ_d(x, a) = ‖x + τ(x, a) − e(s')‖² + Ŵ_{d−1}(e(s'), a*), Ŵ_0 = 0. Such sums grow with
    d; where what is learnt does not, yet, a depth counts as wrong as the worst of the shallower ones.
    """

    temperature: Annotated[float, "(0, inf]"] = 0.1
    """T, in squared units of the abstract state."""
    learning_rate: Annotated[float, "(0, 1]"] = 1e-3
    """RMSprop's step size for Ŵ."""


class Foreseen(eqx.Module):
    """Ŵ_1, …, Ŵ_D of an abstract state and an action."""

    judge: SpatialHead | MLP
    actions: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*abstract"], action: Int[Array, ""]) -> Float[Array, "depths"]:
        """Ŵ_0 = 0, Ŵ_1, …, Ŵ_D."""
        return jnp.pad(self.judge(with_action(x, action, self.actions)), (1, 0))


class Errors(NamedTuple):
    """Ŵ and its optimiser."""

    weights: Foreseen
    optimiser: optax.OptState


class State(NamedTuple):
    """Everything that training needs to go on, the data set included; `errors` is None but for `ModelError`."""

    learner: AbstractLearner
    errors: Errors | None
    data: Transition


@dataclass(frozen=True)
class GMAS(Settings):
    """GMAS: CRAR whose Q-function learns the slope of the planner's value too (gradient matching in abstract space).

    The defaults are the text's, and CRAR's where it is silent.
    """

    form: Spatial | Vector = Spatial()
    """What an abstract state is."""
    learning: AbstractLearning = AbstractLearning(learning_rate=1e-3)
    """Losses, step sizes, schedule."""
    data: Gathering = Gathering(transitions=100_000)
    """Where the transitions come from."""
    distance: Distance = "cosine"
    """Between the two slopes."""
    alpha: Annotated[float, "[0, 1000000]"] = 0.05
    """Weight α of the distance; the text has 0.05 for cosine and 1.0 for l2. 0 is CRAR."""
    depth: Annotated[int, "[0, 12]"] = 3
    """Deepest plan whose slope is matched; 0 matches the frozen Q-function's own."""
    breadth: Annotated[int, "[1, 1024]"] = 2
    """Actions tried at every node below the root, the best by the frozen Q-function."""
    weighting: Uniform | FarDiscount | ModelError = Uniform()
    """How much each depth counts."""
    doubt: Annotated[float, "(0, 1]"] | None = None
    """Scale the distance down by how far the plan's value is from Y, relative to this quantile of the batch (EBNN)."""
    acting: TreeActing = TreeActing(depths=(0, 1, 3, 5))
    """Planning while evaluating."""
    updates: Annotated[int, "[1, 1000000]"] = 50
    """Updates per iteration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.breadth ** max(0, self.depth - 1) > 4_096:
            raise UserError(f"GMAS.breadth = {self.breadth} to the depth {self.depth} is a tree too large; lower one")
        if isinstance(self.weighting, ModelError) and self.depth == 0:
            raise UserError("GMAS.weighting by the model's error needs GMAS.depth of 1 or more")

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the networks and gather the data."""
        k_model, k_data, k_judge = jax.random.split(key, 3)  # the first two as in CRAR: one seed, one start
        shape, actions = picture_shape(collector.env), num_actions(collector.env.spec)
        model = self.form.create(shape, actions, k_model)
        data = self.data.load(collector, k_data)
        if not isinstance(self.weighting, ModelError):
            return State(self.learning.start(model), None, data)
        x = jax.eval_shape(model.encoder, jax.ShapeDtypeStruct(shape, jnp.float32))
        judge = glorot(self.form.judge(x.shape, actions, self.depth), k_judge)
        weights = Foreseen(judge, actions)
        tree: Any = weights
        return State(self.learning.start(model), Errors(weights, _rmsprop(self.weighting).init(tree)), data)

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Some updates."""
        return collector.compute(self._improve, state, key, static=(sight(collector.env),), spend=True)

    def params(self, state: State) -> Abstract:
        """The weights that act."""
        return state.learner.weights

    def steps(self, state: State) -> Int[Array, ""]:
        """Updates so far."""
        return state.learner.updates

    def trial(self, params: Abstract, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """An episode of every task at each planning depth."""
        return self.acting.trial(look(sight(collector.env)), params, (), collector, tasks, key)

    def _improve(self, see: Sight, state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Updates on batches of the data."""

        def update(
            learned: tuple[AbstractLearner, Errors | None], key: PRNGKeyArray
        ) -> tuple[tuple[AbstractLearner, Errors | None], dict[str, Array]]:
            learner, errors = learned
            told = {}

            def match(
                weights: Abstract, target: Abstract, encoded: Encoded, aim: Array
            ) -> tuple[Array, dict[str, Array]]:
                return self._match(weights, target, encoded, aim, errors)

            batch = replay.sample(replay.full(state.data), key, self.learning.batch)
            learner, metrics = self.learning.update(learner, batch, see, match if self.alpha else None)
            if errors is not None and isinstance(self.weighting, ModelError):
                x, next_x = jnp.split(see(learner.weights.encoder, jnp.concatenate([batch.obs, batch.next_obs])), 2)
                errors, told = self._learn_errors(self.weighting, errors, learner.weights, x, next_x, batch)
            return (learner, errors), {**metrics, **told}

        learned = state.learner, state.errors
        (learner, errors), metrics = repeat_updates(update, learned, jnp.int32(self.updates), key)
        return State(learner, errors, state.data), {f"train/{name}": value for name, value in metrics.items()}

    # -------------------------------------------------------------------------------------------- matching

    def _match(
        self, weights: Abstract, target: Abstract, encoded: Encoded, aim: Float[Array, "B"], errors: Errors | None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """α times the mean distance between the slopes of Q and of the plan, eq. 7."""
        planner = jax.lax.stop_gradient(replace(weights, value=target.value))
        x, action = encoded.x, encoded.batch.action
        still = jax.lax.stop_gradient(x)
        starts = still, action, self._shares(errors, still, action)
        batch = at_a_time(1, self.breadth, self.depth)
        plan, slopes = jax.lax.map(lambda start: self._planned(planner, *start), starts, batch_size=batch)

        def compare(x: Array, action: Array, slope: Array) -> tuple[Array, Array]:
            return slope_loss(lambda z: weights.value(z)[action], x, slope, self.distance)

        distances, own = jax.vmap(compare)(x, action, slopes)
        trust = jax.lax.stop_gradient(self._trust(plan, aim))
        apart = jax.vmap(lambda u, v: distance("cosine", u, v))(own, slopes)
        metrics = {
            "slope_distance": jnp.mean(distances),
            "slope_cosine": 1 - jnp.mean(apart),
            "plan_error": jnp.mean(jnp.abs(plan - aim)),
        }
        return self.alpha * jnp.mean(trust * distances), metrics

    def _planned(
        self, planner: Abstract, x: Float[Array, "*abstract"], action: Int[Array, ""], shares: Float[Array, "depths"]
    ) -> tuple[Float[Array, ""], Float[Array, "*abstract"]]:
        """Value of the plan that begins with an action, and its slope v, eqs. 4 and 5."""

        def value(x: Array) -> Array:
            return shares @ depth_values(planner, x, self.depth, self.breadth, action[None])[:, 0]

        return jax.value_and_grad(value)(x)

    def _shares(
        self, errors: Errors | None, x: Float[Array, "B *abstract"], action: Int[Array, "B"]
    ) -> Float[Array, "B depths"]:
        """How much each depth counts, adding up to 1."""
        depths = jnp.arange(self.depth + 1)
        if isinstance(self.weighting, ModelError) and errors is not None:
            wrong = jax.lax.cummax(jax.vmap(errors.weights)(x, action), axis=1)
            return jax.lax.stop_gradient(jax.nn.softmax(-wrong / self.weighting.temperature, axis=1))
        rate = self.weighting.rate if isinstance(self.weighting, FarDiscount) else 1.0
        weights = jnp.float32(rate) ** depths
        return jnp.broadcast_to(weights / jnp.sum(weights), (x.shape[0], self.depth + 1))

    def _trust(self, plan: Float[Array, "B"], aim: Float[Array, "B"]) -> Float[Array, "B"]:
        """max(0, 1 − |plan − Y| / c): the better the model explains a value, the more its slope counts."""
        if self.doubt is None:
            return jnp.ones_like(plan)
        deviation = jnp.abs(plan - aim)
        return jnp.maximum(0, 1 - deviation / (jnp.quantile(deviation, self.doubt) + 1e-8))

    def _learn_errors(
        self, weighting: ModelError, errors: Errors, model: Abstract, x: Array, next_x: Array, batch: Transition
    ) -> tuple[Errors, dict[str, Array]]:
        """A step on the squared error of Ŵ_d's temporal difference, for every depth."""
        missed = (jax.vmap(model.next)(x, batch.action) - next_x).reshape(x.shape[0], -1)
        now = batch.discount * jnp.sum(missed**2, axis=1)
        best = jnp.argmax(jax.vmap(model.value)(next_x), axis=1)
        later = jax.vmap(errors.weights)(next_x, best)[:, :-1]
        aim = jax.lax.stop_gradient(now[:, None] + batch.discount[:, None] * later)

        def loss(weights: Foreseen) -> Array:
            return jnp.mean((jax.vmap(weights)(x, batch.action)[:, 1:] - aim) ** 2)

        value, slope = jax.value_and_grad(loss)(errors.weights)
        weights, optimiser = descend(_rmsprop(weighting), errors.weights, slope, errors.optimiser)
        return Errors(weights, optimiser), {"foreseen_error": value}


def _rmsprop(weighting: ModelError) -> optax.GradientTransformation:
    return optax.flatten(rmsprop(weighting.learning_rate))
