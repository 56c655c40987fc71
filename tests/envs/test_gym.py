"""A user's own environment: its state is a value although it cannot be asked for it, and its mistakes are named."""

import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from metadyna import envs
from metadyna.collect.host import HostCollector
from metadyna.envs.control import OneTask, Pendulum
from metadyna.envs.gym import DEFAULT_HORIZON, GymEnv, from_name
from metadyna.errors import UserError

KEY = jax.random.key(0)


class Walk(gymnasium.Env):
    """A noisy walk: the place moves by the command and by noise of the environment's own generator.

    Observed (place, steps taken); pays minus the place. Ends after `length` steps, by termination or truncation.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(np.array([-2, 0], np.float32), np.array([4, 1], np.float32))

    def __init__(self, length=1000, terminates=True):
        self.length, self.terminates = length, terminates
        self.commands = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(), 0
        return self.seen(), {}

    def step(self, action):
        self.commands.append(action)
        self.place += float(np.sum(action)) + self.np_random.normal()
        self.time += 1
        ended = self.time == self.length
        return self.seen(), -self.place, ended and self.terminates, ended and not self.terminates, {}

    def seen(self):
        return np.array([self.place, self.time], np.float32)


def workshop(**settings):
    """A factory of walks, and the list of those it has made."""
    made = []

    def factory():
        made.append(Walk(**settings))
        return made[-1]

    return factory, made


def walks(**settings):
    return GymEnv(workshop(**settings)[0], "walk")


def start(env, batch, seed=0, state=None, where=None):
    seeds = np.column_stack([np.full(batch, seed, np.uint32), np.arange(batch, dtype=np.uint32)])
    return env.reset(None, seeds, state, np.ones(batch, bool) if where is None else np.array(where, bool))


def plan(steps, batch, size=2):
    return np.random.default_rng(0).uniform(-1, 1, (steps, batch, size)).astype(np.float32)


def follow(env, state, actions):
    if not len(actions):
        return state, None
    seen = []
    for action in actions:
        state, timestep = env.step(None, state, action)
        seen.append(timestep)
    return state, jax.tree.map(lambda *x: np.stack(x), *seen)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- what the agent sees


def test_gymnasiums_pendulum():
    """Predicted step by step by our own pendulum, whose actions are scaled to torques of up to 2 N m."""
    env, pendulum = from_name("gym::Pendulum-v1"), Pendulum()
    assert env.spec.horizon == 200
    assert env.spec.observation.shape == (3,)
    state, timestep = start(env, 2)
    predict = jax.jit(jax.vmap(lambda s, a: (pendulum.advance(None, s, a, KEY), pendulum.reward(None, *look(s), a, a))))

    def look(physics):
        return (pendulum.observe(None, physics),)

    for t, action in enumerate(plan(200, 2, 1)):
        cosine, sine, speed = timestep.obs.T
        physics, reward = predict(np.stack([np.arctan2(sine, cosine), speed], axis=1), action)
        state, timestep = env.step(None, state, action)
        np.testing.assert_allclose(jax.vmap(look)(physics)[0], timestep.obs, atol=1e-4)
        np.testing.assert_allclose(reward, timestep.reward, atol=1e-3)
        assert timestep.last.tolist() == [t == 199] * 2
    assert timestep.discount.tolist() == [1, 1]


def test_commands_fill_the_environments_box():
    factory, made = workshop()
    env = GymEnv(factory, "walk")
    assert (env.spec.action.low, env.spec.action.high) == (-1, 1)
    state, _ = start(env, 1)
    for action in ([-1, -1], [1, 1], [0, 0], [7, -7]):
        state, timestep = env.step(None, state, np.array([action], np.float32))
        np.testing.assert_array_equal(timestep.prev_action[0], np.clip(action, -1, 1))
    (commands,) = [env.commands for env in made if env.commands]
    np.testing.assert_allclose(commands, [[-2, 0], [4, 1], [1, 0.5], [4, 0]])
    assert all(command.dtype == np.float32 for command in commands)


def test_what_is_bounded_on_one_side_stays_on_it():
    class Half(Walk):
        action_space = spaces.Box(np.array([0, -np.inf]), np.array([np.inf, -0.5]), dtype=np.float64)

    env = GymEnv(Half, "half")
    for action, command in (([-1, -1], [0, -1]), ([1, 1], [1, -0.5])):
        assert env.command(np.array(action)).tolist() == command


def test_unbounded_actions_are_passed_on():
    class Free(Walk):
        action_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    env = GymEnv(Free, "free")
    state, _ = start(env, 1)
    env.step(None, state, np.array([[-1, 0.5]], np.float32))
    assert env.command(np.array([-1, 0.5])).tolist() == [-1, 0.5]
    assert env.command(np.array([-1, 0.5])).dtype == np.float64


@pytest.mark.parametrize("terminates", [True, False])
def test_how_an_episode_ends(terminates):
    """Past its end an episode stays where it is and pays nothing."""
    env = walks(length=3, terminates=terminates)
    assert env.spec.horizon == DEFAULT_HORIZON
    state, first = start(env, 2)
    assert first.first.all()
    assert not first.last.any()
    _, seen = follow(env, state, plan(5, 2))
    assert seen.last[:3].tolist() == [[False] * 2, [False] * 2, [True] * 2]
    np.testing.assert_array_equal(seen.discount[:2], 1)
    np.testing.assert_array_equal(seen.discount[2], 0 if terminates else 1)
    np.testing.assert_array_equal(seen.obs[3:], np.stack([seen.obs[2]] * 2))
    assert not seen.reward[3:].any()
    assert not seen.first.any()
    np.testing.assert_allclose(seen.reward[:3], -seen.obs[:3, :, 0])


def test_an_environment_that_never_stops_is_cut():
    assert GymEnv(lambda: gymnasium.wrappers.TimeLimit(Walk(), 5), "walk").spec.horizon == 5
    env = walks(length=10**6)
    _, seen = follow(env, start(env, 1)[0], plan(DEFAULT_HORIZON, 1))
    assert np.flatnonzero(seen.last).tolist() == [DEFAULT_HORIZON - 1]
    assert (seen.discount == 1).all()
    gymnasium.register("Walk-v0", entry_point=Walk, max_episode_steps=4)
    try:
        env = from_name("gym::Walk-v0")
    finally:
        del gymnasium.registry["Walk-v0"]
    assert env.spec.horizon == 4
    state, _ = start(env, 1)
    _, seen = follow(env, state, plan(4, 1))
    assert seen.last[:, 0].tolist() == [False, False, False, True]
    assert seen.discount[-1] == 1


# --- the state is a value


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_another_process_goes_on_exactly(steps):
    """From the state alone, through a checkpoint's arrays; the copies are at different times."""
    env, actions = walks(), plan(12, 3)
    state, _ = start(env, 3)
    state, _ = follow(env, state, actions[:3])
    state, _ = start(env, 3, 1, state, [False, True, False])
    state, _ = follow(env, state, actions[3 : 3 + steps])
    kept = jax.tree.map(lambda x: np.asarray(jnp.asarray(x)), state)
    same(follow(walks(), kept, actions[8:]), follow(env, state, actions[8:]))


