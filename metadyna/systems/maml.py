"""MAML for policies, and two methods that give the first sample its due.

MAML (Finn et al. 2017, arXiv 1703.03400, Algorithm 3):

    for each iteration:
        sample M tasks; for each task i: D⁰ᵢ ← N episodes with π_θ
            θ'ᵢ = θ + α ∇J(θ; D⁰ᵢ); D¹ᵢ ← N episodes with π_θ'ᵢ            (again for further steps)
        θ ← a step of TRPO on mean_i J(θ'ᵢ(θ); D¹ᵢ), differentiated through the inner step

E-MAML (Stadie et al. 2018, arXiv 1803.01118): the outer objective also credits π_θ with what its sample led to.
ProMP (Rothfuss et al. 2019, arXiv 1810.06784, Algorithm 1): the inner surrogate is the probability ratio; the outer
step is Adam on the clipped ratio, less η KL(π_old || π_θ) on the pre-update sample.

Names: α `inner.rate`, M `tasks`, N `episodes`, η `kl_weight`.

Differences from the papers: the ratio of the inner surrogate is to the probabilities noted while acting, as in ProMP's
code. What an episode pays ends with its last step; the baseline, linear in features of observation and time, is
fitted to each task's sample alone. Evaluation acts as training does, by drawing actions, and further steps than were
trained take half the step size, as in the published evaluations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.adapt.gradient import GradientSteps, Meta
from metadyna.dists import normal_kl, normal_log_prob
from metadyna.gaussian_policy import GaussianPolicy, practise
from metadyna.improve.descend import descend
from metadyna.improve.on_policy import Weighed, dice, log_likelihood, over_steps, surrogate, weigh_episodes
from metadyna.improve.ppo import clipped_surrogate
from metadyna.improve.trpo import TRPO
from metadyna.returns import masked_mean, standardise
from metadyna.rollout import episode_lengths, episode_returns
from metadyna.settings import check_choices, check_ranges
from metadyna.types import Average, Collector, Metrics, Transition, box_sizes

Rounds = tuple[Weighed, ...]
"""What was lived before the first inner step, and after each: arrays [M, T, N]."""


class State(NamedTuple):
    """The initial policy and its step sizes, the optimiser if there is one, and steps so far."""

    meta: Meta
    optimiser: optax.OptState
    steps: Int[Array, ""]


@dataclass(frozen=True)
class MAML:
    """MAML: a policy that a gradient step adapts to a task (Finn et al. 2017, arXiv 1703.03400)."""

    inner: GradientSteps = GradientSteps()
    """The adaptation."""
    surrogate: Literal["log-likelihood", "ratio", "dice"] = "log-likelihood"
    """What an inner step raises; they differ in their second derivatives."""
    every_step: bool = False
    """Average the outer objective over all inner steps (MAML++), instead of the last."""
    learner: TRPO = TRPO(damping=1e-5)
    """The outer step."""
    widths: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy, with tanh."""
    log_std: float = 0.0
    """Log standard deviation of a fresh policy; it is adapted too."""
    tasks: int = 40
    """Tasks per iteration."""
    episodes: int = 20
    """Episodes per task, before and after every inner step."""
    discount: float = 0.99
    """γ per step."""
    gae_decay: float = 1.0
    """λ of the advantage estimate."""
    shown_steps: int = 3
    """Inner steps of an evaluation."""
    later_factor: float = 0.5
    """Scales the steps of an evaluation after the first that training does not have."""

    def __post_init__(self) -> None:
        check_choices(self, "surrogate")
        check_ranges(
            self,
            log_std="[-5, 2]",
            tasks="[1, 65536]",
            episodes="[1, 65536]",
            discount="[0, 1]",
            gae_decay="[0, 1]",
            shown_steps="[0, 100]",
            later_factor="[0, 1]",
        )

    @property
    def episode_names(self) -> tuple[str, ...]:
        """How many inner steps came before each episode of `trial`."""
        return tuple(f"{number} step{'s' * (number != 1)}" for number in range(self.shown_steps + 1))

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the policy."""
        observed, actions = box_sizes(collector.env.spec)
        meta = self.inner.start(GaussianPolicy.create(observed, actions, self.widths, key, self.log_std))
        return State(meta, self._init_optimiser(meta), jnp.int32(0))

    def params(self, state: State) -> Meta:
        """What adapts and acts."""
        return state.meta

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Live in some tasks, adapt to each, live on, and make the next adaptation better."""
        k_tasks, *k_rounds = jax.random.split(key, self.inner.steps + 2)
        tasks = self._draw(collector, k_tasks)
        policies, rounds, metrics = self._copies(state.meta, self.tasks), [], {}
        for number, k_round in enumerate(k_rounds):
            lived = collector.episodes_of_each(practise, policies, tasks, self.episodes, k_round)
            data, told = self._weigh(lived)
            metrics |= {f"train/{name}_{number}": value for name, value in told.items()}
            rounds.append(data)
            if number < self.inner.steps:
                policies = self._adapt(state.meta, policies, data, number)
        state, told = self._improve(state, tuple(rounds))
        return state, {**metrics, **told}

    def trial(self, params: Meta, collector: Collector, tasks: Any, key: PRNGKeyArray) -> tuple[Transition, ...]:
        """An episode of each task before and after every inner step, the first of those that the next step is on."""
        policies, shown = self._copies(params, jax.tree.leaves(tasks)[0].shape[0]), []
        for number, k_round in enumerate(jax.random.split(key, self.shown_steps + 1)):
            lived = collector.episodes_of_each(practise, policies, tasks, self.episodes, k_round)
            shown.append(jax.tree.map(lambda x: x[:, :, 0], lived._replace(extras=())))
            if number < self.shown_steps:
                factor = 1.0 if number < max(1, self.inner.steps) else self.later_factor
                policies = self._adapt(params, policies, self._weigh(lived)[0], number, factor)
        return tuple(shown)

    # ------------------------------------------------------------------------------------- inner learning

    def _draw(self, collector: Collector, key: PRNGKeyArray) -> Any:
        return jax.vmap(collector.tasks.sample)(jax.random.split(key, self.tasks))

    def _copies(self, meta: Meta, count: int) -> GaussianPolicy:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), meta.weights)

    @partial(jax.jit, static_argnums=0)
    def _weigh(self, lived: Transition) -> tuple[Weighed, Metrics]:
        """The advantages of every task's own episodes [T, M, N], as [M, T, N]."""
        told = {
            "return": Average.of(episode_returns(lived)),
            "length": Average.of(episode_lengths(lived.last).astype(jnp.float32)),
        }
        by_task = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), lived)
        return jax.vmap(lambda episodes: weigh_episodes(episodes, self.discount, self.gae_decay))(by_task), told

    @partial(jax.jit, static_argnums=(0, 4, 5))
    def _adapt(self, meta: Meta, policies: Any, data: Weighed, number: int, factor: float = 1.0) -> Any:
        """One inner step of every task's policy [M] on its own data."""

        def one(policy: GaussianPolicy, data: Weighed) -> GaussianPolicy:
            return self.inner.step(policy, meta.rates, number, self._raised(data), factor)

        return jax.vmap(one)(policies, data)

    def _raised(self, data: Weighed) -> Callable[[GaussianPolicy], Float[Array, ""]]:
        """The objective of an inner step on one task's data."""
        if self.surrogate == "dice":
            return lambda policy: dice(policy, data, self.discount)
        return partial({"log-likelihood": log_likelihood, "ratio": surrogate}[self.surrogate], data=data)

    # ------------------------------------------------------------------------------------- outer learning

    def _init_optimiser(self, meta: Meta) -> optax.OptState:
        """TRPO has none."""
        del meta
        return ()

    @partial(jax.jit, static_argnums=0)
    def _improve(self, state: State, rounds: Rounds) -> tuple[State, Metrics]:
        """Move what adaptation starts from, and count the steps that were lived."""
        meta, optimiser, told = self._outer_step(state.meta, state.optimiser, rounds)
        lived = sum(jnp.sum(data.valid, dtype=jnp.int32) for data in rounds)
        metrics = {f"train/{name}": Average.of(value) for name, value in told.items()}
        return State(meta, optimiser, state.steps + lived), metrics

    def _outer_step(self, meta: Meta, optimiser: Any, rounds: Rounds) -> tuple[Meta, Any, dict[str, Array]]:
        """A step of TRPO, whose bound is on what adapts: KL(π_old || π_θ'(θ)) after the last inner step."""
        old = jax.lax.stop_gradient(jax.vmap(over_steps)(self._adapted(meta, rounds)[-1], rounds[-1].steps.obs))

        def divergence(candidate: Meta) -> Array:
            new = jax.vmap(over_steps)(self._adapted(candidate, rounds)[-1], rounds[-1].steps.obs)
            return jnp.mean(jax.vmap(masked_mean)(normal_kl(*old, *new), rounds[-1].valid))

        meta, told = self.learner.step(meta, lambda candidate: self._objective(candidate, rounds), divergence)
        return meta, optimiser, told

    def _objective(self, meta: Meta, rounds: Rounds) -> Float[Array, ""]:
        """Mean over tasks of E[π_θ'/π_old Â], θ' = θ'(θ)."""
        adapted = self._adapted(meta, rounds)
        each = [jnp.mean(jax.vmap(surrogate)(*pair)) for pair in zip(adapted, rounds, strict=True)]
        if self.every_step and len(each) > 1:
            return sum(each[1:], jnp.float32(0)) / (len(each) - 1)
        return each[-1]

    def _adapted(self, meta: Meta, rounds: Rounds) -> list[GaussianPolicy]:
        """θ⁰, θ¹(θ), …: every task's policy [M] before and after each inner step, as functions of θ."""

        def path(*data: Weighed) -> list[GaussianPolicy]:
            return self.inner.path(meta, [self._raised(each) for each in data])

        if len(rounds) == 1:
            return [self._copies(meta, rounds[0].valid.shape[0])]
        return jax.vmap(path)(*rounds[:-1])


