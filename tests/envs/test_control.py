"""Control problems against Gymnasium, MuJoCo, conservation laws and published numbers."""

import functools
from itertools import product

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_lengths, episode_returns
from metadyna.envs import TASKS, make
from metadyna.envs.control import (
    BODIES,
    RODS,
    Body,
    CartPoleBalance,
    CartPoleSwingUp,
    ControlState,
    DoubleIntegrator,
    Episode,
    Goal,
    Goals,
    Navigation,
    OneTask,
    Pendulum,
    PointDirection,
    PointMass,
    Ranged,
    Rod,
    RodPendulum,
)
from metadyna.types import Env, Known

KEY = jax.random.key(0)
TASK = Episode(jnp.int32(0))
BODY = Body(jnp.float32(2), jnp.float32(0.5))
ROD = Rod(jnp.float32(1.5), jnp.float32(0.75))
ENVS = {
    "pendulum": (Pendulum(), TASK),
    "balance": (CartPoleBalance(), TASK),
    "swing-up": (CartPoleSwingUp(), TASK),
    "point mass": (PointMass(), TASK),
    "double integrator": (DoubleIntegrator(), BODY),
    "rod": (RodPendulum(), ROD),
    "direction": (PointDirection(), TASK),
    "navigation": (Navigation(), Goal(jnp.array([0.3, -0.4], jnp.float32))),
}
HIDDEN = ("direction", "navigation")


@functools.cache
def compiled(env):
    return jax.jit(env.step)


def stepper(env, task=TASK):
    """`step(physics, action)`: what follows one physical state."""

    def once(physics, action, time=0):
        state = ControlState(np.asarray(physics, np.float32), np.int32(time))
        return compiled(env)(task, state, np.atleast_1d(np.asarray(action, np.float32)), KEY)

    return once


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def episodes(env, act, count):
    """Returns and lengths of episodes, and the least discount in any."""
    tasks = jax.tree.map(lambda x: jnp.full((count, *x.shape), x), TASK)
    played = DeviceCollector(env, OneTask()).episodes(act, (), jnp.zeros(count), tasks, KEY).episodes
    return episode_returns(played), episode_lengths(played.last), jnp.min(played.discount)


# --- against Gymnasium


def test_the_pendulum_is_gymnasiums():
    reference, step = gymnasium.make("Pendulum-v1").unwrapped, stepper(Pendulum())
    reference.reset(seed=0)
    rng = np.random.default_rng(0)
    for start in ([3.0, 0.5], [-0.1, 7.9], [2.0, -7.9]):
        reference.state = np.array(start)
        physics = np.array(start)
        for action in rng.uniform(-1.3, 1.3, 40):
            state, after = step(physics, action)
            obs, reward, *_ = reference.step(np.array([2 * action]))
            np.testing.assert_allclose(after.obs, obs, atol=1e-4)
            assert after.reward == pytest.approx(float(reward), abs=1e-3)
            assert not after.last
            np.testing.assert_allclose(state.physics, reference.state, atol=1e-4)
            physics = reference.state


def test_the_balanced_pole_is_gymnasiums_with_forces_between():
    """Its force is set to the size of ours; two states that end an episode are among those met."""
    reference, step = gymnasium.make("CartPole-v1").unwrapped, stepper(CartPoleBalance())
    rng, ended = np.random.default_rng(0), 0
    for start in ([0, 0, 0, 0], [2.3, 1, 0, 0], [0, 0, 0.2, 0.1]):
        reference.reset(seed=0)
        reference.state = np.array(start, np.float64)
        physics, terminated = reference.state, False
        for action in [1.0, -1.0, *rng.uniform(-1, 1, 30)]:
            if terminated:
                break
            reference.force_mag = 10 * abs(action)
            _, after = step(physics, action)
            obs, reward, terminated, *_ = reference.step(int(action > 0))
            np.testing.assert_allclose(after.obs, obs, atol=1e-5)
            assert after.reward == reward == 1
            assert after.last == terminated
            assert after.discount == 1 - terminated
            ended += terminated
            physics = np.asarray(reference.state)
    assert ended >= 2


# --- swing-up

CAPSULES = """
<mujoco>
  <option timestep="0.02" integrator="RK4"><flag contact="disable" energy="enable"/></option>
  <worldbody>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0" damping="{damping}"/>
      <geom type="capsule" fromto="-0.1 0 0 0.1 0 0" size="0.1" density="1000"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 1 0" damping="{damping}"/>
        <geom type="capsule" fromto="0 0 0 0 0 -0.6" size="0.05" density="1000"/>
        <site name="tip" pos="0 0 -0.6"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slide" gear="100" ctrllimited="true" ctrlrange="-3 3"/></actuator>
</mujoco>
"""


