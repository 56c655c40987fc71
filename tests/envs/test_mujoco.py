"""Robots against Gymnasium's, step by step; and their state is a value."""

import functools

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from metadyna.collect.episodes import episode_returns
from metadyna.collect.host import HostCollector
from metadyna.envs import ROBOT_NAMES, SHORT_ROBOT_NAMES, make
from metadyna.envs.mujoco import ERRANDS, ROBOTS, SHORT, Arm, HostRobot, KnownRobot, Snapshot
from metadyna.errors import UserError
from metadyna.types import HostEnv, Known

ALONE = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}
BARE = {f"include_{name}_in_observation": False for name in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")}

REFERENCES = {
    "half-cheetah": ("HalfCheetah-v5", {}, 1e-4),
    "hopper": ("Hopper-v5", {}, 1e-4),
    "walker2d": ("Walker2d-v5", {}, 1e-4),
    "swimmer": ("Swimmer-v5", {}, 1e-4),
    "ant": ("Ant-v5", ALONE, 0.1),
    "humanoid": ("Humanoid-v5", {**BARE, "contact_cost_weight": 0}, 1e-2),
    "inverted-pendulum": ("InvertedPendulum-v5", {}, 1e-4),
    "reacher": ("Reacher-v5", {}, 1e-5),
    "pusher": ("Pusher-v5", {}, 1e-2),
}
"""Gymnasium's task, its options, and how far its rewards are from ours.

Gymnasium reads the positions of bodies from the last substep's start (its simulator moves joints last), up to 0.01 s
ago. Where the reward is of joints alone that does not matter; a torso's or a fingertip's place is that much behind.
"""

TRACKED = ("ant", "humanoid", "reacher", "pusher")


@functools.cache
def robot(name):
    return KnownRobot(ROBOTS[name])


def start(env, batch, seed=0):
    seeds = np.column_stack([np.full(batch, seed, np.uint32), np.arange(batch, dtype=np.uint32)])
    return env.reset(None, seeds, None, np.ones(batch, bool))


def actions(env, *shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, env.model.nu)).astype(np.float32)


def joints(env, state, b=0):
    """Positions and velocities of one copy: after the time in MuJoCo's full physics state."""
    numbers = state.physics.view(np.float64)[b]
    nq, nv = env.model.nq, env.model.nv
    return numbers[1 : 1 + nq].copy(), numbers[1 + nq : 1 + nq + nv].copy()


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """Makes Gymnasium's environments; MuJoCo writes its complaints about their files into the working folder."""
    monkeypatch.chdir(tmp_path)
    made = []

    def of(name):
        task, options, _ = REFERENCES[name]
        made.append(gymnasium.make(task, **options))
        return made[-1].unwrapped

    yield of
    for env in made:
        env.close()


def catch_up(reference):
    """Bring the bodies to where the joints are."""
    mujoco.mj_kinematics(reference.model, reference.data)
    mujoco.mj_comPos(reference.model, reference.data)


def centre(reference, name):
    """The place whose progress pays."""
    if name in ("reacher", "pusher"):
        return 0.0
    data, mass = reference.data, reference.model.body_mass
    return data.body("torso").xpos[0] if name == "ant" else mass @ data.xipos[:, 0] / mass.sum()


def paid(reference, name, before, action):
    """Gymnasium's own reward once the bodies have caught up."""
    if name in ("reacher", "pusher"):
        return reference._get_rew(action)[0]
    return reference._get_rew((centre(reference, name) - before) / reference.dt, action)[0]


