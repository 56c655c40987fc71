"""Imagination: what a learnt model says would happen.

The model proper predicts numbers; a `WorldModel` says what those numbers mean in one environment. From here on an
ensemble is whatever has the methods of `Predictor`, so true dynamics can stand in for learnt ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.errors import UserError
from metadyna.types import ActFn, TimeStep, Transition

Propagation = Literal["TSinf", "TS1", "mean"]
"""How particles pass through the members, with the names of Chua et al. 2018, section 5."""


@runtime_checkable
class Predictor(Protocol):
    """K members that map rows of inputs to rows of outputs; `gaussian.Ensemble` is one."""

    @property
    def num_members(self) -> int:
        """K."""
        ...

    @property
    def num_inputs(self) -> int:
        """Numbers that a member reads."""
        ...

    @property
    def num_outputs(self) -> int:
        """Numbers that a member predicts."""
        ...

    def best(self) -> "Predictor":
        """The members to imagine with."""
        ...

    def sample(
        self, inputs: Float[Array, "K n inputs"], noise: Float[Array, "K n outputs"] | None
    ) -> Float[Array, "K n outputs"]:
        """What each member makes of its own rows and standard normal noise; the mean where `noise` is None."""
        ...


def unchanged(obs: Float[Array, "obs"]) -> Float[Array, "obs"]:
    """Show the model the observation itself."""
    return obs


def difference(obs: Float[Array, "obs"], next_obs: Float[Array, "obs"]) -> Float[Array, "obs"]:
    """Learn the change of the observation."""
    return next_obs - obs


def add(obs: Float[Array, "obs"], change: Float[Array, "obs"]) -> Float[Array, "obs"]:
    """Apply a change of the observation."""
    return obs + change


def never(next_obs: Float[Array, "obs"]) -> Bool[Array, ""]:
    """The MDP does not terminate."""
    del next_obs
    return jnp.bool_(False)


@dataclass(frozen=True)
class Dynamics:
    """What a model sees and learns of one environment; functions of one copy.

    `apply` undoes `target`: apply(obs, target(obs, next_obs)) is next_obs. Angles want `encode` to show sine and cosine
    and `target` to wrap the difference.
    """

    encode: Callable[[Array], Array] = unchanged
    """Observation to features."""
    target: Callable[[Array, Array], Array] = difference
    """(obs, next_obs) to what is learnt."""
    apply: Callable[[Array, Array], Array] = add
    """(obs, what was learnt) to next_obs."""


@dataclass(frozen=True)
class WorldModel:
    """The meaning of an ensemble's inputs and outputs; functions are of one copy.

    Actions are vectors of floats; beyond [-1, 1] they are clipped, as every environment does.

    The reward and the end of an environment that is `types.Known` are given with its task filled in.
    """

    dynamics: Dynamics = Dynamics()
    """What is seen and learnt."""
    reward: Callable[[Array, Array, Array], Array] | None = None
    """(obs, action, next_obs) to reward; None if the ensemble predicts it as its first output, as MBPO does."""
    terminated: Callable[[Array], Array] = never
    """next_obs to whether the MDP ends there."""

    def inputs(self, obs: Float[Array, "obs"], action: Float[Array, "action"]) -> Float[Array, "inputs"]:
        """What the ensemble reads: features, then the action."""
        return jnp.concatenate([self.dynamics.encode(obs), jnp.clip(action, -1, 1)])

    def targets(
        self, obs: Float[Array, "obs"], reward: Float[Array, ""], next_obs: Float[Array, "obs"]
    ) -> Float[Array, "outputs"]:
        """What the ensemble is to predict: the reward unless it is known, then the dynamics' target."""
        target = self.dynamics.target(obs, next_obs)
        return target if self.reward is not None else jnp.concatenate([reward[None], target])

    def examples(self, rows: Transition) -> tuple[Float[Array, "n inputs"], Float[Array, "n outputs"]]:
        """What the ensemble learns from transitions [n, ...]: its inputs and their targets."""
        inputs = jax.vmap(self.inputs)(rows.obs, rows.action)
        return inputs, jax.vmap(self.targets)(rows.obs, rows.reward, rows.next_obs)

    def decode(
        self, obs: Float[Array, "obs"], action: Float[Array, "action"], outputs: Float[Array, "outputs"]
    ) -> tuple[Float[Array, "obs"], Float[Array, ""], Bool[Array, ""]]:
        """Next observation, reward and end that a prediction stands for."""
        if self.reward is not None:
            next_obs = self.dynamics.apply(obs, outputs)
            return next_obs, self.reward(obs, jnp.clip(action, -1, 1), next_obs), self.terminated(next_obs)
        next_obs = self.dynamics.apply(obs, outputs[1:])
        return next_obs, outputs[0], self.terminated(next_obs)

    def step(
        self,
        ensemble: Predictor,
        obs: Float[Array, "K n obs"],
        actions: Float[Array, "K n action"],
        noise: Float[Array, "K n outputs"] | None,
    ) -> tuple[Float[Array, "K n obs"], Float[Array, "K n"], Bool[Array, "K n"]]:
        """Next observations, rewards and ends; member k advances its own rows, without noise by its mean."""
        outputs = ensemble.sample(_each(self.inputs)(obs, actions), noise)
        return _each(self.decode)(obs, actions, outputs)