def capsules(damping=1.0):
    model = mujoco.MjModel.from_xml_string(CAPSULES.format(damping=damping))
    return model, mujoco.MjData(model)


def put(model, data, physics):
    """Bring MuJoCo to a physical state (x, θ, ẋ, θ̇); returns its energy."""
    data.qpos[:], data.qvel[:] = physics[:2], physics[2:]
    mujoco.mj_forward(model, data)
    return data.energy.sum()


def test_the_swing_up_moves_as_mujocos_capsules_do():
    """A cart and a rod of the same shapes and density, fourth-order Runge-Kutta, two steps of 0.02 s per action."""
    model, data = capsules()
    step, rng = stepper(CartPoleSwingUp()), np.random.default_rng(0)
    for start in ([0, 0.1, 0, 0], [-0.5, 2.0, 0.5, -3.0], [0.3, -3.1, 0, 6.0]):
        physics = np.array(start)
        put(model, data, physics)
        for action in rng.uniform(-0.3, 0.3, 30):
            data.ctrl[:] = 3 * action
            mujoco.mj_step(model, data, 2)
            state, after = step(physics, action)
            np.testing.assert_allclose(state.physics[:2], data.qpos, atol=1e-4)
            np.testing.assert_allclose(state.physics[2:], data.qvel, atol=1e-3)
            cosine, sine = np.cos(data.qpos[1]), np.sin(data.qpos[1])
            seen = [data.qpos[0], data.qvel[0], cosine, sine, data.qvel[1]]
            np.testing.assert_allclose(after.obs, seen, atol=1e-3)
            mujoco.mj_forward(model, data)
            off = data.site("tip").xpos - [0, 0, 0.6]
            assert after.reward == pytest.approx(np.exp(-(off @ off) / 0.36) - 0.01 * (3 * action) ** 2, abs=1e-4)
            physics = state.physics  # on from its own state: errors add up over the 30 steps
        assert np.abs(data.qpos[0]) < 2.4  # the model has no track's end
        assert np.ptp([start[1], data.qpos[1]]) > 0.1


@pytest.mark.parametrize("start", [[0, 2.5, 0, 0], [0.2, 0.3, -0.5, 8.0]])
def test_energy_is_conserved_without_damping_and_falls_with_it(start):
    """MuJoCo says how much energy a state has."""
    (model, data), energies = capsules(), {}
    for damping in (0.0, 1.0):
        step, physics = stepper(CartPoleSwingUp(damping=damping)), np.array(start)
        energies[damping] = [put(model, data, physics)]
        for _ in range(40):
            physics = step(physics, 0.0)[0].physics
            energies[damping].append(put(model, data, physics))
    assert np.ptp(energies[0.0]) < 0.01 * abs(energies[0.0][0])
    assert np.all(np.diff(energies[1.0]) < 1e-3)
    assert energies[1.0][-1] < energies[1.0][0] - 1


def test_the_track_ends_without_a_bounce():
    state, _ = stepper(CartPoleSwingUp())([2.45, 0.0, 9.0, 0.0], 1.0)
    assert state.physics[0] == 2.5
    assert state.physics[2] == 0
    state, _ = stepper(CartPoleSwingUp())(state.physics, -1.0)
    assert state.physics[0] < 2.5


swing_up_reward = jax.jit(CartPoleSwingUp().reward)


@pytest.mark.parametrize(
    ("next_obs", "action", "expected"),
    [
        ((0, 0, 1, 0, 0), 0, 0.018316),
        ((0, 0, -1, 0, 0), 0, 1),
        ((0, 9, -1, 0, 9), 1 / 3, 0.99),  # a command of 1
        ((0.6, 0, -1, 0, 0), 0, np.exp(-1)),
        ((0.6, 0, 0, 1, 0), 0, np.exp(-1)),  # the tip lies below x = 0, at the height of the cart
    ],
)
def test_the_swing_up_pays_for_the_tip(next_obs, action, expected):
    """Card of planning, oracle 15."""
    next_obs = np.float32(next_obs)
    assert swing_up_reward(TASK, next_obs, np.float32([action]), next_obs) == pytest.approx(expected, abs=1e-6)