# MuJoCo complains of an attribute in Gymnasium's files, Gymnasium of what it calls its own old tasks.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "caught_up"), [*((n, False) for n in REFERENCES), *((n, True) for n in TRACKED)])
def test_a_robot_is_gymnasiums(name, caught_up, reference):
    """The same observations, rewards and ends from the same state, until it falls or 30 steps are over.

    Once bodies have caught up with the joints, so have the rewards and observations that are of bodies.
    """
    ours, theirs = robot(name), reference(name)
    theirs.reset(seed=0)
    state, timestep = start(ours, 3)
    theirs.set_state(*joints(ours, state, 1))
    np.testing.assert_allclose(timestep.obs[1], theirs._get_obs(), atol=1e-5)
    assert ours.period == pytest.approx(theirs.dt)
    low, high = theirs.action_space.low, theirs.action_space.high
    for action in actions(ours, 30, 3):
        before = centre(theirs, name) if caught_up else None
        state, timestep = ours.step(None, state, action)
        command = (low + high) / 2 + (high - low) / 2 * action[1]
        obs, reward, terminated, *_ = theirs.step(command)
        if caught_up:
            catch_up(theirs)
            obs, reward = theirs._get_obs(), paid(theirs, name, before, command)
        lag = 1e-4 if caught_up else REFERENCES[name][-1]
        assert timestep.reward[1] == pytest.approx(reward, abs=lag)
        np.testing.assert_allclose(timestep.obs[1], obs, atol=1e-2 if name == "pusher" and not caught_up else 1e-5)
        assert (timestep.discount[1] == 0) == timestep.last[1] == terminated
        if terminated:
            break


def test_all_robots_are_compared():
    assert set(REFERENCES) == set(ROBOTS) == set(ROBOT_NAMES)
    assert set(SHORT) == set(SHORT_ROBOT_NAMES)


@pytest.mark.parametrize(
    ("name", "observed", "commanded"),
    [
        ("half-cheetah", 17, 6),
        ("hopper", 11, 3),
        ("walker2d", 17, 6),
        ("swimmer", 8, 2),
        ("ant", 27, 8),
        ("humanoid", 45, 17),
        ("inverted-pendulum", 4, 1),
        ("reacher", 10, 2),
        ("pusher", 23, 7),
    ],
)
def test_sizes(name, observed, commanded):
    env = robot(name)
    assert isinstance(env, HostEnv)
    assert isinstance(env, Known)
    assert env.spec.observation.shape == (observed,)
    assert env.spec.action.shape == (commanded,)
    assert (env.spec.action.low, env.spec.action.high) == (-1, 1)
    state, timestep = start(env, 4)
    assert timestep.obs.shape == (4, observed)
    assert timestep.obs.dtype == timestep.reward.dtype == timestep.discount.dtype == np.float32
    assert timestep.prev_action.shape == (4, commanded)
    assert not timestep.prev_action.any()
    assert timestep.first.all()
    _, timestep = env.step(None, state, np.ones((4, commanded), np.float32))
    assert timestep.obs.dtype == timestep.reward.dtype == timestep.discount.dtype == np.float32
    assert not timestep.first.any()


# --- rewards and ends


def test_full_effort_costs_what_v5_says():
    """Card of M3PO, T11, with v5's weight 0.1: six actuators at 1 cost 0.6 per step; the rest is speed."""
    env = robot("half-cheetah")
    state, _ = start(env, 2)
    before = joints(env, state)[0][0]
    state, timestep = env.step(None, state, np.ones((2, 6), np.float32))
    speed = (joints(env, state)[0][0] - before) / 0.05
    assert timestep.reward[0] - speed == pytest.approx(-0.6, abs=1e-5)


@pytest.mark.parametrize(("name", "mass"), [("half-cheetah", 14.0), ("humanoid", 42.116)])
def test_masses(name, mass):
    assert robot(name).model.body_mass.sum() == pytest.approx(mass, abs=1e-3)


UPRIGHT = {
    "walker2d": {0: 1.25},
    "hopper": {0: 1.25},
    "ant": {0: 0.5},
    "humanoid": {0: 1.4},
    "inverted-pendulum": {},
    "half-cheetah": {},
}


