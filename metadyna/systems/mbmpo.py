"""MB-MPO: a policy that adapts to every model of an ensemble (Clavera et al. 2018, arXiv 1809.05214, Algorithm 1).

    θ'₁ … θ'_M ← θ
    for each iteration:
        D ← D ∪ real episodes with each π_θ'ⱼ (random actions at first); fit the K models to D
        for each meta-step:
            for each task j, whose dynamics are model ⌊jK/M⌋:
                imagine N episodes with π_θ from real starts;  θ'ⱼ = θ + α ∇Jⱼ(θ);  imagine N more with π_θ'ⱼ
            θ ← a step of TRPO on mean_j Jⱼ(θ'ⱼ(θ)), differentiated through the inner step
        θ'ⱼ ← θ + α ∇Jⱼ(θ), to live with next

Names: M `tasks`, K `model.members`, N `episodes`, α `outer.inner.rate`. The environment's reward and end are known.

Differences from the authors' code: the policies that collect are adapted from the latest θ, not from the one before
its last step. Nothing is learnt before the random steps are over. Imagined episodes are cut where they end, and not
followed by others; observations are kept near the data, there within ±1000. Actions are clipped before the model and
the reward see them. Fits stop by patience, not by a running average; no weight normalisation. The rows that a member
holds out are its own, as theirs, but for life. The policy's last layer is drawn small, and log standard deviations
stay in [-5, 2]. Ends of episodes are learnt from too. Evaluation takes the mean action of π_θ.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from metadyna.adapt.gradient import GradientSteps, Meta
from metadyna.collect import replay
from metadyna.collect.episodes import episode_returns, valid_steps
from metadyna.errors import UserError
from metadyna.improve.meta import MetaPPO, MetaTRPO
from metadyna.improve.repeat import repeat_updates
from metadyna.models import fit as fits
from metadyna.models.bounded import Nearby, Scaled
from metadyna.models.fit import Fit, FitState, Rows
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.models.imagine import branch
from metadyna.models.worlds import Meaning, known_world
from metadyna.policies.acting import perform, practise, practise_or_guess
from metadyna.policies.direct import Policy, create
from metadyna.settings import Settings, Widths, check_ranges
from metadyna.types import Average, Collector, Metrics, Task, Transition, Trial, box_sizes


class State(NamedTuple):
    """The initial policy, its outer optimiser, the models, the policies that collect, what was lived, steps so far."""

    meta: Meta
    optimiser: optax.OptState
    model: FitState
    policies: Policy
    real: replay.Ring
    starts: replay.Ring
    steps: Int[Array, ""]


class Adapting(NamedTuple):
    """What meta-learning changes."""

    meta: Meta
    optimiser: optax.OptState
    policies: Policy


@dataclass(frozen=True)
class MBMPO(Settings):
    """MB-MPO: a policy that adapts to every model of an ensemble, and so to reality (Clavera et al. 2018)."""

    outer: MetaTRPO | MetaPPO = MetaTRPO(GradientSteps(rate=1e-3))
    """The adaptation and the outer step."""
    model: GaussianEnsemble = GaussianEnsemble(
        members=5, elites=5, widths=(512, 512), activation="relu", probabilistic=False,
        weight_decay=(0.0, 0.0, 0.0), standardise_targets=True,
    )  # fmt: skip
    """The networks of the models."""
    fit: Fit = Fit(batch=500, max_epochs=50)
    """How they are trained."""
    widths: Widths = (32, 32)
    """Hidden layers of the policy, with tanh."""
    log_std: Annotated[float, "[-5, 2]"] = 0.0
    """Log standard deviation of a fresh policy; it is adapted too."""
    tasks: Annotated[int, "[1, 65536]"] = 5
    """Imagined tasks, a multiple of the models; the paper has 20."""
    episodes: Annotated[int, "[1, 65536]"] = 20
    """Imagined episodes per task, before and after every inner step; the paper has 50."""
    horizon: Annotated[int, "[1, 100000]"] = 100
    """Steps of an imagined episode; the paper has those of the real ones."""
    starts: Literal["first", "any"] = "first"
    """Imagine from the first observations of real episodes, or from any that was lived (for short horizons)."""
    reach: Annotated[float, "(0, 1000000]"] = 10.0
    """Imagined observations are kept within so many deviations of the mean of the data."""
    meta_steps: Annotated[int, "[1, 10000]"] = 10
    """Outer steps per iteration; the paper has 30."""
    collect: Annotated[int, "[1, 10000]"] = 1
    """Real episodes of every task's policy per iteration."""
    adapted_collection: bool = True
    """Live with the adapted policies, each of which knows one model best, or with the initial one (an ablation)."""
    warmup: Annotated[int, "[1, 2000000000]"] = 4_000
    """Environment steps of uniformly random actions at first."""
    capacity: Annotated[int, "[1, 2000000000]"] = 100_000
    """Real transitions kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, capacity=f"[{self.tasks * self.collect}, 2000000000]")
        if self.tasks % self.model.members:
            raise UserError(
                f"MBMPO.tasks = {self.tasks} cannot be shared equally among {self.model.members} models; "
                "choose a multiple"
            )

    @property
    def models(self) -> Int[Array, "tasks"]:
        """The model of every task."""
        return jnp.arange(self.tasks) * self.model.members // self.tasks

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw policy and models, make room."""
        k_policy, k_model = jax.random.split(key)
        observed, actions = box_sizes(collector.env.spec)
        known_world(collector.env)  # complains of an environment whose reward is not known
        example = replay.transition_shapes(collector.env.spec)
        meta = self.outer.inner.start(create(collector.env.spec, self.widths, k_policy, self.log_std))
        return State(
            meta,
            self.outer.start(meta),
            fits.start(self.model, self.model.create(observed + actions, observed, k_model)),
            jax.tree.map(jnp.copy, self.outer.copies(meta, self.tasks)),
            replay.init(example, self.capacity),
            replay.init(example.obs, self.capacity),
            jnp.int32(0),
        )

    def params(self, state: State) -> Policy:
        """The weights that act."""
        return state.meta.weights

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Live with the adapted policies, fit the models, and learn to adapt to them."""
        k_tasks, k_env, k_fit, k_meta = jax.random.split(key, 4)
        tasks = jax.vmap(collector.tasks.sample)(jax.random.split(k_tasks, self.tasks))
        explorers = state.policies, jnp.full(self.tasks, state.steps < self.warmup)
        lived = collector.episodes_of_each(practise_or_guess, explorers, (), tasks, self.collect, k_env).episodes
        world = known_world(collector.env)
        state, fitted = collector.compute(self._learn, state, lived, k_fit, static=(world,), spend=True)
        state, trained = collector.compute(self._meta_learn, state, k_meta, static=(world,), spend=True)
        return state, {**fitted, **trained}

    def trial(self, params: Policy, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """One episode of each task with the initial policy's mean action."""
        return Trial.of(collector.episodes(perform, params, (), tasks, key).episodes)

    def _learn(self, world: Meaning, state: State, lived: Transition, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Store what was lived, episodes [T, M, collect], and fit the models to all of it."""
        valid = valid_steps(lived.last)
        flat, chosen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), (lived._replace(extras=()), valid))
        real = replay.add_where(state.real, flat, chosen)
        starts = replay.add(state.starts, lived.obs[0].reshape(-1, lived.obs.shape[-1]))
        steps = state.steps + jnp.sum(valid, dtype=jnp.int32)
        told = {"train/episode_return": Average.of(episode_returns(lived))}
        fitted = state.steps >= self.warmup
        error = _relative_error(state.model.ensemble, *world.examples(flat))
        told["model/error_on_new"] = Average.over(error, chosen & fitted)
        state = state._replace(real=real, starts=starts, steps=steps)
        model, metrics = repeat_updates(partial(self._fit, world, state), state.model, self._due(state), key)
        return state._replace(model=model), {**metrics, **told}

    def _due(self, state: State) -> Int[Array, ""]:
        """How often to learn in this iteration: not before the random steps are over."""
        return (state.steps >= self.warmup).astype(jnp.int32)

    def _fit(
        self, world: Meaning, state: State, model: FitState, key: PRNGKeyArray
    ) -> tuple[FitState, dict[str, Array]]:
        """Fit the models to all that was lived."""
        return fits.fit(self.fit, self.model, model, Rows(state.real, world.examples), key)

    def _meta_learn(self, world: Meaning, state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Meta-steps in the models, and the policies to live with next."""
        inner, outer = self.outer.inner, self.outer

        def imagine(policies: Policy, key: PRNGKeyArray) -> Transition:
            """Episodes of every task [H, M, N], each in its own model."""
            k_starts, k_made = jax.random.split(key)
            known = state.starts if self.starts == "first" else state.real._replace(items=state.real.items.obs)
            starts = replay.sample(known, k_starts, self.tasks * self.episodes)
            starts = starts.reshape(self.tasks, self.episodes, -1)

            def of_task(policy: Policy, member: Array, starts: Array, key: Array) -> Transition:
                only = Nearby(state.model.ensemble.only(member), self.reach)
                return branch(world.world(only), practise, policy, starts, self.horizon, key)

            keys = jax.random.split(k_made, self.tasks)
            return jax.vmap(of_task, out_axes=1)(policies, self.models, starts, keys)

        def adapted(meta: Meta, keys: Key[Array, "rounds"]) -> tuple[list[Any], list[Float[Array, ""]], Policy]:
            """The rounds lived by θ⁰, θ¹, … as far as there are keys, their returns, and the last policies."""
            policies, rounds, returns = outer.copies(meta, self.tasks), [], []
            for number, k_round in enumerate(keys):
                made = imagine(policies, k_round)
                rounds.append(outer.weigh(made, state.policies.inputs))
                returns.append(jnp.mean(episode_returns(made)))
                if number < inner.steps:
                    policies = outer.adapt(meta, policies, rounds[-1], number)
            return rounds, returns, policies

        def meta_step(at: tuple[Meta, Any], key: PRNGKeyArray) -> tuple[tuple[Meta, Any], dict[str, Array]]:
            rounds, returns, _ = adapted(at[0], jax.random.split(key, inner.steps + 1))
            meta, optimiser, told = outer.update(*at, tuple(rounds))
            told["imagined_return"], told["adaptation_gain"] = returns[0], returns[-1] - returns[0]
            return (meta, optimiser), told

        def learn(at: Adapting, key: PRNGKeyArray) -> tuple[Adapting, dict[str, Array]]:
            k_steps, k_live = jax.random.split(key)
            start = at.meta, at.optimiser
            (meta, optimiser), told = jax.lax.scan(meta_step, start, jax.random.split(k_steps, self.meta_steps))
            _, returns, policies = adapted(meta, jax.random.split(k_live, max(1, inner.steps)))
            if not self.adapted_collection:
                policies = outer.copies(meta, self.tasks)
            means = {name: jnp.mean(values) for name, values in told.items()}
            worst = {"largest_kl": jnp.max(told["kl"])} if "kl" in told else {}
            return Adapting(meta, optimiser, policies), {**means, **worst, "promised_return": returns[0]}

        start = Adapting(state.meta, state.optimiser, state.policies)
        (meta, optimiser, policies), told = repeat_updates(learn, start, self._due(state), key)
        state = state._replace(meta=meta, optimiser=optimiser, policies=policies)
        return state, {f"train/{name}": values for name, values in told.items()}


def _relative_error(
    ensemble: Scaled, inputs: Float[Array, "n inputs"], targets: Float[Array, "n outputs"]
) -> Float[Array, "n"]:
    """Mean squared error of every row, in deviations of the data that the models were fitted to."""
    predicted = ensemble.sample(jnp.broadcast_to(inputs, (ensemble.num_members, *inputs.shape)), None)
    return jnp.mean(((predicted - targets[None]) / ensemble.target_scale.std[None, None]) ** 2, axis=(0, 2))