# --- points


@pytest.mark.parametrize(
    ("act", "expected", "within"),
    [
        (lambda params, carry, timestep, key: (jnp.zeros(2), carry, ()), -45.6, 1.2),
        (lambda params, carry, timestep, key: (-timestep.obs / 0.1, carry, ()), -10.3, 0.4),
    ],
    ids=["still", "straight"],
)
def test_the_point_mass_returns_what_is_published(act, expected, within):
    """Card of MB-MPO, O15."""
    returns, lengths, discount = map(np.asarray, episodes(PointMass(), act, 4000))
    assert returns.mean() == pytest.approx(expected, abs=within)
    if expected == -10.3:
        assert lengths.mean() == pytest.approx(13.8, abs=0.3)
        assert discount == 0
    else:
        assert discount == 1


@jax.jit
def run_directions(informed, constant):
    """Rewards, directions and ends of 1,500 episodes of a = `informed` d + `constant`; d is what the step pays for."""
    env = PointDirection()

    def play(key):
        k_start, k_steps = jax.random.split(key)
        state, _ = env.reset(TASK, k_start)

        def step(state, key):
            direction = env.advance(TASK, state.physics, jnp.zeros(1), key)[1]
            state, after = env.step(TASK, state, jnp.atleast_1d(informed * direction + constant), key)
            return state, (after.reward, direction, after.last)

        return jax.lax.scan(step, state, jax.random.split(k_steps, env.horizon))[1]

    return jax.vmap(play)(jax.random.split(KEY, 1500))