@pytest.mark.parametrize(
    ("name", "entries", "fallen"),
    [
        *((name, {}, False) for name in UPRIGHT),
        ("walker2d", {0: 0.8}, True),  # card of M3PO, T15
        ("walker2d", {0: 0.801}, False),
        ("walker2d", {0: 2.0}, True),
        ("walker2d", {1: 1.0}, True),
        ("walker2d", {1: -0.99}, False),
        ("walker2d", {5: 1e3}, False),
        ("hopper", {0: 0.7}, True),
        ("hopper", {0: 0.701}, False),
        ("hopper", {0: 9.0}, False),
        ("hopper", {1: 0.2}, True),
        ("hopper", {1: -0.199}, False),
        ("hopper", {4: 101.0}, True),
        ("ant", {0: 0.2}, False),  # card of M3PO, T15
        ("ant", {0: 0.199}, True),
        ("ant", {0: 1.0}, False),
        ("ant", {0: 1.001}, True),
        ("ant", {5: np.inf}, True),
        ("humanoid", {0: 1.0}, True),
        ("humanoid", {0: 1.999}, False),
        ("inverted-pendulum", {1: 0.201}, True),
        ("inverted-pendulum", {0: 0.9, 1: -0.199}, False),
        ("half-cheetah", {0: -9.0, 1: 3.0}, False),
        ("half-cheetah", {3: np.nan}, True),
    ],
)
def test_where_a_robot_has_fallen(name, entries, fallen):
    """In numpy over a batch and in JAX over one copy alike. What is not finite has fallen."""
    env = robot(name)
    obs = np.zeros(env.spec.observation.shape)
    for index, value in {**UPRIGHT[name], **entries}.items():
        obs[index] = value
    assert env.robot.fallen(np.stack([obs, obs])).tolist() == [fallen, fallen]
    assert env.terminated(None, jnp.asarray(obs, jnp.float32)) == fallen


@pytest.mark.parametrize("name", REFERENCES)
def test_known_functions_compile_and_batch(name):
    """They say who has fallen exactly, and what was paid as well as a velocity on arrival tells that over a step."""
    env = robot(name)
    state, before = start(env, 4)
    action = actions(env, 4)
    state, timestep = env.step(None, state, action)
    judge = jax.jit(jax.vmap(lambda o, a, n: (env.reward(None, o, a, n), env.terminated(None, n))))
    reward, terminated = judge(before.obs, action, timestep.obs)
    np.testing.assert_array_equal(terminated, timestep.discount == 0)
    exact = name in ("inverted-pendulum", "reacher", "pusher")
    np.testing.assert_allclose(reward, timestep.reward, atol=1e-4 if exact else 1.5)


@pytest.mark.parametrize("name", ["half-cheetah", "swimmer", "ant", "humanoid"])
def test_the_known_reward_reads_the_velocity_of_the_root(name):
    """Two observations that differ in one velocity differ in reward by it; by no other number while upright."""
    env = robot(name)
    obs = start(env, 1)[1].obs[0]
    slope = jax.grad(lambda n: env.reward(None, n, jnp.zeros(env.spec.action.shape), n))(jnp.asarray(obs))
    (index,) = np.flatnonzero(slope)
    positions = env.model.nq - env.robot.hidden
    assert index == positions
    assert slope[index] == (1.25 if name == "humanoid" else 1)


# --- episodes


@pytest.mark.parametrize(
    ("name", "position", "velocity"),
    [
        ("half-cheetah", 0.1, ("normal", 0.1)),
        ("hopper", 5e-3, ("uniform", 5e-3)),
        ("walker2d", 5e-3, ("uniform", 5e-3)),
        ("swimmer", 0.1, ("uniform", 0.1)),
        ("ant", 0.1, ("normal", 0.1)),
        ("humanoid", 1e-2, ("uniform", 1e-2)),
        ("inverted-pendulum", 0.01, ("uniform", 0.01)),
    ],
)
def test_starts_scatter_as_gymnasiums(name, position, velocity):
    """Ant's and Humanoid's root turns by a unit quaternion, which keeps the noise's size to first order."""
    env = robot(name)
    starts = [joints(env, *pair) for pair in zip([start(env, 60)[0]] * 60, range(60), strict=True)]
    moved = np.array([p for p, _ in starts]) - env.model.qpos0
    assert 0.9 * position < np.abs(moved).max() <= position
    assert moved.std() == pytest.approx(position / 3**0.5, rel=0.1)
    speeds, (kind, size) = np.array([v for _, v in starts]), velocity
    if kind == "uniform":
        assert 0.9 * size < np.abs(speeds).max() <= size
    else:
        assert np.abs(speeds).max() > 2 * size
        assert speeds.std() == pytest.approx(size, rel=0.15)


