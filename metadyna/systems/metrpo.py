"""ME-TRPO: a policy trained by TRPO in an ensemble of models (Kurutach et al. 2018, arXiv 1802.10592, Algorithm 2).

    for each iteration:
        D ← D ∪ real steps with π; fit the ensemble to D
        repeat until more than a few members think that π got worse:
            imagine episodes with π from real starts, every step by a random member; one TRPO step on them

The environment's reward is known.

Differences from the paper: members keep their weights from iteration to iteration; exploration is the policy's own
noise. As in the authors' code a validation that fails ends the training but undoes nothing. Imagined observations are
kept near the data.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.collect.episodes import episode_returns, flat
from metadyna.improve.baseline import LinearBaseline
from metadyna.improve.on_policy import refit, trust_region_step, weigh, whole
from metadyna.improve.trpo import TRPO
from metadyna.models import fit as fits
from metadyna.models.bounded import Nearby
from metadyna.models.fit import Fit, FitState, Rows
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.models.imagine import branch
from metadyna.models.worlds import Meaning, known_world
from metadyna.policies.acting import perform, practise
from metadyna.policies.direct import Policy, create
from metadyna.settings import Settings, Widths, check_ranges
from metadyna.types import Average, Collected, Collector, Metrics, Task, Transition, Trial, box_sizes


class State(NamedTuple):
    """Policy, model, everything that was lived, where episodes began, the copies in mid-episode, and steps so far."""

    policy: Policy
    baseline: LinearBaseline
    model: FitState
    real: replay.Ring
    starts: replay.Ring
    env: Collected
    steps: Int[Array, ""]


class Training(NamedTuple):
    """Where the training of a policy in the model has got to."""

    policy: Policy
    baseline: LinearBaseline
    best: Float[Array, "K"]
    """Highest return so far in every member, at the validations."""
    worse: Float[Array, ""]
    """Share of the members that found the policy worse than at its best, at the latest validation."""
    steps: Int[Array, ""]
    totals: dict[str, Array]


@dataclass(frozen=True)
class METRPO(Settings):
    """ME-TRPO: a policy trained by TRPO in an ensemble of models (Kurutach et al. 2018, arXiv 1802.10592)."""

    trpo: TRPO = TRPO()
    """The policy's step."""
    model: GaussianEnsemble = GaussianEnsemble(
        members=5, elites=5, widths=(128, 128), activation="relu", probabilistic=False,
        weight_decay=(0.0, 0.0, 0.0), standardise_targets=True,
    )  # fmt: skip
    """The networks of the model; the paper's are 1024 wide."""
    fit: Fit = Fit(holdout=0.33, bootstrap=False, max_updates=2_000)
    """How they are trained."""
    widths: Widths = (32, 32)
    """Hidden layers of the policy, with tanh."""
    log_std: Annotated[float, "[-5, 2]"] = 0.0
    """Log standard deviation of a fresh policy."""
    parallel: Annotated[int, "[1, 65536]"] = 1
    """Copies of the environment."""
    collect: Annotated[int, "[1, 1000000]"] = 1_000
    """Real steps of every copy per iteration; the paper has 3,000."""
    episodes: Annotated[int, "[1, 1000000]"] = 100
    """Imagined episodes per policy step."""
    horizon: Annotated[int, "[1, 100000]"] = 100
    """Steps of an imagined episode."""
    reach: Annotated[float, "(0, 1000000]"] = 10.0
    """Imagined observations are kept within so many deviations of the mean of the data."""
    policy_steps: Annotated[int, "[1, 10000]"] = 40
    """Most policy steps per iteration."""
    validate_every: Annotated[int, "[1, 10000]"] = 5
    """Policy steps between two validations; with more than `policy_steps` there is none."""
    tolerance: Annotated[float, "[0, 1]"] = 0.3
    """Share of members that may find the policy worse than at its best."""
    discount: Annotated[float, "[0, 1]"] = 0.99
    """γ per step; the authors' code has 1."""
    gae_decay: Annotated[float, "[0, 1]"] = 1.0
    """λ of the advantage estimate."""
    capacity: Annotated[int, "[1, 2000000000]"] = 100_000
    """Real transitions kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, capacity=f"[{self.parallel * self.collect}, 2000000000]")

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw policy and model, start the copies, make room."""
        k_policy, k_model, k_env = jax.random.split(key, 3)
        observed, actions = box_sizes(collector.env.spec)
        example = replay.transition_shapes(collector.env.spec)
        known_world(collector.env)  # complains of an environment whose reward is not known
        policy = create(collector.env.spec, self.widths, k_policy, self.log_std)
        return State(
            policy,
            LinearBaseline.zero(policy.inputs),
            fits.start(self.model, self.model.create(observed + actions, observed, k_model)),
            replay.init(example, self.capacity),
            replay.init(example.obs, self.capacity),
            collector.begin((), self.parallel, k_env),
            jnp.int32(0),
        )

    def params(self, state: State) -> Policy:
        """The weights that act."""
        return state.policy

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Live with the policy, fit the model, and train the policy in it."""
        k_env, k_fit, k_policy = jax.random.split(key, 3)
        world, began = known_world(collector.env), state.env.lengths == 0
        env, lived = collector.collect(practise, state.policy, state.env, k_env, self.collect)
        given = state._replace(env=()), lived, began, k_fit
        state, fitted = collector.compute(self._learn, *given, static=(world,), spend=True)
        state, trained = collector.compute(self._train, state, k_policy, static=(world,), spend=True)
        return state._replace(env=env), {**env.finished, **fitted, **trained}

    def trial(self, params: Policy, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """One episode of each task with the policy's mean action."""
        return Trial.of(collector.episodes(perform, params, (), tasks, key).episodes)

    def _learn(
        self, world: Meaning, state: State, lived: Transition, began: Array, key: PRNGKeyArray
    ) -> tuple[State, Metrics]:
        """Store what was lived [T, B], which starts an episode in the copies `began`, and fit the model."""
        first = jnp.concatenate([began[None], lived.last[:-1]])
        rows, first = flat((lived._replace(extras=()), first))
        ring, starts = replay.add(state.real, rows), replay.add_where(state.starts, rows.obs, first)
        model, metrics = fits.fit(self.fit, self.model, state.model, Rows(ring, world.examples), key)
        steps = state.steps + lived.reward.size
        state = state._replace(model=model, real=ring, starts=starts, steps=steps)
        return state, {name: Average.of(value) for name, value in metrics.items()}

    def _train(self, world: Meaning, state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Policy steps in the model, until too many members disapprove."""
        k_known, k_judge, k_steps = jax.random.split(key, 3)
        ensemble = state.model.ensemble
        known = replay.sample(state.starts, k_known, self.episodes)

        def judge(policy: Policy) -> Float[Array, "K"]:
            """Return of the mean action in every member alone, from starts and with noise that stay the same."""

            def in_one(member: Array) -> Array:
                only = world.world(Nearby(ensemble.only(member), self.reach))
                made = branch(only, perform, policy, known, self.horizon, k_judge)
                return jnp.mean(episode_returns(made))

            return jax.vmap(in_one)(ensemble.elites)

        def improve(at: Training) -> tuple[Policy, LinearBaseline, dict[str, Array]]:
            k_starts, k_made = jax.random.split(jax.random.fold_in(k_steps, at.steps))
            starts = replay.sample(state.starts, k_starts, self.episodes)
            everywhere = world.world(Nearby(ensemble, self.reach))
            made = branch(everywhere, practise, at.policy, starts, self.horizon, k_made)
            steps, valid = whole(made)
            began = jnp.zeros(self.episodes, jnp.int32)
            data = weigh(steps, at.baseline, began, valid, self.discount, self.gae_decay)
            policy, metrics = trust_region_step(self.trpo, at.policy, data)
            return policy, refit(at.baseline, data), {**metrics, "imagined_return": jnp.mean(episode_returns(made))}

        def advance(at: Training) -> Training:
            policy, baseline, metrics = improve(at)
            steps = at.steps + 1
            returns = jax.lax.cond(steps % self.validate_every == 0, judge, lambda _: at.best, policy)
            worse, best = jnp.mean(returns < at.best), jnp.maximum(at.best, returns)
            return Training(policy, baseline, best, worse, steps, jax.tree.map(jnp.add, at.totals, metrics))

        def go_on(at: Training) -> Array:
            return (at.steps < self.policy_steps) & (at.worse <= self.tolerance)

        validated = self.validate_every <= self.policy_steps
        best = judge(state.policy) if validated else jnp.full(ensemble.elites.shape, -jnp.inf)
        at = Training(state.policy, state.baseline, best, jnp.float32(0), jnp.int32(0), {})
        shapes = jax.eval_shape(improve, at)[2]
        at = at._replace(totals=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        at = jax.lax.while_loop(go_on, advance, at)
        metrics = {f"train/{name}": Average(total, at.steps) for name, total in at.totals.items()}
        metrics["train/policy_steps"] = Average.of(at.steps)
        return state._replace(policy=at.policy, baseline=at.baseline), metrics
