"""Imagination: what a world says would happen."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from metadyna.collect.episodes import transition, where_rows
from metadyna.errors import UserError
from metadyna.models.worlds import Latent, Prediction, World
from metadyna.types import Act, Carry, Outcome, Params, TimeStep, Transition

Propagation = Literal["TSinf", "TS1", "mean"]
"""How particles pass through the members, with the names of Chua et al. 2018, section 5."""


def sequence_returns(
    world: World,
    start: Latent,
    sequences: Float[Array, "N H *action"],
    key: PRNGKeyArray,
    particles: int = 5,
    mode: Propagation = "TSinf",
) -> Float[Array, "N"]:
    """Mean over particles of the undiscounted return of each action sequence, played open-loop from one latent.

    - `TSinf`: a particle keeps its member for the whole horizon. Members have equal shares, so `particles` must be a
      multiple of the elites.
    - `TS1`: in every step the particles of each candidate are permuted, then shared out equally: balanced, unlike
      independent draws of a member.
    - `mean`: one particle that moves by the mean of the members' means, without noise.

    Rewards after a predicted end do not count. A candidate is NaN if any of its particles' returns, or the last
    latent of one that has not ended, is not finite; it must lose, and nothing here hides it.

    Chua et al. 2018, section 5 and Algorithm 1; code kchua/handful-of-trials `MPC.py`.
    """
    world = world.best().averaged() if mode == "mean" else world.best()
    particles = 1 if mode == "mean" else particles
    members, candidates, horizon = world.num_members, *sequences.shape[:2]
    if particles % members:
        raise UserError(f"{particles} particles cannot be shared equally among {members} members")
    rows = particles * candidates // members
    k_noise, k_order = jax.random.split(key)
    noise, order = world.draw(k_noise, (horizon, members, rows)), None
    if mode == "TS1":
        slots = jnp.broadcast_to(jnp.arange(particles)[None, :, None], (horizon, particles, candidates))
        order = jax.random.permutation(k_order, slots, axis=1, independent=True)

    def step(state: tuple[Latent, Array, Array], now: tuple[Any, ...]) -> tuple[tuple[Latent, Array, Array], None]:
        action, noise, order = now
        if order is not None:
            # Particles change places between members, with all that they carry; their mean does not mind.
            state = jax.tree.map(lambda x: _reorder(x, order), state)
        latent, total, alive = state
        action = jnp.broadcast_to(action, (particles, *action.shape))
        # The particles of one member are consecutive.
        grouped = jax.tree.map(lambda x: x.reshape(members, rows, *x.shape[2:]), (latent, action))
        latent, action = grouped
        after = world.step(latent, action, noise)
        latent, predicted = jax.tree.map(lambda x: x.reshape(particles, candidates, *x.shape[2:]), after)
        return (latent, total + jnp.where(alive, predicted.reward, 0.0), alive & ~predicted.terminated), None

    first = (
        jax.tree.map(lambda x: jnp.broadcast_to(x, (particles, candidates, *x.shape)), start),
        jnp.zeros((particles, candidates)),
        jnp.ones((particles, candidates), bool),
    )
    (latent, total, alive), _ = lax.scan(step, first, (jnp.swapaxes(sequences, 0, 1), noise, order))
    sound = jnp.isfinite(total) & (~alive | _finite(latent))
    return jnp.where(jnp.all(sound, axis=0), jnp.mean(total, axis=0), jnp.nan)


def open_loop_errors(
    world: World,
    start: Latent,
    actions: Float[Array, "T action"],
    truth: Float[Array, "T obs"],
    spread: Float[Array, "obs"] | None = None,
) -> Float[Array, "K T"]:
    """Root mean squared error over the entries of the observation after 1 … T steps of every member's mean.

    A trajectory's real actions are played open-loop from one latent: how errors compound. With `spread`, every
    entry's error is in units of its own.
    """
    units = jnp.ones_like(truth[0]) if spread is None else spread
    members = world.num_members

    def step(latent: Latent, now: tuple[Array, Array]) -> tuple[Latent, Array]:
        action, real = now
        latent, predicted = world.step(latent, jnp.broadcast_to(action, (members, 1, *action.shape)), None)
        missed = (predicted.obs[:, 0] - real[None]) / units[None]
        return latent, jnp.sqrt(jnp.mean(missed**2, axis=-1))

    first = jax.tree.map(lambda x: jnp.broadcast_to(x, (members, 1, *x.shape)), start)
    return lax.scan(step, first, (actions, truth))[1].T


def branch(
    world: World,
    act: Act,
    params: Params,
    starts: Latent,
    horizon: int,
    key: PRNGKeyArray,
    carry: Carry = (),
) -> Transition:
    """Roll a policy out in a world for `horizon` steps from each of n latents: [horizon, n].

    `act` speaks of one copy, as for real environments, and observes what the world's `features` show; `carry` is the
    agent's memory, batched [n]. It is not told `first`, since a branch begins in mid-episode, nor what came before.
    Next observations and learnt rewards are samples.

    In every step the rows are dealt out to the elites anew, at random and in equal numbers. Each row's member is
    uniform, as when drawn for itself, but every member advances n/K rows instead of all n, in one matrix product.

    `last` and a `discount` of 0 mark a predicted end; steps after it are padding (`episodes.valid_steps`), in which
    the latent stays where it was, for a model that is led beyond the end may overflow. A branch that is cut off
    at the horizon is not `last`.

    Janner et al. 2019, Algorithm 2, line 8.
    """
    world = world.best()
    members, branches = world.num_members, jax.tree.leaves(starts)[0].shape[0]
    rows = -(-branches // members)
    show = jax.vmap(world.features)

    def advance(latent: Latent, action: PyTree, key: PRNGKeyArray) -> tuple[Latent, Prediction]:
        k_deal, k_noise = jax.random.split(key)
        # As many slots as fill all members; those beyond the branches repeat some rows, and are dropped.
        dealt = jax.random.permutation(k_deal, members * rows)
        of_members = jax.tree.map(lambda x: x[dealt % branches].reshape(members, rows, *x.shape[1:]), (latent, action))
        latent, action = of_members
        after = world.step(latent, action, world.draw(k_noise, (members, rows)))
        back = jnp.argsort(dealt)[:branches]
        return jax.tree.map(lambda x: x.reshape(members * rows, *x.shape[2:])[back], after)

    def step(
        state: tuple[Latent, TimeStep, Carry], key: PRNGKeyArray
    ) -> tuple[tuple[Latent, TimeStep, Carry], Transition]:
        latent, before, carry = state
        k_act, k_step = jax.random.split(key)
        keys = jax.random.split(k_act, branches)
        action, carry, extras = jax.vmap(act, (None, 0, 0, 0))(params, carry, before._replace(last=none), keys)
        reached, predicted = advance(latent, action, k_step)
        latent = where_rows(before.last, latent, reached)
        obs, discount = show(latent), 1 - predicted.terminated.astype(jnp.float32)
        last = before.last | predicted.terminated
        after = TimeStep(obs, predicted.reward, discount, none, last, action)
        return (latent, after, carry), transition(before, action, after, extras)

    none = jnp.zeros(branches, bool)
    nothing = Outcome.none(world.action, branches)
    before = TimeStep(show(starts), nothing.reward, nothing.discount, none, none, nothing.action)
    return lax.scan(step, (starts, before, carry), jax.random.split(key, horizon))[1]


def _finite(latent: Latent) -> Array:
    """Whether all of every particle's latent is finite, [particles, candidates]."""
    each = [jnp.all(jnp.isfinite(x), axis=range(2, x.ndim)) for x in jax.tree.leaves(latent)]
    return jnp.all(jnp.stack(each), axis=0)


def _reorder(values: Array, order: Int[Array, "particles candidates"]) -> Array:
    """Permute the particles of each candidate."""
    return jnp.take_along_axis(values, order.reshape(*order.shape, *(1 for _ in values.shape[2:])), axis=0)