def test_the_arms_start_with_what_they_must_reach():
    for name, distance in (("reacher", (0, 0.2)), ("pusher", (0.17, 0.5))):
        env = robot(name)
        obs = start(env, 60)[1].obs
        off = np.linalg.norm(obs[:, 4:6], axis=1) if name == "reacher" else np.linalg.norm(
            obs[:, 17:19] - obs[:, 20:22], axis=1
        )  # fmt: skip
        assert distance[0] < off.min()
        assert off.max() < distance[1]
        assert off.std() > 0.03
        speeds = np.array([joints(env, start(env, 60)[0], b)[1] for b in range(5)])
        resting = 2 if name == "reacher" else 4  # what is to be reached does not move
        assert not speeds[:, -resting:].any()
        assert np.abs(speeds[:, :-resting]).min() > 0
        assert np.abs(speeds).max() < 5e-3


def test_the_seed_alone_decides_a_start():
    env = robot("ant")
    one, again, other = start(env, 3, seed=1)[0], start(env, 3, seed=1)[0], start(env, 3, seed=2)[0]
    np.testing.assert_array_equal(one.physics, again.physics)
    assert len(np.unique(np.concatenate([one.physics, other.physics]), axis=0)) == 6


def test_only_the_copies_asked_for_are_reset():
    env = robot("hopper")
    state, _ = start(env, 3)
    for action in actions(env, 4, 3):
        state, before = env.step(None, state, action)
    seeds = np.full((3, 2), 9, np.uint32)
    after, timestep = env.reset(None, seeds, state, np.array([False, True, False]))
    np.testing.assert_array_equal(after.physics[[0, 2]], state.physics[[0, 2]])
    assert after.time.tolist() == [4, 0, 4]
    np.testing.assert_array_equal(timestep.obs[[0, 2]], before.obs[[0, 2]])
    assert np.abs(timestep.obs[1] - [1.25, *[0] * 10]).max() <= 5e-3
    assert state.time.tolist() == [4, 4, 4]  # the old state is still a value


def test_a_time_limit_cuts_and_does_not_terminate():
    env = HostRobot(ROBOTS["half-cheetah"], horizon=3)
    assert env.spec.horizon == 3
    state, _ = start(env, 2)
    for time in range(3):
        state, timestep = env.step(None, state, np.zeros((2, 6), np.float32))
        assert timestep.last.tolist() == [time == 2] * 2
        assert (timestep.discount == 1).all()


def test_a_fall_terminates():
    env = robot("inverted-pendulum")
    state, timestep = start(env, 2)
    action = np.array([[1.0], [0.0]], np.float32)
    while not timestep.last.any():
        state, timestep = env.step(None, state, action)
    assert timestep.last.tolist() == [True, False]
    assert timestep.discount.tolist() == [0, 1]
    assert timestep.reward.tolist() == [0, 1]
    assert state.time[0] < 50


def test_a_control_period_may_be_shorter():
    env = HostRobot(ROBOTS["half-cheetah"], frame_skip=1)
    assert env.period == pytest.approx(0.01)
    whole, parts = start(robot("half-cheetah"), 2)[0], start(env, 2)[0]
    still = np.zeros((2, 6), np.float32)
    whole, _ = robot("half-cheetah").step(None, whole, still)
    for _ in range(5):
        parts, _ = env.step(None, parts, still)
    np.testing.assert_allclose(joints(env, whole)[0], joints(env, parts)[0], atol=1e-5)


# --- the state is a value


@pytest.mark.parametrize("name", ["half-cheetah", "humanoid", "pusher"])
def test_a_step_is_a_function_of_state_and_action(name):
    """Twice from one state, with another step between, and by a robot that never saw the state: the same bits."""
    env, action = robot(name), actions(robot(name), 4)
    state, _ = start(env, 4)
    for _ in range(3):
        state, _ = env.step(None, state, action)
    kept = state.physics.copy()
    once = env.step(None, state, action)
    env.step(None, once[0], -action)
    stored = Snapshot(*(np.asarray(jnp.asarray(x)) for x in state))  # as a checkpoint does
    assert stored.physics.dtype == np.uint32
    for other, value in ((env, state), (KnownRobot(ROBOTS[name]), state), (env, stored)):
        jax.tree.map(np.testing.assert_array_equal, once, other.step(None, value, action))
    np.testing.assert_array_equal(state.physics, kept)


