"""PETS and MPC-RS: what sequences are worth in a model, when plans begin anew, and when there is one to plan with."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import valid_steps
from metadyna.collect.windows import History
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.models import fit as fits
from metadyna.models.fit import FitState
from metadyna.models.worlds import known_world
from metadyna.planning.mpc import MPC
from metadyna.search.cem import CEM
from metadyna.search.random import RandomShooting
from metadyna.systems.mpc import PETS, RandomShootingMPC, particles
from metadyna.types import TimeStep
from tests.tiny import CONTINUOUS, SURE

KEY = jax.random.key(0)
FAMILY = make("point-mass")
COLLECTOR = DeviceCollector(FAMILY.env, FAMILY.train)
PLANNER = MPC(CEM(population=40, elites=5, iterations=3), horizon=3)
SMALL = replace(CONTINUOUS["pets"], planner=PLANNER, parallel=2, collect=5)
SHOOTING = replace(CONTINUOUS["mpc-rs"], planner=MPC(RandomShooting(60), horizon=2), parallel=2, collect=5)


def model(*gains):
    """A model in which an action moves the point by so much; each member by its own."""
    settings = replace(SURE, members=len(gains), elites=len(gains), widths=(), weight_decay=(0.0,))
    moves = jnp.stack([gain * jnp.eye(4, 2, -2) for gain in gains])  # of the place and the action, the action

    def layer(ensemble):
        layer = ensemble.weights.members.mlp.layers[-1]
        return [layer.weight, layer.bias]

    ensemble = settings.create(4, 2, KEY)
    assert layer(ensemble)[0].shape == moves.shape
    return FitState(eqx.tree_at(layer, ensemble, [moves, jnp.zeros((len(gains), 2))]), ())


def born(system, *gains):
    state = jax.jit(lambda key: system.init(COLLECTOR, key))(KEY)
    return state._replace(model=model(*gains))


def homewards(obs, action):
    """By how much an action leads to the goal."""
    return -np.sum(np.asarray(obs) * np.asarray(action), axis=-1)


@pytest.mark.parametrize(("mode", "count"), [("TSinf", 2), ("TSinf", 4), ("TS1", 2), ("mean", 1)])
def test_a_sequence_is_worth_what_its_particles_earn(mode, count):
    """From (1, 0): a step of 0.1 in one member, 0.3 in the other; minus the distances are paid."""
    outlook = particles(known_world(FAMILY.env), count, mode)
    assert outlook is particles(known_world(FAMILY.env), count, mode)  # compiles once
    back = jnp.array([[-1.0, 0.0], [-1.0, 0.0]])
    sequences = jnp.stack([back, -back])
    worth = outlook(model(0.1, 0.3).ensemble, History(jnp.array([1.0, 0.0])), sequences, KEY)
    if mode == "TS1":  # a particle changes its member on the way, or not: 0.2 or 0.4 or 0.6 in two steps
        assert -(0.9 + 0.7) <= worth[0] * 1.0001 <= -(0.8 + 0.6) + 0.2
        return
    np.testing.assert_allclose(worth, [-(0.9 + 0.8 + 0.7 + 0.4) / 2, -(1.1 + 1.2 + 1.3 + 1.6) / 2], rtol=1e-5)


def test_particles_are_shared_equally():
    with pytest.raises(UserError, match=r"PETS\.particles = 3 .* 2 elites; choose a multiple"):
        replace(SMALL, particles=3)
    replace(SMALL, particles=3, propagation="mean")
    outlook = particles(known_world(FAMILY.env), 3, "TSinf")
    with pytest.raises(UserError, match=r"3 particles cannot be shared equally among 2 members"):
        outlook(model(0.1, 0.3).ensemble, History(jnp.zeros(2)), jnp.zeros((1, 2, 2)), KEY)


def test_the_plan_is_made_anew_where_an_episode_begins():
    """Left over from the last episode is the plan to go on as hard as it can, both ways."""
    act, fresh = jax.jit(SMALL.acting(FAMILY.env)), jax.tree.map(lambda x: x[0], SMALL._at_first(FAMILY.env.spec, 3))
    stale = fresh._replace(plan=fresh.plan._replace(mean=fresh.plan.mean + 0.9))
    zero = jnp.float32(0)

    def acted(carry, first):
        seen = TimeStep(jnp.array([0.5, 0.5]), zero, 1 + zero, jnp.bool_(first), jnp.bool_(False), jnp.zeros(2))
        return act((model(0.1, 0.1).ensemble, jnp.bool_(False)), carry, seen, KEY)

    jax.tree.map(np.testing.assert_array_equal, acted(stale, True), acted(fresh, True))
    assert np.abs(acted(stale, False)[0] - acted(fresh, True)[0]).max() > 0.1
    np.testing.assert_array_equal(acted(stale, True)[1].history.obs, [0.5, 0.5])


@pytest.mark.parametrize("steps", [0, 19, 20, 50])
def test_plans_are_made_once_it_is_warm(steps):
    state = jax.eval_shape(lambda key: SMALL.init(COLLECTOR, key), KEY)._replace(steps=jnp.int32(steps))
    assert SMALL.params(state)[1] == (steps < 20)


@pytest.mark.parametrize("system", [SMALL, SHOOTING], ids=["pets", "mpc-rs"])
def test_it_guesses_then_plans_in_the_model_fitted_to_all_that_was_lived(system, monkeypatch):
    """The first model would lead away; every fit finds the one that leads home. 2 copies take 5 steps each time."""
    members = system.model.elites

    def fit(settings, networks, state, rows, key):
        del state, key
        assert (settings, networks) == (system.fit, system.model)
        inputs, targets = rows.take(jnp.arange(30))
        return model(*[0.1] * members), {"count": rows.count, "inputs": inputs, "targets": targets}

    monkeypatch.setattr(fits, "fit", fit)
    state = born(system, *[-0.1] * members)
    iterate = jax.jit(lambda state, key: system.iterate(state, COLLECTOR, key))
    for steps in (10, 20, 30):
        state, told = iterate(state, jax.random.fold_in(KEY, steps))
        assert (state.steps, state.replay.added, told["count"].total) == (steps, steps, steps)
    rows = jax.tree.map(lambda x: np.asarray(x[:30]), state.replay.items)
    ahead = homewards(rows.obs, rows.action)
    assert (ahead[:20] < 0).any()  # any action
    assert (ahead[20:] > 0).all()
    assert len(np.unique(rows.action)) == 60
    for name, seen in {"inputs": (rows.obs, rows.action), "targets": (rows.next_obs - rows.obs,)}.items():
        assert told[name].total == pytest.approx(sum(x.sum() for x in seen), rel=1e-4)
        assert told[name].weight == sum(x.size for x in seen)  # the reward is known, and no target
    np.testing.assert_allclose(rows.next_obs - rows.obs, 0.1 * rows.action, atol=1e-6)
    obs, next_obs = (x.reshape(3, 5, 2, 2) for x in (rows.obs, rows.next_obs))
    np.testing.assert_array_equal(obs[:, 1:], next_obs[:, :-1])  # the copies side by side, step by step


def test_trials_are_planned_even_when_training_still_guesses():
    state = born(SMALL, 0.1, 0.1)
    assert SMALL.params(state)[1]
    run = jax.jit(lambda params: SMALL.trial(params, COLLECTOR, jnp.zeros((2, 1)), KEY))
    episodes = run(SMALL.params(state)).episodes
    obs, action, last = (np.asarray(x)[:, :, 0, 0] for x in (episodes.obs, episodes.action, episodes.last))
    far = np.asarray(valid_steps(jnp.asarray(last))) & (np.linalg.norm(obs, axis=-1) > 0.3)
    assert far.sum() > 8
    assert (homewards(obs, action)[far] > 0).all()


def test_the_model_predicts_what_changes_and_the_replay_has_room_for_an_iteration():
    state = jax.eval_shape(lambda key: SMALL.init(COLLECTOR, key), KEY)
    assert (state.model.ensemble.num_outputs, replay.capacity(state.replay)) == (2, 200)
    assert state.env.carry.plan.mean.shape == (2, 3, 2)  # of every copy
    with pytest.raises(UserError, match=r"PETS\.capacity = 9 .* \[10, 2000000000\]"):
        replace(SMALL, capacity=9)


def test_mpc_rs_is_pets_of_one_sure_network_and_random_shooting():
    system = RandomShootingMPC()
    assert isinstance(system, PETS)
    assert (system.model.members, system.model.probabilistic, system.particles) == (1, False, 1)
    assert isinstance(system.planner.search, RandomShooting)