def test_a_step_is_a_function_of_state_and_action():
    """Two futures of one state do not disturb each other, whichever is asked first."""
    env, actions = walks(), plan(8, 2)
    root, _ = follow(env, start(env, 2)[0], actions[:2])
    one, _ = follow(env, root, actions[2:4])
    other, _ = follow(env, root, -actions[2:4])
    for state in (one, other, one):
        same(follow(env, state, actions[4:]), follow(walks(), state, actions[4:]))
    same(one, follow(env, root, actions[2:4])[0])


def test_the_seed_alone_decides_an_episode():
    actions = plan(4, 3)
    one, again = (follow(env, start(env, 3, seed=5)[0], actions)[1] for env in (walks(), walks()))
    same(one, again)
    env = walks()
    other = follow(env, start(env, 3, seed=6)[0], actions)[1]
    assert len(np.unique(np.concatenate([one.obs, other.obs], axis=1)[0, :, 0])) == 6


def test_only_the_copies_asked_for_are_reset():
    env, actions = walks(), plan(6, 3)
    state, _ = follow(env, start(env, 3)[0], actions[:3])
    after, timestep = start(env, 3, 1, state, [True, False, False])
    assert after.time.tolist() == [0, 3, 3]
    assert timestep.obs[0, 1] == 0
    _, seen = follow(env, after, actions[3:])
    assert seen.obs[:, :, 1].tolist() == [[1, 4, 4], [2, 5, 5], [3, 6, 6]]
    assert state.time.tolist() == [3, 3, 3]