@pytest.mark.parametrize("name", ["hopper", "humanoid"])
def test_copies_do_not_depend_on_each_other_nor_on_their_number(name):
    """Seventeen share threads, one does without."""
    env = robot(name)
    plan = actions(env, 5, 17)
    state, _ = start(env, 17)
    alone = [Snapshot(state.physics[b : b + 1], state.time[b : b + 1]) for b in range(17)]
    for action in plan:
        state, together = env.step(None, state, action)
        for b in (0, 8, 16):
            alone[b], single = env.step(None, alone[b], action[b : b + 1])
            np.testing.assert_array_equal(single.obs[0], together.obs[b])
            assert single.reward[0] == together.reward[b]
    for b in (0, 8, 16):
        np.testing.assert_array_equal(alone[b].physics[0], state.physics[b])


def test_actions_are_clipped():
    env = robot("hopper")
    state, _ = start(env, 1)
    one = env.step(None, state, np.array([[7.0, -7.0, 0.5]], np.float32))
    other = env.step(None, state, np.array([[1.0, -1.0, 0.5]], np.float32))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_refused_with_its_step(bad):
    env = robot("hopper")
    state, _ = start(env, 2)
    state, _ = env.step(None, state, actions(env, 2))
    broken = actions(env, 2)
    broken[1, 0] = bad
    with pytest.raises(UserError, match=rf"hopper.xml: the agent's action at step 2 is not finite: \[{bad}"):
        env.step(None, state, broken)