@dataclass(frozen=True)
class EMAML(MAML):
    """E-MAML: the pre-update policy is credited with what its sample led to (Stadie et al. 2018, arXiv 1803.01118)."""

    def _objective(self, meta: Meta, rounds: Rounds) -> Float[Array, ""]:
        """Add mean r̂ · mean log π_θ(pre-update actions), r̂ the post-update rewards, standardised over all tasks."""
        rewards = standardise(rounds[-1].steps.reward, rounds[-1].valid)
        credit = jax.vmap(masked_mean)(rewards, rounds[-1].valid)

        def sampled(data: Weighed) -> Array:
            log_prob = normal_log_prob(data.steps.action, *over_steps(meta.weights, data.steps.obs))
            return masked_mean(log_prob, data.valid)

        return super()._objective(meta, rounds) + jnp.mean(credit * jax.vmap(sampled)(rounds[0]))


@dataclass(frozen=True)
class ProMP(MAML):
    """ProMP: proximal meta-policy search (Rothfuss et al. 2019, arXiv 1810.06784)."""

    surrogate: Literal["log-likelihood", "ratio", "dice"] = "ratio"
    """What an inner step raises; they differ in their second derivatives."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    updates: int = 5
    """Steps of Adam per iteration, on the whole batch; TRPO's settings are not used."""
    clip: float = 0.3
    """ε: probability ratios beyond 1 ± ε earn nothing more."""
    kl_weight: float = 5e-4
    """η: price of the divergence from the policy that sampled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, learning_rate="(0, 1]", updates="[1, 10000]", clip="(0, 1)", kl_weight="[0, inf)")

    def _init_optimiser(self, meta: Meta) -> optax.OptState:
        moving: Any = meta
        return optax.adam(self.learning_rate).init(moving)

    def _outer_step(self, meta: Meta, optimiser: Any, rounds: Rounds) -> tuple[Meta, Any, dict[str, Array]]:
        """Steps of Adam on the clipped objective."""
        old = jax.lax.stop_gradient(jax.vmap(over_steps, (None, 0))(meta.weights, rounds[0].steps.obs))

        def loss(candidate: Meta) -> tuple[Array, dict[str, Array]]:
            new = jax.vmap(over_steps, (None, 0))(candidate.weights, rounds[0].steps.obs)
            kl = jnp.mean(jax.vmap(masked_mean)(normal_kl(*old, *new), rounds[0].valid))
            gain = self._objective(candidate, rounds)
            return self.kl_weight * kl - gain, {"inner_kl": kl, "surrogate_gain": gain}

        def update(learner: tuple[Meta, Any], _: None) -> tuple[tuple[Meta, Any], dict[str, Array]]:
            meta, optimiser = learner
            slope, told = jax.grad(loss, has_aux=True)(meta)
            return descend(optax.adam(self.learning_rate), meta, slope, optimiser), told

        (meta, optimiser), told = jax.lax.scan(update, (meta, optimiser), None, length=self.updates)
        return meta, optimiser, {name: values[-1] for name, values in told.items()}

    def _objective(self, meta: Meta, rounds: Rounds) -> Float[Array, ""]:
        """Mean over tasks of E[min(ρ Â, clip(ρ, 1 - ε, 1 + ε) Â)], ρ = π_θ'/π_old, θ' = θ'(θ)."""

        def clipped(policy: GaussianPolicy, data: Weighed) -> Array:
            log_prob = normal_log_prob(data.steps.action, *over_steps(policy, data.steps.obs))
            earned = clipped_surrogate(log_prob - data.steps.extras, data.advantage, self.clip)
            return masked_mean(earned, data.valid)

        return jnp.mean(jax.vmap(clipped)(self._adapted(meta, rounds)[-1], rounds[-1]))
