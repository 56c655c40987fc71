"""The grids step by step: layouts, rewards and ends of the published environments (card of DREAM, sections 2 and 7)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs import GRIDS, make
from metadyna.envs.cooking import CookingGrid
from metadyna.envs.gridworld import COURSE_CITY, Action, CityGrid, GridTask, Split, published_trial
from metadyna.errors import UserError

LEFT, UP, RIGHT, DOWN, STAY, RIDE, END, PICK_UP, DROP = Action
CITY = CityGrid()
NAMES = tuple(GRIDS)


def task_of(problem, goal):
    return GridTask(jnp.asarray(np.int32(problem)), jnp.asarray(np.int32(goal)))


KEY = jax.random.key(0)
LONGEST = 20


@partial(jax.jit, static_argnums=0)
def play(env, task, actions):
    """Time steps of a fixed sequence of actions, without the reset; goes on past the end."""
    key = KEY
    state, _ = env.reset(task, key)

    def step(state, action):
        return env.step(task, state, action, key)

    return jax.lax.scan(step, state, actions)[1]


def played(env, task, *actions):
    """What these actions lead to; others follow that nobody looks at, so that one program plays any number."""
    padded = np.full(LONGEST, STAY, np.int32)
    padded[: len(actions)] = actions
    return jax.tree.map(lambda x: np.asarray(x)[: len(actions)], play(env, task, padded))


def close(values, expected):
    np.testing.assert_allclose(values, expected, atol=1e-5)


# --- the city's oracles


def test_a_bus_takes_the_agent_next_to_its_goal():
    steps = played(CITY, task_of(0, (0, 0)), UP, RIDE, DOWN)
    assert steps.obs.tolist() == [[4, 5, 1], [0, 1, 1], [0, 0, 0]]
    close(steps.reward, [-0.1, -0.1, 1.0])
    assert steps.last.tolist() == [False, False, True]
    assert steps.discount.tolist() == [1, 1, 0]
    assert steps.prev_action.tolist() == [UP, RIDE, DOWN]


def test_a_reset_shows_the_start_and_no_action():
    _, timestep = CITY.reset(task_of(0, (0, 0)), jax.random.key(0))
    assert timestep.obs.tolist() == [4, 4, 0]
    assert (timestep.reward, timestep.discount, timestep.prev_action) == (0, 1, -1)
    assert timestep.first
    assert not timestep.last


def test_a_bus_goes_back_to_its_stop():
    assert played(CITY, task_of(0, (0, 0)), UP, RIDE, RIDE).obs[-1].tolist() == [4, 5, 1]


PATHS = {
    (3, 4): (LEFT,),
    (4, 3): (DOWN,),
    (3, 5): (LEFT, UP),
    (5, 3): (RIGHT, DOWN),
    (5, 5): (RIGHT, UP),
    (3, 3): (LEFT, DOWN),
}


@pytest.mark.parametrize(
    ("stop", "far_end"),
    [
        ((3, 4), (8, 7)),
        ((4, 3), (8, 1)),
        ((3, 5), (4, 8)),
        ((5, 3), (8, 4)),
        ((5, 5), (0, 4)),
        ((3, 3), (4, 0)),
    ],
)
def test_problem_25_permutes_helpful_and_distracting_buses_once(stop, far_end):
    steps = played(CityGrid(distractors=True), task_of(25, (0, 0)), *PATHS[stop], RIDE)
    assert steps.obs[-2].tolist() == [*stop, 1]
    assert steps.obs[-1].tolist() == [*far_end, 1]


def test_quitting_pays_for_the_remaining_steps():
    steps = played(CITY, task_of(0, (0, 0)), STAY, STAY, STAY, STAY, END)
    close(steps.reward[-1], -1.6)
    close(steps.reward.sum(), -2.0)
    assert (steps.last[-1], steps.discount[-1]) == (True, 0)
    assert steps.obs[-1].tolist() == [4, 4, 0]


def test_twenty_idle_steps_cost_as_much():
    steps = played(CITY, task_of(0, (0, 0)), *[STAY] * 20)
    close(steps.reward.sum(), -2.0)
    assert steps.last.tolist() == [False] * 19 + [True]


def test_the_border_stops_moves():
    assert played(CITY, task_of(0, (0, 0)), *[LEFT] * 10).obs[:, 0].tolist() == [3, 2, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("action", [STAY, PICK_UP, DROP, RIDE])
def test_actions_without_meaning_do_nothing(action):
    assert played(CITY, task_of(5, (0, 0)), action).obs[0].tolist() == [4, 4, 0]


@pytest.mark.parametrize(
    ("env", "problem", "reading"),
    [(CityGrid(map=True), 7, 8), (CityGrid(map=True, distractors=True), 24 * 5 + 7, 8)],
)
def test_the_map_is_read_on_its_cell_only(env, problem, reading):
    steps = played(env, task_of(problem, (0, 0)), RIGHT, RIGHT, RIGHT, DOWN, DOWN)
    assert steps.obs[3].tolist() == [7, 3, 0, reading]
    assert steps.obs[[0, 1, 2, 4], 3].tolist() == [0] * 4


def test_other_goals_do_nothing_in_the_published_city():
    steps = played(CITY, task_of(0, (8, 8)), UP, RIDE, DOWN)
    close(steps.reward[-1], -0.1)
    assert not steps.last[-1]


def test_any_corner_ends_the_course_city():
    wrong = played(COURSE_CITY, task_of(0, (4, 4)), DOWN, RIDE)
    close(wrong.reward, [-0.3, -0.3])
    assert wrong.last.tolist() == [False, True]
    right = played(COURSE_CITY, task_of(0, (0, 0)), DOWN, RIDE)
    close(right.reward.sum(), 0.7)
    quitting = played(COURSE_CITY, task_of(0, (0, 0)), STAY, END)
    close(quitting.reward.sum(), -3.0)


# --- the kitchen

DRAWERS_220 = 10  # least significant digit first: drawer (2, 0) holds 2, (2, 1) holds 2, (2, 2) holds 0
FETCH = (RIGHT, PICK_UP, LEFT, DROP)


@pytest.mark.parametrize(
    ("goal", "actions", "rewards"),
    [
        ((2, 2), (*FETCH, *FETCH), (-0.1, 0.25, -0.1, 0.25) * 2),  # the optimum, 0.6
        ((0, 2), (RIGHT, PICK_UP), (-0.1, -0.35)),  # the wrong ingredient
        ((2, 2), (PICK_UP, UP, PICK_UP), (-0.35, -0.1, -0.35)),  # the pot gives nothing, nor does the floor
        ((2, 2), (RIGHT, PICK_UP, DROP, PICK_UP), (-0.1, 0.25, -0.35, 0.25)),  # dropped at the drawer, and again
        ((2, 2), (RIGHT, PICK_UP, LEFT, PICK_UP), (-0.1, 0.25, -0.1, -0.35)),  # the pot empties the hands
        ((2, 0), (*FETCH, RIGHT, PICK_UP), (-0.1, 0.25, -0.1, 0.25, -0.1, -0.35)),  # the second is another one
        ((2, 2), (STAY, STAY, END), (-0.1, -0.1, -1.8)),
    ],
)
def test_cooking_pays_by_stages(goal, actions, rewards):
    steps = played(CookingGrid(), task_of(DRAWERS_220, goal), *actions)
    close(steps.reward, rewards)
    assert not steps.last[:-1].any()
    assert bool(steps.last[-1]) == (len(actions) == 8 or actions[-1] == END)


def test_the_kitchen_shows_hands_and_pot():
    steps = played(CookingGrid(), task_of(DRAWERS_220, (0, 0)), *FETCH, *FETCH, *FETCH, *FETCH)
    assert steps.obs[0].tolist() == [2, 1, 3, 4, 4, 4, 4]
    assert steps.obs[1].tolist() == [2, 1, 3, 2, 4, 4, 4]
    assert steps.obs[3].tolist() == [1, 1, 2, 4, 2, 4, 4]
    assert steps.obs[11].tolist() == [1, 1, 2, 4, 2, 2, 2]
    assert steps.obs[15].tolist() == [1, 1, 2, 4, 2, 2, 2]  # lost: the pot is full


def test_kitchen_goals_are_the_ordered_drawer_pairs():
    tasks = make("cooking").test.enumerate()
    assert tasks.problem.tolist() == [10] * 9
    assert tasks.goal.tolist() == [[a, b] for a in (2, 2, 0) for b in (2, 2, 0)]


# --- random play


@partial(jax.jit, static_argnums=0)
def play_at_random(env, tasks, keys):
    def episode(task, key):
        return play(env, task, jax.random.randint(key, (env.spec.horizon,), 0, len(Action)))

    return jax.vmap(episode)(tasks, keys)


EPISODES = 500


def random_play(env, tasks, seed):
    """So many long random episodes; past their ends they go on."""
    return jax.tree.map(np.asarray, play_at_random(env, tasks, jax.random.split(jax.random.key(seed), EPISODES)))


def any_of(split):
    """So many tasks of a split."""
    listed = jax.tree.map(np.asarray, split.enumerate())
    chosen = np.random.default_rng(0).integers(len(listed.problem), size=EPISODES)
    return jax.tree.map(lambda x: x[chosen], listed)


def until_end(last):
    """True up to and including the first last step."""
    return np.cumsum(last, axis=1) - last == 0


@pytest.mark.parametrize("name", NAMES)
def test_random_play_stays_within_the_spec(name):
    family = make(name)
    steps = random_play(family.env, any_of(family.test), 0)
    obs = steps.obs
    assert (obs >= 0).all()
    assert (obs < family.env.spec.observation.sizes).all()
    known = {tuple(row) for row in family.env.observations.tolist()}
    assert {tuple(row) for row in obs.reshape(-1, obs.shape[-1]).tolist()} <= known
    assert steps.last[:, -1].all()
    ends = steps.last & until_end(steps.last)
    assert (ends.sum(1) == 1).all()
    assert (steps.discount[ends] == 0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cooking"])
def test_city_rewards_have_two_values_unless_quitting(name):
    family = make(name)
    steps = random_play(family.env, any_of(family.train), 1)
    inside = until_end(steps.last)
    rewards = steps.reward[inside & (steps.prev_action != END)]
    close(np.minimum(abs(rewards - 1), abs(rewards + family.env.step_cost)), 0)
    totals = np.where(inside, steps.reward, 0).sum(1)
    reached = np.where(inside, steps.reward == 1, False).any(1)
    if not family.env.any_goal_ends:
        close(totals[~reached], -family.env.horizon * family.env.step_cost)


@pytest.mark.parametrize("env", [CITY, CityGrid(distractors=True), COURSE_CITY])
def test_riding_twice_returns(env):
    ride = env.tables.ride
    cells = np.arange(ride.shape[1])
    assert (np.take_along_axis(ride, ride, axis=1) == cells).all()
    assert ((ride != cells).sum(1) == 2 * len(env.buses)).all()


def test_ten_thousand_random_episodes():
    family = make("city-vanilla")
    tasks = jax.tree.map(np.asarray, jax.vmap(family.test.sample)(jax.random.split(jax.random.key(2), 10_000)))
    starts = range(0, 10_000, EPISODES)
    parts = [random_play(family.env, jax.tree.map(lambda x, i=i: x[i : i + EPISODES], tasks), 2 + i) for i in starts]
    steps = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    inside = until_end(steps.last)
    assert np.where(inside, steps.reward, 0).sum(1).mean() == pytest.approx(-1.971, abs=0.01)
    assert inside.sum(1).mean() == pytest.approx(8.06, abs=0.2)


# --- ends


@pytest.mark.parametrize("grid", [CityGrid, CookingGrid])
@pytest.mark.parametrize(
    ("timeout_terminates", "actions", "discount"),
    [
        (True, [STAY] * 20, 0),
        (False, [STAY] * 20, 1),
        (False, [STAY] * 19 + [END], 0),
        (False, [END], 0),
    ],
)
def test_a_timeout_terminates_only_by_setting(grid, timeout_terminates, actions, discount):
    env = grid(timeout_terminates=timeout_terminates)
    steps = played(env, task_of(0, (0, 0)), *actions)
    assert (steps.last[-1], steps.discount[-1]) == (True, discount)


# --- tasks


def test_splits_are_the_published_ones():
    distraction = make("city-distraction")
    assert distraction.train.problems == tuple(range(0, 576, 11))
    assert (len(distraction.train.problems), len(distraction.test.problems)) == (53, 523)
    assert not set(distraction.train.problems) & set(distraction.test.problems)
    assert {problem % 24 for problem in distraction.train.problems} == set(range(24))
    for name in ("city-vanilla", "city-map", "city-5x5"):
        assert make(name).train.problems == make(name).test.problems == tuple(range(24))
    cooking = make("cooking")
    assert cooking.test.problems == (10,)
    assert sorted((*cooking.train.problems, 10)) == list(range(64))


def test_enumeration_lists_goals_within_problems():
    tasks = make("city-distraction").test.enumerate()
    assert tasks.problem.shape == (523 * 4,)
    assert tasks.problem[:5].tolist() == [1, 1, 1, 1, 2]
    assert tasks.goal[:4].tolist() == [[0, 0], [8, 8], [0, 8], [8, 0]]


@pytest.mark.parametrize("name", NAMES)
def test_samples_cover_exactly_the_enumeration(name):
    family = make(name)
    split = family.train
    # Not compiled as one: the operations are the same ones for every family.
    drawn = jax.vmap(split.sample)(jax.random.split(KEY, 8192))
    rehidden = jax.vmap(family.env.otherwise)(drawn, jax.random.split(jax.random.key(1), 8192))
    np.testing.assert_array_equal(rehidden.problem, drawn.problem)
    listed = split.enumerate()
    rows = {tuple(row) for row in np.column_stack(listed).tolist()}
    for tasks in (drawn, rehidden):
        assert {tuple(row) for row in np.column_stack(tasks).tolist()} == rows


def test_published_trials():
    vanilla, distraction = make("city-vanilla"), make("city-distraction")

    def problems(split):
        return [int(published_trial(split, trial)[1].problem) for trial in range(5)]

    assert problems(vanilla.train) == [12, 5, 8, 10, 14]
    assert problems(distraction.train) == [484, 407, 440, 462, 506]
    assert problems(distraction.test) == [212, 41, 185, 274, 135]
    trials = [published_trial(vanilla.train, trial) for trial in range(5)]
    goals = [CITY.goals.index(tuple(exploit.goal.tolist())) for _, exploit in trials]
    assert goals == [1, 0, 2, 2, 3]
    hidden = [CITY.goals.index(tuple(explore.goal.tolist())) for explore, _ in trials]
    assert hidden[2:] == goals[:3]  # seeds trial - 1 and trial + 1
    with pytest.raises(UserError, match="cities only"):
        published_trial(make("cooking").train, 0)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("city-vanilla", 81),
        ("city-distraction", 81),
        ("city-map", 104),
        ("city-distraction-map", 104),
        ("city-5x5", 48),
        ("cooking", 3609),
    ],
)
def test_observations_are_distinct(name, count):
    env = make(name).env
    assert env.observations.shape == (count, len(env.spec.observation.sizes))
    assert len(np.unique(env.observations, axis=0)) == count


# --- settings


@pytest.mark.parametrize(
    ("grid", "settings", "message"),
    [
        (CityGrid, {"horizon": 0}, r"horizon = 0 is out of range"),
        (CityGrid, {"stops": ((9, 0), (5, 4), (3, 4), (4, 3))}, r"\(9, 0\) is off the 9 x 9 grid"),
        (CityGrid, {"start": (4, -1)}, r"start\[1\] = -1 is out of range"),
        (CityGrid, {"stops": ((4, 5),)}, "1 stops but 4 far_ends"),
        (CityGrid, {"distractor_ends": ()}, "differ in length"),
        (CityGrid, {"stops": ((4, 5), (4, 5), (3, 4), (4, 3))}, "share a cell"),
        (CityGrid, {"goals": ()}, "goals is empty"),
        (CityGrid, {"map": True, "width": 7}, "off the 7 x 9 grid"),
        (CookingGrid, {"horizon": 0}, r"horizon = 0 is out of range"),
        (CookingGrid, {"pot": (3, 0)}, "off the 3 x 3 grid"),
        (CookingGrid, {"pot": (2, 0)}, "a cell each"),
        (CookingGrid, {"drawers": ()}, "at least 1 drawer"),
        (Split, {"env": CITY, "problems": (24,)}, "from 0 to 23"),
        (Split, {"env": CITY, "problems": ()}, "from 0 to 23"),
    ],
)
def test_bad_settings_are_explained(grid, settings, message):
    with pytest.raises(UserError, match=message):
        grid(**settings)


def test_an_unknown_task_gets_a_hint():
    with pytest.raises(UserError, match="did you mean city-vanilla"):
        make("city-vanila")


def test_equal_settings_share_their_tables():
    assert CityGrid() == CityGrid()
    assert CityGrid(map=True).tables is CityGrid(map=True).tables