def sequence_returns(
    model: WorldModel,
    ensemble: Predictor,
    obs: Float[Array, "obs"],
    sequences: Float[Array, "N H action"],
    key: PRNGKeyArray,
    particles: int = 5,
    mode: Propagation = "TSinf",
) -> Float[Array, "N"]:
    """Mean over particles of the undiscounted return of each action sequence, played open-loop from `obs`.

    - `TSinf`: a particle keeps its member for the whole horizon. Members have equal shares, so `particles` must be a
      multiple of the elites.
    - `TS1`: in every step the particles of each candidate are permuted, then shared out equally: balanced, unlike
      independent draws of a member.
    - `mean`: one particle that moves by the mean of the members' means, without noise.

    Rewards after a predicted end do not count. A candidate is NaN if any of its particles' returns, or the last
    observation of one that has not ended, is not finite; it must lose, and nothing here hides it.

    Chua et al. 2018, section 5 and Algorithm 1; code kchua/handful-of-trials `MPC.py`.
    """
    ensemble = ensemble.best()
    members, candidates, horizon = ensemble.num_members, *sequences.shape[:2]
    if mode == "mean":
        particles = 1
    elif particles % members:
        raise UserError(f"{particles} particles cannot be shared equally among {members} members")
    rows = particles * candidates // members
    k_noise, k_order = jax.random.split(key)
    # All random numbers are drawn at once: a loop of small operations costs more by their number than by their size.
    noise, order = None, None
    if mode != "mean":
        noise = jax.random.normal(k_noise, (horizon, members, rows, ensemble.num_outputs))
    if mode == "TS1":
        slots = jnp.broadcast_to(jnp.arange(particles)[None, :, None], (horizon, particles, candidates))
        order = jax.random.permutation(k_order, slots, axis=1, independent=True)

    def advance(obs: Array, actions: Array, noise: Array | None) -> tuple[Array, Array, Array]:
        """One step of [particles, candidates]; the particles of one member are consecutive."""
        if mode == "mean":
            inputs = _each(model.inputs)(obs, actions)
            outputs = ensemble.sample(jnp.broadcast_to(inputs, (members, *inputs.shape[1:])), None)
            return _each(model.decode)(obs, actions, jnp.mean(outputs, axis=0, keepdims=True))
        obs, actions = (x.reshape(members, rows, x.shape[-1]) for x in (obs, actions))
        after = model.step(ensemble, obs, actions, noise)
        obs, reward, terminated = (x.reshape(particles, candidates, *x.shape[2:]) for x in after)
        return obs, reward, terminated

    def step(state: tuple[Array, Array, Array], now: tuple[Any, ...]) -> tuple[tuple[Array, Array, Array], None]:
        actions, noise, order = now
        if order is not None:
            # Particles change places between members, with all that they carry; their mean does not mind.
            state = jax.tree.map(lambda x: _reorder(x, order), state)
        obs, total, alive = state
        actions = jnp.broadcast_to(actions, (particles, *actions.shape))
        obs, reward, terminated = advance(obs, actions, noise)
        return (obs, total + jnp.where(alive, reward, 0.0), alive & ~terminated), None

    start = (
        jnp.broadcast_to(obs, (particles, candidates, *obs.shape)),
        jnp.zeros((particles, candidates)),
        jnp.ones((particles, candidates), bool),
    )
    steps: Any = jnp.swapaxes(sequences, 0, 1), noise, order
    (obs, total, alive), _ = lax.scan(step, start, steps)
    sound = jnp.isfinite(total) & (~alive | jnp.all(jnp.isfinite(obs), axis=-1))
    return jnp.where(jnp.all(sound, axis=0), jnp.mean(total, axis=0), jnp.nan)