@pytest.mark.parametrize("seeds", [range(50), [3] * 50], ids=["new seeds", "one seed"])
@pytest.mark.parametrize("kept", [True, False], ids=["in place", "afresh"])
def test_simulators_are_used_again(seeds, kept):
    """Fifty rounds of two copies need no more simulators than a few rounds do, with the old state at hand or not."""
    factory, made = workshop()
    env, state = GymEnv(factory, "walk"), None
    for seed in seeds:
        state, _ = start(env, 2, seed, state if kept else None)
        state, _ = follow(env, state, plan(2, 2))
    assert len(made) <= 5


def test_evaluating_does_not_make_training_start_over():
    """Its simulators stay where they are through any number of evaluations of as many copies."""
    factory, made = workshop()
    env, actions = GymEnv(factory, "walk"), plan(40, 2)
    state, _ = start(env, 2, seed=1)
    for seed in range(10):
        state, _ = follow(env, state, actions[4 * seed : 4 * seed + 4])
        follow(env, start(env, 2, 100 + seed)[0], actions[:4])
    assert sum(len(walk.commands) for walk in made) == 2 * (40 + 40)
    assert state.time.tolist() == [40, 40]


def test_a_collector_resumed_in_another_process_goes_on_exactly():
    def act(params, carry, timestep, key):
        return -0.1 * timestep.obs, carry, ()

    collectors = [HostCollector(walks(length=4), OneTask(1)) for _ in range(2)]
    begun = collectors[0].begin(np.zeros(3), 3, KEY)
    middle, _ = collectors[0].collect(act, (), begun, KEY, 6)
    stored = jax.tree.map(jnp.asarray, middle)
    key = jax.random.key(1)
    here, there = collectors[0].collect(act, (), middle, key, 5), collectors[1].collect(act, (), stored, key, 5)
    same(jax.tree.map(np.asarray, here), jax.tree.map(np.asarray, there))


# --- reward and end as functions


class Told(Walk):
    @staticmethod
    def reward(obs, action, next_obs):
        return -next_obs[0] + 0 * action[0]

    @staticmethod
    def terminated(next_obs):
        return next_obs[1] >= 3


def test_what_the_environment_tells_is_used():
    env = GymEnv(lambda: gymnasium.wrappers.TimeLimit(Told(length=3), 9), "told")
    state, before = start(env, 4)
    for action in plan(3, 4):
        state, after = env.step(None, state, action)
        reward = jax.jit(jax.vmap(lambda o, a, n: env.reward(None, o, a, n)))(before.obs, action, after.obs)
        ended = jax.jit(jax.vmap(lambda n: env.terminated(None, n)))(after.obs)
        np.testing.assert_allclose(reward, after.reward, rtol=1e-6)
        np.testing.assert_array_equal(ended, after.discount == 0)
        before = after


@pytest.mark.parametrize("name", ["reward", "terminated"])
def test_what_it_does_not_tell_is_asked_for(name):
    env, obs = walks(), jnp.zeros(2)
    with pytest.raises(UserError, match=rf"walk .*'{name}\(.*next_obs\)'.*jax.numpy") as error:
        env.reward(None, obs, obs, obs) if name == "reward" else env.terminated(None, obs)
    assert "\n" not in str(error.value)


# --- mistakes


def instead(**broken):
    """A walk that returns (or raises) something else from its third step, or at a reset."""

    class Broken(Walk):
        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            return self.or_else("reset", (obs, info))

        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            if self.time < 3:
                return obs, reward, terminated, truncated, info
            made = [self.or_else(*pair) for pair in (("obs", obs), ("reward", reward), ("terminated", terminated))]
            return self.or_else("step", (*made, truncated, info))

        def or_else(self, what, value):
            if isinstance(broken.get(what), Exception):
                raise broken[what]
            return broken.get(what, value)

    return GymEnv(Broken, "broken")