def test_knowing_the_direction_pays_what_the_patterns_of_coins_pay():
    """Exact, by playing all sixteen: 154.2 in the mean (the card's 153.8 is a sample), 127.55 if every coin flips."""
    totals = {}
    for coins in product((1, -1), repeat=4):
        speed, total = 0.0, 0.0
        for t in range(200):
            speed = 0.9 * speed + 0.1 * coins[t // 50]
            total += coins[t // 50] * speed - 0.05
        totals[coins] = total
    assert totals[1, -1, 1, -1] == pytest.approx(127.55, abs=0.01)
    rewards, directions, last = map(np.asarray, run_directions(1.0, 0.0))
    coins = [tuple(row) for row in directions.reshape(-1, 4, 50)[:, :, 0].astype(int).tolist()]
    assert set(coins) == set(totals)
    np.testing.assert_array_equal(directions.reshape(-1, 4, 50).std(axis=-1), 0)
    np.testing.assert_allclose(rewards.sum(axis=1), [totals[row] for row in coins], rtol=1e-4)
    assert rewards.sum(axis=1).mean() == pytest.approx(np.mean(list(totals.values())), abs=1.2)
    assert last.sum(axis=1).tolist() == [1] * len(last)
    assert last[:, -1].all()


@pytest.mark.parametrize("constant", [1.0, -1.0, 0.5])
def test_without_the_direction_running_pays_nothing(constant):
    """Either way is right half the time, so effort is all that counts: 200 × 0.05 a² in the mean."""
    totals = np.asarray(run_directions(0.0, constant)[0]).sum(axis=1)
    assert totals.mean() == pytest.approx(-10 * constant**2, abs=float(4 * totals.std() / len(totals) ** 0.5))


def test_the_direction_is_hidden():
    env = PointDirection()
    starts = jax.vmap(lambda key: env.reset(TASK, key))(jax.random.split(KEY, 64))
    assert set(starts[0].physics[:, 1].tolist()) == {1.0, -1.0}
    np.testing.assert_array_equal(starts[1].obs, 0)
    assert starts[1].obs.shape == (64, 1)


def test_tasks_of_ranges_are_a_grid_over_what_is_drawn():
    grid = Ranged(Body, ((1.0, 3.0), (0.0, 1.0)), side=3).enumerate()
    assert set(zip(grid.mass.tolist(), grid.damping.tolist(), strict=True)) == set(product((1, 2, 3), (0, 0.5, 1)))
    for ranged in (BODIES, RODS):
        drawn = jax.vmap(ranged.sample)(jax.random.split(KEY, 500))
        for values, (low, high) in zip(drawn, ranged.ranges, strict=True):
            assert low <= values.min() < low + 0.05 * (high - low)
            assert high - 0.05 * (high - low) < values.max() <= high
        assert abs(np.corrcoef(*drawn)[0, 1]) < 0.15


def test_a_rod_swings_as_its_length_says_and_turns_as_its_inertia_says():
    """Small swings have the period 2π sqrt(2l/3g) whatever the mass; torque is over ml²/3."""
    for mass, length in ((1.0, 1.0), (0.5, 1.25), (1.5, 0.75)):
        rod = Rod(jnp.float32(mass), jnp.float32(length))
        step = stepper(RodPendulum(period=0.002), rod)
        physics, time = np.array([np.pi + 0.05, 0.0]), 0
        while physics[0] > np.pi:  # a quarter of a period
            physics, time = np.asarray(step(physics, 0.0)[0].physics), time + 1
        assert 4 * 0.002 * time == pytest.approx(2 * np.pi * (2 * length / 30) ** 0.5, rel=0.01)
        speed = step([0.0, 0.0], 0.5)[0].physics[1]
        assert speed == pytest.approx(0.002 * 1.0 / (mass * length**2 / 3), rel=1e-4)
    plain, one = stepper(Pendulum()), stepper(RodPendulum(), Rod(jnp.float32(1), jnp.float32(1)))
    np.testing.assert_array_equal(plain([1.0, 2.0], 0.3)[0].physics, one([1.0, 2.0], 0.3)[0].physics)


def test_a_body_obeys_its_mass_and_damping():
    """A constant force drives it to the speed force / damping, in the time mass / damping."""
    step, physics = stepper(DoubleIntegrator(period=0.01), BODY), np.zeros(2)
    for _ in range(400):  # one time constant
        physics = np.asarray(step(physics, 1.0)[0].physics)
    assert physics[1] == pytest.approx(2 * (1 - np.exp(-1)), rel=0.01)
    assert physics[0] == pytest.approx(2 * 4 * np.exp(-1), rel=0.02)
    _, after = stepper(DoubleIntegrator(), BODY)([1.0, 0.0], -1.0)
    x, speed = after.obs.tolist()
    assert after.reward == pytest.approx(-(x**2 + 0.1 * speed**2 + 0.01), abs=1e-6)


# --- what all share


@pytest.mark.parametrize("name", ENVS)
def test_who_knows_reward_and_end(name):
    """All but those whose reward depends on what is hidden."""
    env, _ = ENVS[name]
    assert isinstance(env, Env)
    assert isinstance(env, Known) == (name not in HIDDEN)


@pytest.mark.parametrize("name", [name for name in ENVS if name not in HIDDEN])
def test_known_functions_say_what_the_steps_paid(name):
    """From starts that are blown up and shrunk, so that some steps end an episode where steps can."""
    env, task = ENVS[name]

    def one(key, spread):
        physics = spread * env.start(task, key)
        action = jax.random.uniform(key, env.spec.action.shape, minval=-1, maxval=1)
        _, after = env.step(task, ControlState(physics, jnp.int32(0)), action, key)
        known = task, env.observe(task, physics), action, after.obs
        return after, env.reward(*known), env.terminated(task, after.obs)

    spread = jnp.geomspace(1e-3, 100, 300)
    after, reward, ended = jax.jit(jax.vmap(one))(jax.random.split(KEY, 300), spread)
    np.testing.assert_allclose(reward, after.reward, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(ended, after.discount == 0)
    np.testing.assert_array_equal(ended, after.last)
    assert ended.any() == (name in ("balance", "point mass"))
    assert after.obs.shape[1:] == env.spec.observation.shape


@pytest.mark.parametrize("name", ENVS)
def test_a_time_limit_cuts_and_does_not_terminate(name):
    env, task = ENVS[name]
    physics = np.full(jax.eval_shape(env.start, task, KEY).shape, 1 if name == "point mass" else 0)
    step, still = stepper(env, task), np.zeros(env.spec.action.shape)
    for time, last in ((env.horizon - 2, False), (env.horizon - 1, True)):
        state, after = step(physics, still, time)
        assert after.last == last
        assert after.discount == 1
        assert not after.first
        assert state.time == time + 1


@pytest.mark.parametrize(
    ("name", "next_obs", "terminated"),
    [
        ("balance", (2.39, 0, 0, 0), False),
        ("balance", (-2.41, 0, 0, 0), True),
        ("balance", (0, 9, np.deg2rad(11.9), 9), False),
        ("balance", (0, 0, -np.deg2rad(12.1), 0), True),
        ("point mass", (0.009, -0.009), True),
        ("point mass", (0.009, 0.011), False),
        ("pendulum", (1, 0, 0), False),
        ("swing-up", (2.5, 0, 1, 0, 0), False),
    ],
)
def test_where_episodes_end(name, next_obs, terminated):
    env, task = ENVS[name]
    assert env.terminated(task, jnp.array(next_obs, jnp.float32)) == terminated


@pytest.mark.parametrize("name", ENVS)
def test_a_reset_and_the_bounds_of_actions(name):
    env, task = ENVS[name]
    starts = jax.jit(jax.vmap(lambda key: env.reset(task, key)))(jax.random.split(KEY, 400))
    state, first = jax.tree.map(np.asarray, starts)
    assert first.first.all()
    assert not first.last.any()
    assert (first.reward == 0).all()
    assert (first.discount == 1).all()
    assert (first.prev_action == 0).all()
    assert (state.time == 0).all()
    step = stepper(env, task)
    physics = state.physics[0]
    for large, limit in ((7.0, 1.0), (-7.0, -1.0)):
        one, other = (step(physics, np.full(env.spec.action.shape, a)) for a in (large, limit))
        jax.tree.map(np.testing.assert_array_equal, one, other)
        np.testing.assert_array_equal(one[1].prev_action, limit)


@pytest.mark.parametrize(
    ("env", "low", "high"),
    [
        (Pendulum(), (-np.pi, -1), (np.pi, 1)),
        (CartPoleBalance(), (-0.05,) * 4, (0.05,) * 4),
        (PointMass(), (-2, -2), (2, 2)),
        (DoubleIntegrator(), (-1, -1), (1, 1)),
    ],
)
def test_starts_fill_their_range(env, low, high):
    physics = np.asarray(jax.vmap(lambda key: env.start(TASK, key))(jax.random.split(KEY, 1000)))
    low, high = np.array(low), np.array(high)
    assert np.all(physics >= low - 1e-6)
    assert np.all(physics <= high + 1e-6)
    assert np.all(physics.min(axis=0) < low + 0.02 * (high - low))
    assert np.all(physics.max(axis=0) > high - 0.02 * (high - low))


def test_the_swing_up_starts_hanging_with_noise():
    physics = jax.vmap(lambda key: CartPoleSwingUp().start(TASK, key))(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(physics.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(physics.std(axis=0), 0.1, rtol=0.05)


def test_navigation_pays_by_the_distance_from_a_goal_that_is_not_shown():
    """Reference card of planning, section 5: standing still costs 0.382598 per step on average."""
    env, goals = Navigation(), jax.vmap(Goals().sample)(jax.random.split(KEY, 20_000))
    assert np.abs(np.asarray(goals.position)).max() <= 0.5
    collector, stay = DeviceCollector(env, Goals()), lambda *_: (jnp.zeros(2), (), ())
    returns = jax.jit(lambda goals: episode_returns(collector.episodes(stay, (), (), goals, KEY).episodes))(goals)
    assert np.asarray(returns).mean() == pytest.approx(-38.26, abs=0.4)
    step = stepper(env, Goal(jnp.array([0.3, -0.4], jnp.float32)))
    _, near = step([0.3, -0.3], [0.0, -0.95])
    assert near.reward == pytest.approx(-0.005, abs=1e-6)
    assert near.discount == 0
    _, beside = step([0.3, -0.3], [0.12, -0.95])
    assert beside.reward == pytest.approx(-np.hypot(0.012, 0.005), abs=1e-6)
    assert beside.discount == 1
    np.testing.assert_allclose(beside.obs, [0.312, -0.395], atol=1e-6)
    assert len(np.unique(Goals().enumerate().position, axis=0)) == 100


def test_one_task_numbers_its_episodes():
    np.testing.assert_array_equal(OneTask(7).enumerate().number, np.arange(7))
    drawn = jax.vmap(OneTask(7).sample)(jax.random.split(KEY, 200)).number
    assert set(drawn.tolist()) == set(range(7))


@pytest.mark.parametrize(
    "name",
    [
        "pendulum",
        "cartpole-balance",
        "cartpole-swingup",
        "point-mass",
        "navigation",
        "double-integrator",
        "point-direction",
    ],
)
def test_problems_are_to_be_had_by_name(name):
    assert name in TASKS
    family = make(name)
    task = family.train.sample(KEY)
    assert jax.tree.structure(task) == jax.tree.structure(family.test.enumerate())
    _, first = family.env.reset(task, KEY)
    assert first.obs.shape == family.env.spec.observation.shape