def test_actions_of_another_size_are_refused():
    env = robot("hopper")
    state, _ = start(env, 2)
    with pytest.raises(UserError, match=r"actions are \(2, 2\); they must be \(2, 3\)"):
        env.step(None, state, np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("batch", [1, 2, 5, 13, 16])
def test_copies_do_not_depend_on_their_number(batch):
    """Threads share the copies out in pieces; which piece a copy is in must not matter."""
    env = robot("walker2d")
    state, _ = start(env, 16)
    commands = actions(env, 4, 16)
    few = Snapshot(*(x[:batch] for x in state))
    for now in commands:
        state, _ = env.step(None, state, now)
        few, _ = env.step(None, few, now[:batch])
    np.testing.assert_array_equal(state.physics[:batch], few.physics)


@pytest.mark.parametrize(("name", "period", "deviation", "zero"), [
    ("half-cheetah-200", 0.01, (-84, 33), (0, 3.4)),
    ("ant-200", 0.02, (158, 79), (201, 10)),
    ("hopper-200", 0.02, None, (61, 20)),
    ("swimmer-200", 0.01, (0, 20), (1, 11)),
    ("walker2d-200", 0.02, None, (37, 4)),
])  # fmt: skip
def test_short_episodes_return_what_the_card_says_of_an_untrained_policy(name, period, deviation, zero):
    """Reference card of MB-MPO, 2.2: mean and deviation over 40 episodes of clipped normal actions, and of none; where
    it has no deviation, Gymnasium's with the same frame skip."""
    family = make(name)
    assert family.env.period == pytest.approx(period)
    assert family.env.spec.horizon == 200
    collector, copies = HostCollector(family.env, family.train), 120
    tasks = jax.vmap(family.train.sample)(jax.random.split(jax.random.key(0), copies))

    def act(scale, carry, timestep, key):
        return scale * jnp.clip(jax.random.normal(key, timestep.prev_action.shape), -1, 1), carry, ()

    for scale, published in ((1.0, deviation), (0.0, zero)):
        if published is not None:
            mean, spread = published
            played = collector.episodes(act, jnp.float32(scale), (), tasks, jax.random.key(1)).episodes
            within = 3 * spread * (1 / 40 + 1 / copies) ** 0.5
            assert np.mean(episode_returns(played)) == pytest.approx(mean, abs=within)


def test_long_episodes_differ_from_short_ones_in_nothing_else():
    short, long = make("half-cheetah-200").env, make("half-cheetah-1000").env
    assert (short.spec.horizon, long.spec.horizon) == (200, 1000)
    assert (short.robot, short.frame_skip) == (long.robot, long.frame_skip)
    assert short != long


# --- the arm, and hidden tasks


def test_goals_of_the_arm_fill_their_box_and_are_within_reach():
    """Poses all over the joints' ranges bring the tip within 5 cm of every goal; the tip is between the prongs."""
    env = make("arm-200").env
    obs = start(env, 200)[1].obs
    model, data, generator = env.model, mujoco.MjData(env.model), np.random.default_rng(0)
    low, high = model.jnt_range[:7].T
    tips = []
    for _ in range(30_000):
        data.qpos[:7] = generator.uniform(low, high)
        mujoco.mj_kinematics(model, data)
        tips.append(data.body("tip").xpos.copy())
    prongs = [data.geom(name).xpos for name in ("tip_arml", "tip_armr")]
    np.testing.assert_allclose(tips[-1], np.mean(prongs, axis=0), atol=1e-9)
    state, _ = start(env, 200)
    goals = np.array([joints(env, state, b)[0][-3:] for b in range(200)])
    box = np.array(Arm.HIGH) - Arm.LOW
    assert (goals.min(axis=0) < Arm.LOW + 0.05 * box).all()
    assert (goals.max(axis=0) > Arm.HIGH - 0.05 * box).all()
    gaps = np.linalg.norm(np.array(tips)[None] - goals[:, None], axis=-1).min(axis=1)
    assert gaps.max() < 0.05
    data.qpos[:] = joints(env, state, 0)[0]
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(obs[0, -3:], goals[0] - data.body("tip").xpos, atol=1e-6)


def test_the_arm_pays_for_squared_distance_and_effort():
    """Card of MB-MPO, 2.1: -Σ(goal - tip)² - 0.005 Σ(share of the largest torque)²; the goal stays where it is."""
    env = make("arm-200").env
    assert env.spec.observation.shape == (17,)
    assert (env.spec.action.shape, env.period) == ((7,), pytest.approx(0.05))
    state, before = start(env, 3)
    action = np.full((3, 7), 0.5, np.float32)
    after, timestep = env.step(None, state, action)
    expected = -np.sum(timestep.obs[:, -3:] ** 2, axis=1) - 0.005 * 7 * 0.5**2
    np.testing.assert_allclose(timestep.reward, expected, rtol=1e-5)
    told = env.reward(None, jnp.asarray(before.obs[0]), jnp.asarray(action[0]), jnp.asarray(timestep.obs[0]))
    assert told == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(joints(env, after)[0][-3:], joints(env, state)[0][-3:], atol=1e-9)


@pytest.mark.parametrize("name", ERRANDS)
def test_what_a_cheetah_is_paid_for_is_hidden(name):
    """The same steps pay by the task; nothing that is observed tells which it is."""
    family = make(name)
    env, known = family.env, robot("half-cheetah")
    assert not isinstance(env, Known)
    tasks = jax.tree.map(lambda x: np.resize(np.asarray(x), 4), family.test.enumerate())
    state, _ = start(env, 4)
    one = Snapshot(np.repeat(state.physics[:1], 4, axis=0), state.time)
    action = np.repeat(actions(env, 1), 4, axis=0)
    _, timestep = env.step(tasks, one, action)
    _, plain = known.step(None, one, action)
    np.testing.assert_array_equal(timestep.obs, plain.obs)
    effort = np.sum(action**2, axis=1)
    speed = plain.reward + 0.1 * effort
    if name.endswith("velocity"):
        pays = -np.abs(speed - tasks.speed)
        assert np.asarray(family.train.enumerate().speed)[[0, 10, -1]].tolist() == pytest.approx([0, 1, 3])
    else:
        pays = tasks.sign * speed
        assert tasks.sign.tolist() == [1, -1, 1, -1]
    np.testing.assert_allclose(timestep.reward, pays - 0.05 * effort, atol=1e-5)
    assert len(np.unique(timestep.reward)) == (4 if name.endswith("velocity") else 2)


def test_both_headings_are_drawn():
    drawn = jax.vmap(make("half-cheetah-direction").train.sample)(jax.random.split(jax.random.key(0), 200))
    assert set(drawn.sign.tolist()) == {1.0, -1.0}
    assert abs(np.mean(drawn.sign)) < 0.25
    assert make("half-cheetah-direction").test.enumerate().sign.tolist() == [1, -1] * 5
