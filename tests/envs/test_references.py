"""Exact returns against the card of DREAM (sections 2.5 and 2.6), and against episodes actually played."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs import make, references
from metadyna.envs.cooking import CookingGrid
from metadyna.envs.gridworld import CityGrid, GridTask, Split
from metadyna.errors import UserError

CITIES = ("city-vanilla", "city-distraction", "city-map", "city-distraction-map")


@partial(jax.jit, static_argnums=0)
def follow(env, tasks, policy):
    """Return and length of playing `policy` [N, T, S] in every task."""
    key = jax.random.key(0)

    def episode(task, actions):
        def step(carry, _):
            state, alive = carry
            action = actions[state.time, env.state_index(state)]
            state, timestep = env.step(task, state, action, key)
            paid = jnp.where(alive, timestep.reward, 0.0)
            return (state, alive & ~timestep.last), (paid, alive)

        start = (env.reset(task, key)[0], jnp.bool_(True))
        rewards, alive = jax.lax.scan(step, start, length=env.spec.horizon)[1]
        return rewards.sum(), alive.sum()

    return jax.vmap(episode)(tasks, policy)


@pytest.mark.parametrize("name", CITIES)
def test_scripted_play_reaches_the_optimum_everywhere(name):
    family = make(name)
    splits = (split.enumerate() for split in (family.train, family.test))
    tasks = jax.tree.map(lambda *parts: np.concatenate(parts), *splits)
    told = follow(family.env, tasks, references.optimal_actions(family.env, tasks))
    totals, lengths = map(np.asarray, told)
    np.testing.assert_allclose(totals, 0.8, atol=1e-5)
    assert (lengths == 3).all()


@pytest.mark.parametrize("name", ["city-5x5", "cooking"])
def test_scripted_play_collects_what_is_promised(name):
    family = make(name)
    tasks = family.test.enumerate()
    totals, _ = follow(family.env, tasks, references.optimal_actions(family.env, tasks))
    np.testing.assert_allclose(totals, references.optimal(family.env, tasks), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("city-vanilla", {"optimal": 0.8, "walking": 0.3, "random": -1.9705}),
        ("city-distraction", {"optimal": 0.8, "walking": 0.3, "random": -1.9709}),
        ("city-map", {"optimal": 0.8, "walking": 0.3, "random": -1.9705}),
        ("city-distraction-map", {"optimal": 0.8, "walking": 0.3, "random": -1.9709}),
        ("city-5x5", {"optimal": 0.7, "walking": 0.1, "random": -2.5672}),
        ("cooking", {"optimal": 0.4667, "random": -2.1679}),
    ],
)
def test_family_references(name, expected):
    assert make(name).references() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("function", "expected"), [(references.optimal, 0.7811), (references.walking, 0.2527)])
def test_discounted_references(function, expected):
    family = make("city-vanilla")
    values = function(family.env, family.test.enumerate(), 0.99)
    np.testing.assert_allclose(values, expected, atol=5e-5)


@pytest.mark.parametrize(("name", "length"), [("city-vanilla", 8.064), ("cooking", 8.147)])
def test_length_of_random_episodes(name, length):
    family = make(name)
    lengths = references.random_length(family.env, family.test.enumerate())
    assert lengths.mean() == pytest.approx(length, abs=5e-4)


@pytest.mark.parametrize(("known", "value"), [(0, 0.3), (1, 0.5), (2, 0.7), (3, 0.8), (4, 0.8)])
def test_ladder(known, value):
    assert references.ladder(CityGrid(), known) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("env", "known", "message"), [(CityGrid(), 5, "has 4"), (CityGrid(distractors=True), 0, "distractors")]
)
def test_the_ladder_has_ends(env, known, message):
    with pytest.raises(UserError, match=message):
        references.ladder(env, known)


def test_a_discounted_ladder_ends_at_the_discounted_optimum():
    assert references.ladder(CityGrid(), 3, 0.99) == pytest.approx(0.7811, abs=5e-5)


def distinct_kitchens(env, tasks):
    """Tasks up to renaming ingredients: representatives, and for every task the place of its representative."""
    renamed = []
    for problem, goal in zip(tasks.problem.tolist(), tasks.goal.tolist(), strict=True):
        drawers = env.contents[problem].tolist()
        names = {item: rank for rank, item in enumerate(dict.fromkeys(drawers))}
        number = sum(names[item] * env.num_ingredients**place for place, item in enumerate(drawers))
        renamed.append((number, *(names[item] for item in goal)))
    rows, inverse = np.unique(np.array(renamed, np.int32), axis=0, return_inverse=True)
    return GridTask(jnp.asarray(rows[:, 0]), jnp.asarray(rows[:, 1:])), inverse


def test_cooking_optima_of_all_problems():
    env = CookingGrid()
    tasks = Split(env, tuple(range(64))).enumerate()
    representatives, place = distinct_kitchens(env, tasks)
    assert len(representatives.problem) == 22
    values = references.optimal(env, representatives)[place]
    middle = env.contents[np.asarray(tasks.problem), 1]
    near = np.asarray(tasks.goal) == middle[:, None]
    np.testing.assert_allclose(values, np.where(near, 0.3, 0.1).sum(1), atol=1e-5)
    by_problem = values.reshape(64, 9).mean(1)
    assert by_problem.mean() == pytest.approx(0.40, abs=1e-5)
    assert by_problem[[10, 11]].tolist() == pytest.approx([0.4667, 0.3333], abs=5e-5)
