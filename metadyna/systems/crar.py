"""CRAR: combined reinforcement learning via abstract representations (François-Lavet et al. 2019, arXiv 1809.04506).

A model and a Q-function share an abstract state x = e(s), learn from one fixed set of transitions, and act together:
the model is unrolled into a tree whose leaves the Q-function judges.

    gather N transitions with random actions, in one maze after another
    repeat
        draw a batch of (s, a, r, γ, s');  x = e(s), x' = e(s')
        step on ‖x + τ(x, a) − x'‖²,  (r − ρ(x, a))²,  (γ − g(x, a))²                           (eq. 1)
        step on what keeps x in the unit ball, what spreads unrelated states and successive ones (eqs. 2, 3)
        every 1,000 updates: e⁻, Q⁻ ← e, Q
        step on (Q(x, a) − Y)²,  Y = r + γ Q⁻(e⁻(s'), argmax Q(x', ·))                          (eq. 6)
    act: argmax_a of the mean of Q⁰(x, a), …, Qᴰ(x, a)

Equation numbers are those of the GMAS text, which restates the method (systems/gmas.py).

Names: e `encoder`, τ `change`, ρ `reward`, g `discount`, Q `value`, N `data.transitions`, D `acting.depths`.

The steps of a run are updates: the data are there before the first. Differences from the authors' code (VinF/deer),
each on purpose: the error of Q is a mean over the batch, not over batch and actions; the last transition gathered is
not marked terminal; successive states are not driven apart where the MDP ended; all Qᵈ come from one tree; evaluation
plays whole episodes of a fixed list of tasks.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.data.source import Gathering
from metadyna.improve.abstract import AbstractLearner, AbstractLearning
from metadyna.improve.repeat import repeat_updates
from metadyna.models.abstract import Abstract, Spatial, Vector
from metadyna.nets.sight import Sight, picture_shape, sight
from metadyna.planning.acting import TreeActing, look
from metadyna.settings import Settings
from metadyna.types import Collector, Metrics, Task, Transition, Trial, num_actions


class State(NamedTuple):
    """Everything that training needs to go on, the data set included."""

    learner: AbstractLearner
    data: Transition


@dataclass(frozen=True)
class CRAR(Settings):
    """CRAR: a model and a Q-function on one abstract state, from a fixed data set (François-Lavet et al. 2019).

    The defaults are those of the authors' code for the labyrinths.
    """

    form: Spatial | Vector = Spatial()
    """What an abstract state is."""
    learning: AbstractLearning = AbstractLearning()
    """Losses, step sizes, schedule."""
    data: Gathering = Gathering(transitions=200_000)
    """Where the transitions come from."""
    acting: TreeActing = TreeActing()
    """Planning while evaluating."""
    updates: Annotated[int, "[1, 1000000]"] = 50
    """Updates per iteration."""

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the networks and gather the data."""
        k_model, k_data = jax.random.split(key)
        model = self.form.create(picture_shape(collector.env), num_actions(collector.env.spec), k_model)
        return State(self.learning.start(model), self.data.load(collector, k_data))

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

        def update(learner: AbstractLearner, key: PRNGKeyArray) -> tuple[AbstractLearner, dict[str, Array]]:
            batch = replay.sample(replay.full(state.data), key, self.learning.batch)
            return self.learning.update(learner, batch, see)

        learner, metrics = repeat_updates(update, state.learner, jnp.int32(self.updates), key)
        return state._replace(learner=learner), {f"train/{name}": value for name, value in metrics.items()}