def open_loop_errors(
    model: WorldModel,
    ensemble: Predictor,
    obs: Float[Array, "T1 obs"],
    actions: Float[Array, "T action"],
    spread: Float[Array, "obs"] | None = None,
) -> Float[Array, "K T"]:
    """Root mean squared error over the entries of the observation after 1 … T steps of every member's mean.

    A trajectory's real actions are played open-loop from its first observation: how errors compound. With `spread`,
    every entry's error is in units of its own.
    """
    units = jnp.ones_like(obs[0]) if spread is None else spread
    members = ensemble.num_members

    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        action, real = now
        actions = jnp.broadcast_to(action, (members, 1, *action.shape))
        state, _, _ = model.step(ensemble, state, actions, None)
        return state, jnp.sqrt(jnp.mean(((state[:, 0] - real[None]) / units[None]) ** 2, axis=-1))

    start = jnp.broadcast_to(obs[0], (members, 1, *obs[0].shape))
    return lax.scan(step, start, (actions, obs[1:]))[1].T


def branch(
    model: WorldModel,
    ensemble: Predictor,
    act: ActFn,
    params: Any,
    starts: Float[Array, "n obs"],
    horizon: int,
    key: PRNGKeyArray,
    carry: Any = (),
) -> Transition:
    """Roll a policy out in the model for `horizon` steps from each of n real observations: [horizon, n].

    `act` speaks of one copy, as for real environments; `carry` is the agent's memory, batched [n]. It is not told
    `first`, since a branch begins in mid-episode, and its first `prev_action` is zeros. Next observations and learnt
    rewards are samples.

    In every step the rows are dealt out to the elites anew, at random and in equal numbers. Each row's member is
    uniform, as when drawn for itself, but every member advances n/K rows instead of all n, in one matrix product.

    `last` and a `discount` of 0 mark a predicted end; steps after it are padding (`episodes.valid_steps`), in which
    the observation stays where it was, for a model that is led beyond the end may overflow. A branch that is cut off
    at the horizon is not `last`.

    Janner et al. 2019, Algorithm 2, line 8.
    """
    ensemble = ensemble.best()
    members, branches = ensemble.num_members, starts.shape[0]
    rows = -(-branches // members)
    actions = ensemble.num_inputs - jax.eval_shape(model.dynamics.encode, starts[0]).shape[0]

    def advance(obs: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        k_deal, k_noise = jax.random.split(key)
        # As many slots as fill all members; those beyond the branches repeat some rows, and are dropped.
        dealt = jax.random.permutation(k_deal, members * rows)
        obs, action = (x[dealt % branches].reshape(members, rows, x.shape[-1]) for x in (obs, action))
        noise = jax.random.normal(k_noise, (members, rows, ensemble.num_outputs))
        after = model.step(ensemble, obs, action, noise)
        back = jnp.argsort(dealt)[:branches]
        obs, reward, terminated = (x.reshape(members * rows, *x.shape[2:])[back] for x in after)
        return obs, reward, terminated

    def step(state: tuple[TimeStep, Any, Array], key: PRNGKeyArray) -> tuple[tuple[TimeStep, Any, Array], Transition]:
        before, carry, ended = state
        k_act, k_step = jax.random.split(key)
        keys = jax.random.split(k_act, branches)
        action, carry, extras = jax.vmap(act, (None, 0, 0, 0))(params, carry, before, keys)
        obs, reward, last = advance(before.obs, action, k_step)
        obs = jnp.where(ended[:, None], before.obs, obs)
        discount = 1 - last.astype(jnp.float32)
        after = TimeStep(obs, reward, discount, jnp.zeros_like(last), last, action)
        transition = Transition(before.obs, action, reward, discount, obs, last, extras)
        return (after, carry, ended | last), transition

    none, ones = jnp.zeros(branches, bool), jnp.ones(branches)
    start = TimeStep(starts, jnp.zeros(branches), ones, none, none, jnp.zeros((branches, actions)))
    return lax.scan(step, (start, carry, none), jax.random.split(key, horizon))[1]


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of one copy to every row of every group."""
    return jax.vmap(jax.vmap(function))


def _reorder(values: Array, order: Int[Array, "particles candidates"]) -> Array:
    """Permute the particles of each candidate."""
    return jnp.take_along_axis(values, order.reshape(*order.shape, *(1 for _ in values.shape[2:])), axis=0)