AT_STEP_3 = {
    "obs is nan": ({"obs": np.array([np.nan, 0])}, "the observation at step 3 is not finite"),
    "obs is far": ({"obs": np.array([0.0, 1e30]) ** 2}, "the observation at step 3 is not finite: number 1 is inf"),
    "obs is inf": ({"obs": np.array([0, np.inf])}, "the observation at step 3 is not finite"),
    "obs grows": ({"obs": np.zeros(3)}, r"the observation at step 3 has shape \(3,\), not \(2,\)"),
    "obs is one number": ({"obs": 1.0}, r"the observation at step 3 has shape \(\), not \(2,\)"),
    "obs is objects": ({"obs": np.array([{}, "a"], object)}, "the observation at step 3 is not an array of numbers"),
    "obs is words": ({"obs": ["a", "b"]}, "the observation at step 3 is not an array of numbers"),
    "obs is a dictionary": ({"obs": {"x": 1}}, "the observation at step 3 is not an array of numbers"),
    "obs is ragged": ({"obs": [[1], [1, 2]]}, "the observation at step 3 is not an array of numbers"),
    "obs is missing": ({"obs": None}, "the observation at step 3 "),
    "reward is missing": ({"reward": None}, "the reward at step 3 is None; it must be a finite number"),
    "reward is nan": ({"reward": float("nan")}, "the reward at step 3 is nan; it must be a finite number"),
    "reward is a word": ({"reward": "a"}, "the reward at step 3 is 'a'; it must be a finite number"),
    "reward is two": ({"reward": np.zeros(2)}, "the reward at step 3 is .*; it must be a finite number"),
    "terminated is two": ({"terminated": np.zeros(2, bool)}, "'terminated' at step 3 is .*; it must be True or False"),
    "terminated is missing": ({"terminated": None}, "'terminated' at step 3 is None; it must be True or False"),
    "step raises": ({"step": ZeroDivisionError("oh")}, "failed at step 3: ZeroDivisionError: oh"),
    "step is of old": ({"step": (np.zeros(2), 0.0, False, {})}, "failed at step 3: ValueError: not enough values"),
}


