"""MAML for policies, and two methods that give the first sample its due.

MAML (Finn et al. 2017, arXiv 1703.03400, Algorithm 3):

    for each iteration:
        sample M tasks; for each task i: D⁰ᵢ ← N episodes with π_θ
            θ'ᵢ = θ + α ∇J(θ; D⁰ᵢ); D¹ᵢ ← N episodes with π_θ'ᵢ            (again for further steps)
        θ ← a step of TRPO on mean_i J(θ'ᵢ(θ); D¹ᵢ), differentiated through the inner step

E-MAML (Stadie et al. 2018, arXiv 1803.01118): the outer objective also credits π_θ with what its sample led to.
ProMP (Rothfuss et al. 2019, arXiv 1810.06784, Algorithm 1): the inner surrogate is the probability ratio; the outer
step is Adam on the clipped ratio, less η KL(π_old || π_θ) on the pre-update sample.

Names: α `outer.inner.rate`, M `tasks`, N `episodes`, η `outer.kl_weight`. The mathematics is in `improve/meta.py`.

Differences from the papers: the ratio of the inner surrogate is to the probabilities noted while acting, as in ProMP's
code. What an episode pays ends with its last step; the baseline, linear in features of observation and time, is
fitted to each task's sample alone. Evaluation acts as training does, by drawing actions, and takes half the step size
after its first step, unless training has more, as in the published evaluations. The policy's last layer is drawn small,
and log standard deviations stay in [-5, 2].
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from metadyna.adapt.gradient import Meta
from metadyna.collect.episodes import episode_lengths, episode_returns
from metadyna.errors import UserError
from metadyna.improve.meta import MetaPPO, MetaTRPO, Rounds
from metadyna.improve.on_policy import Weighed
from metadyna.nets.inputs import Inputs
from metadyna.policies.acting import practise
from metadyna.policies.direct import Activation, Policy, create
from metadyna.settings import Settings, Widths
from metadyna.types import Average, Collector, Metrics, Task, Transition, Trial


class State(NamedTuple):
    """The initial policy and its step sizes, the outer optimiser, and steps so far."""

    meta: Meta
    optimiser: optax.OptState
    steps: Int[Array, ""]


@dataclass(frozen=True)
class MAML(Settings):
    """MAML: a policy that a gradient step adapts to a task (Finn et al. 2017, arXiv 1703.03400)."""

    outer: MetaTRPO | MetaPPO = MetaTRPO()
    """The adaptation and the outer step."""
    widths: Widths = (64, 64)
    """Hidden layers of the policy."""
    activation: Activation = "tanh"
    """Their nonlinearity. With `tanh` a policy that has left what it knows may find no way back: see docs/meta.md."""
    log_std: Annotated[float, "[-5, 2]"] = 0.0
    """Log standard deviation of a fresh policy; it is adapted too."""
    tasks: Annotated[int, "[1, 65536]"] = 40
    """Tasks per iteration."""
    episodes: Annotated[int, "[1, 65536]"] = 20
    """Episodes per task, before and after every inner step."""
    shown_steps: Annotated[int, "[0, 100]"] = 3
    """Inner steps of an evaluation."""
    later_factor: Annotated[float, "[0, 1]"] = 0.5
    """Scales the steps of an evaluation after the first that training does not have."""

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the policy."""
        policy = create(collector.env.spec, self.widths, key, self.log_std, self.activation)
        meta = self.outer.inner.start(policy)
        return State(meta, self.outer.start(meta), jnp.int32(0))

    def params(self, state: State) -> Meta:
        """What adapts and acts."""
        return state.meta

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Live in some tasks, adapt to each, live on, and make the next adaptation better."""
        inner = self.outer.inner
        k_tasks, *k_rounds = jax.random.split(key, inner.steps + 2)
        tasks = jax.vmap(collector.tasks.sample)(jax.random.split(k_tasks, self.tasks))
        policies, rounds, metrics = self.outer.copies(state.meta, self.tasks), [], {}
        for number, k_round in enumerate(k_rounds):
            lived = self._live(collector, policies, tasks, k_round)
            data, told = collector.compute(self._weigh, lived, static=(state.meta.weights.inputs,))
            metrics |= {f"train/{name}_{number}": value for name, value in told.items()}
            rounds.append(data)
            if number < inner.steps:
                policies = collector.compute(self._adapt, state.meta, policies, data, static=(number, 1.0))
        state, told = collector.compute(self._improve, state, tuple(rounds))
        return state, {**metrics, **told}

    def trial(self, params: Meta, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """All episodes of each task before and after every inner step of an evaluation."""
        count = jax.tree.leaves(tasks)[0].shape[0]
        policies, shown = self.outer.copies(params, count), []
        for number, k_round in enumerate(jax.random.split(key, self.shown_steps + 1)):
            lived = self._live(collector, policies, tasks, k_round)
            shown.append(lived._replace(extras=()))
            if number < self.shown_steps:
                factor = 1.0 if number < max(1, self.outer.inner.steps) else self.later_factor
                data, _ = collector.compute(self._weigh, lived, static=(params.weights.inputs,))
                policies = collector.compute(self._adapt, params, policies, data, static=(number, factor))
        names = tuple(f"{number} step{'s' * (number != 1)}" for number in range(self.shown_steps + 1))
        return Trial(jax.tree.map(lambda *x: jnp.stack(x, axis=2), *shown), names)

    def _live(self, collector: Collector, policies: Policy, tasks: Task, key: PRNGKeyArray) -> Transition:
        """Episodes [T, M, N] of every task with its own policy."""
        return collector.episodes_of_each(practise, policies, (), tasks, self.episodes, key).episodes

    def _weigh(self, inputs: Inputs, lived: Transition) -> tuple[Weighed, Metrics]:
        """What the episodes of a round [T, M, N] are worth, and what they returned."""
        told = {
            "return": Average.of(episode_returns(lived)),
            "length": Average.of(episode_lengths(lived.last).astype(jnp.float32)),
        }
        return self.outer.weigh(lived, inputs), told

    def _adapt(self, number: int, factor: float, meta: Meta, policies: Policy, data: Weighed) -> Policy:
        """Inner step `number` of every task's policy."""
        return self.outer.adapt(meta, policies, data, number, factor)

    def _improve(self, state: State, rounds: Rounds) -> tuple[State, Metrics]:
        """Move what adaptation starts from, and count the steps that were lived."""
        meta, optimiser, told = self.outer.update(state.meta, state.optimiser, rounds)
        lived = sum(jnp.sum(data.valid, dtype=jnp.int32) for data in rounds)
        return State(meta, optimiser, state.steps + lived), {f"train/{k}": Average.of(v) for k, v in told.items()}


@dataclass(frozen=True)
class EMAML(MAML):
    """E-MAML: the pre-update policy is credited with what its sample led to (Stadie et al. 2018, arXiv 1803.01118)."""

    outer: MetaTRPO | MetaPPO = MetaTRPO(credit=True)
    """The adaptation and the outer step, which must have `credit`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.outer, MetaTRPO) and self.outer.credit):
            raise UserError("EMAML.outer must be a MetaTRPO with credit = True; what has none is MAML")


@dataclass(frozen=True)
class ProMP(MAML):
    """ProMP: proximal meta-policy search (Rothfuss et al. 2019, arXiv 1810.06784)."""

    outer: MetaTRPO | MetaPPO = MetaPPO()
    """The adaptation and the outer step."""