@pytest.mark.parametrize("case", AT_STEP_3)
def test_a_bad_step_is_named(case):
    broken, message = AT_STEP_3[case]
    env = instead(**broken)
    state, _ = start(env, 2)
    state, _ = follow(env, state, plan(2, 2))
    with pytest.raises(UserError, match=f"^broken(:| ).*{message}") as error:
        env.step(None, state, np.zeros((2, 2), np.float32))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (RuntimeError("no motor"), "failed at reset: RuntimeError: no motor"),
        (np.zeros(3), "failed at reset: ValueError: too many values"),
        ((np.zeros(3), {}), r"the observation at reset has shape \(3,\), not \(2,\)"),
        ((np.array([np.nan, 0]), {}), "the observation at reset is not finite"),
    ],
)
def test_a_bad_reset_is_named(broken, message):
    with pytest.raises(UserError, match=f"^broken(:| ).*{message}"):
        start(instead(reset=broken), 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_agent_that_has_diverged_is_named(bad):
    env = walks()
    state, _ = start(env, 1)
    with pytest.raises(UserError, match="walk: the agent's action at step 1 is not finite"):
        env.step(None, state, np.array([[0, bad]], np.float32))


@pytest.mark.parametrize("what", ["observation", "action"])
@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3), spaces.Dict({"a": spaces.Discrete(2)}), spaces.Box(0, 1, (2, 2)), spaces.Box(0, 1, ())],
)
def test_spaces_other_than_vectors_are_refused(what, space):
    kind = type("Odd", (Walk,), {f"{what}_space": space})
    with pytest.raises(UserError, match=rf"odd: its {what} space is .*needs a Box with one axis"):
        GymEnv(kind, "odd")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (dict, "thing makes a dict; it must return a gymnasium.Env"),
        (lambda: Walk, "thing makes a .*; it must return a gymnasium.Env"),
        (lambda: 1 / 0, "thing cannot be made: ZeroDivisionError: division by zero"),
    ],
)
def test_what_makes_no_environment_is_named(factory, message):
    with pytest.raises(UserError, match=message):
        GymEnv(factory, "thing")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym:", "should be gym:MODULE:FACTORY, such as gym:myrobot:make_env, or gym::Pendulum-v1"),
        ("gym:math", "should be gym:MODULE:FACTORY"),
        ("gym:math:", "should be gym:MODULE:FACTORY"),
        ("gym:a:b:c", "should be gym:MODULE:FACTORY"),
        ("gym:no_such_module:make", "module 'no_such_module' cannot be imported: No module named 'no_such_module'"),
        ("gym:.relative:make", "should be gym:MODULE:FACTORY"),
        ("gym:math:no_such_thing", "module 'math' has no 'no_such_thing'"),
        ("gym:math:pi", "'pi' is a float; it must be a function or a class"),
        ("gym::NoSuchEnv-v0", "cannot be made: .*NoSuchEnv"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(UserError, match=f"^'?{name}'? ?.*{message}") as error:
        envs.make(name)
    assert "\n" not in str(error.value)


def test_a_mistake_inside_a_users_module_is_shown_as_it_is(tmp_path, monkeypatch):
    """It is not that the module lacks the factory."""
    (tmp_path / "a_broken_walk.py").write_text("import math\nmath.no_such_function()\ndef make(): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with pytest.raises(AttributeError, match="no_such_function"):
        envs.make("gym:a_broken_walk:make")


def test_a_module_of_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "a_walk_of_mine.py").write_text(
        "from gymnasium import Env, spaces\n"
        "class Mine(Env):\n"
        "    observation_space = action_space = spaces.Box(-1, 1, (3,))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    family = envs.make("gym:a_walk_of_mine:Mine")
    assert family.env.spec.observation.shape == (3,)
    assert family.name == "gym:a_walk_of_mine:Mine"


def test_a_task_may_be_registered_once(monkeypatch):
    monkeypatch.setattr(envs, "TASKS", dict(envs.TASKS))
    envs.register("walk", Walk)
    assert envs.make("walk").env.spec.observation.shape == (2,)
    with pytest.raises(UserError, match="there is a task 'walk' already"):
        envs.register("walk", Walk)


# --- wrappers


class Knowing(Walk):
    """A walk that says what it pays and that it never ends."""

    @staticmethod
    def reward(obs, action, next_obs):
        return -next_obs[0]

    @staticmethod
    def terminated(next_obs):
        return next_obs[0] > 100


class Halved(gymnasium.ObservationWrapper):
    """Shows half of everything."""

    def observation(self, observation):
        return observation / 2


class HalvedAndKnowing(Halved):
    """Knows what that means."""

    @staticmethod
    def reward(obs, action, next_obs):
        return -2 * next_obs[0]

    @staticmethod
    def terminated(next_obs):
        return next_obs[0] > 50


class Doubled(gymnasium.RewardWrapper):
    """Pays twice as much."""

    def reward(self, reward):
        return 2 * reward


@pytest.mark.parametrize(
    ("make", "horizon"),
    [
        (lambda: TimeLimit(Walk(), 1500), 1500),  # as our guide has it, around what is not registered
        (lambda: TimeLimit(Walk(), 100), 100),
        (lambda: Halved(TimeLimit(Walk(), 100)), 100),
        (lambda: TimeLimit(TimeLimit(Walk(), 300), 200), 200),
        (lambda: TimeLimit(TimeLimit(Walk(), 200), 300), 200),
        (lambda: TimeLimit(gymnasium.make("Pendulum-v1"), 50), 50),
        (lambda: gymnasium.make("Pendulum-v1"), 200),
        (lambda: gymnasium.make("Pendulum-v1", max_episode_steps=1200), 1200),
        (Knowing, 1000),
    ],
)
def test_the_time_limit_is_the_smallest_there_is(make, horizon):
    assert GymEnv(make, "walk").spec.horizon == horizon


PLACE = jnp.array([60.0, 1.0])


@pytest.mark.parametrize(
    ("make", "reward", "ends"),
    [
        (Knowing, -60, False),
        (lambda: TimeLimit(Knowing(), 20), -60, False),
        (lambda: HalvedAndKnowing(Knowing()), -120, True),
        (lambda: TimeLimit(HalvedAndKnowing(Knowing()), 20), -120, True),
        (lambda: Doubled(Knowing()), None, False),
        (lambda: Halved(Knowing()), None, None),
        (lambda: Doubled(HalvedAndKnowing(Knowing())), None, True),
    ],
)
def test_known_functions_are_those_of_the_numbers_that_are_shown(make, reward, ends):
    """None: whoever is asked is not whoever knows, which is refused."""
    env = GymEnv(make, "walk")
    for function, known in (
        (lambda: env.reward(None, PLACE, jnp.zeros(2), PLACE), reward),
        (lambda: env.terminated(None, PLACE), ends),
    ):
        if known is None:
            with pytest.raises(
                UserError, match=r"walk: '\w+' of \w+ .* the wrapper (Halved|Doubled) around it"
            ) as told:
                function()
            assert "\n" not in str(told.value)
        else:
            assert function() == known
