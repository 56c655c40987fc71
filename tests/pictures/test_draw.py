"""Pictures of robots and control problems: everything is where geometry has it."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs import CONTROLS, ROBOT_NAMES, make, shapes
from metadyna.envs.control import (
    BODIES,
    Body,
    CartPoleBalance,
    CartPoleSwingUp,
    Control,
    ControlState,
    DoubleIntegrator,
    Episode,
    Goal,
    Navigation,
    Pendulum,
    PointDirection,
    PointMass,
    Rod,
    RodPendulum,
)
from metadyna.envs.mujoco import ROBOTS, HostRobot, Robot
from metadyna.pictures import control, robots
from metadyna.pictures.grids import AGENT, GOAL_FLOOR, WOOD

# --- robots


@functools.cache
def robot(name):
    return HostRobot(ROBOTS[name])


def standing(env, **moved):
    """MuJoCo's full physics state at rest, with some positions changed: q3=0.5."""
    physics = np.zeros(env._size)
    physics[1 : 1 + env.model.nq] = env.model.qpos0
    for name, by in moved.items():
        physics[1 + int(name[1:])] += by
    return physics


def test_the_arm_is_drawn_with_its_goal():
    env = make("arm-200").env
    assert isinstance(env, HostRobot)
    near, far = (robots.picture(env, standing(env, q7=x), size=100).astype(int) for x in (0.4, 0.6))
    red = [np.argwhere(image[..., 0] - image[..., 1:].max(axis=-1) > 100) for image in (near, far)]
    assert min(len(pixels) for pixels in red) > 3
    assert np.linalg.norm(red[0].mean(axis=0) - red[1].mean(axis=0)) > 3


@pytest.mark.parametrize("name", ROBOT_NAMES)
def test_every_robot_has_a_picture_that_shows_how_it_stands(name):
    env = robot(name)
    physics = standing(env)
    before = physics.copy()
    image = robots.picture(env, physics, size=100)
    assert image.dtype == np.uint8
    assert image.shape == (round(100 * robots.VIEWS[env.robot.xml].height), 100, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    np.testing.assert_array_equal(robots.picture(env, physics, size=100), image)
    np.testing.assert_array_equal(physics, before)
    root, joint = (robots.picture(env, standing(env, **{q: 0.3}), size=100) for q in ("q0", f"q{env.model.nq - 5}"))
    assert (root != image).any()
    if env.model.nq > 5:
        assert (joint != image).any()


def shown(image, view, point):
    """The colour at the pixel where a pinhole camera shows a point; both angles as of MuJoCo's free camera."""
    azimuth, elevation = np.deg2rad([view.azimuth, view.elevation])
    forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0])
    offset = np.array(point) - (np.array(view.centre) - view.distance * forward)
    scale = image.shape[1] / 2 / np.tan(np.deg2rad(20)) / (offset @ forward)
    column = image.shape[1] / 2 + scale * (offset @ right)
    row = image.shape[0] / 2 - scale * (offset @ np.cross(right, forward))
    return image[int(row), int(column)].astype(int)


def test_a_reacher_is_seen_from_above_with_its_target():
    env, view = robot("reacher"), robots.VIEWS["reacher.xml"]
    target, turned = (0.05, 0.17), np.pi / 2
    physics = standing(env, q0=turned)
    physics[3:5] = target  # positions 2 and 3
    image = robots.picture(env, physics)
    red, green, blue = shown(image, view, (*target, 0.02))
    assert red > 1.5 * max(green, blue)
    red, green, blue = shown(image, view, (0, 0.21, 0.02))  # the fingertip, once the shoulder has turned
    assert green > 1.2 * max(red, blue)
    for distance in (0.05, 0.15):
        red, green, blue = shown(image, view, (0, distance, 0.02))
        assert blue > 1.2 * green > 2 * red
    assert np.ptp(shown(image, view, (0.15, 0, 0.01))) < 30  # only the floor


def test_a_pusher_is_seen_obliquely():
    env, view = robot("pusher"), robots.VIEWS["pusher_v5.xml"]
    image = robots.picture(env, standing(env, q8=-0.3, q9=0.1, q10=0.1))
    puck, goal = np.array([0.45 - 0.3, -0.05, -0.225]), np.array([0.45 + 0.1, -0.05 + 0.1, -0.323])
    assert shown(image, view, puck).min() > 200
    red, green, blue = shown(image, view, goal)
    assert red > 200 > 3 * max(green, blue)


def test_the_camera_goes_with_a_walker_and_the_floor_tells():
    """Two checks further everything looks the same; one check further only the robot does."""
    env = robot("half-cheetah")
    near, one, two = (robots.picture(env, standing(env, q0=x), size=120) for x in (0.0, 0.5, 1.0))
    differs = np.abs(near.astype(int) - two).max(axis=-1) > 8
    assert differs.mean() < 0.01  # rounding, at the edges of far checks
    differs = np.abs(near.astype(int) - one).max(axis=-1) > 8
    assert differs.mean() > 0.2
    brown = np.ptp(near, axis=-1) > 40
    assert brown.mean() > 0.02
    assert not (differs & brown).any()


def test_what_falls_leaves_the_camera_where_it_is():
    env = robot("hopper")
    rows = [
        np.flatnonzero((np.ptp(robots.picture(env, standing(env, q1=z), size=100), axis=-1) > 40).any(axis=1))
        for z in (0.0, 0.3)
    ]
    assert rows[0].min() - rows[1].min() > 8
    assert rows[0].max() - rows[1].max() > 8


def test_a_robot_without_a_view_of_its_own_is_drawn_too():
    env = HostRobot(Robot("inverted_double_pendulum.xml", 5, 0))
    assert env.robot.xml not in robots.VIEWS
    image = robots.picture(env, standing(env), size=100)
    assert (np.ptp(image, axis=-1) > 40).mean() > 0.005


# --- where rays enter shapes: on the surface, from outside, and no earlier


def _segment(size, p):
    return np.linalg.norm(p - np.stack([0 * p[0], 0 * p[0], np.clip(p[2], -size[1], size[1])]), axis=0) - size[0]


SIZE = np.array([0.5, 0.8, 0.3])
INSIDE = {
    "ball": (shapes.CAPSULE, np.array([0.5, 0.0, 0.0]), _segment),
    "capsule": (shapes.CAPSULE, SIZE, _segment),
    "cylinder": (shapes.CYLINDER, SIZE, lambda s, p: np.maximum(np.hypot(p[0], p[1]) - s[0], np.abs(p[2]) - s[1])),
    "ellipsoid": (shapes.ELLIPSOID, SIZE, lambda s, p: np.linalg.norm(p / s[:, None], axis=0) - 1),
    "box": (shapes.BOX, SIZE, lambda s, p: (np.abs(p) - s[:, None]).max(axis=0)),
}
"""A shape, its size, and a function that is negative inside, 0 on the surface and grows outwards."""


@pytest.mark.parametrize("name", INSIDE)
def test_rays_enter_where_the_shape_begins(name):
    solid, size, level = INSIDE[name]
    generator = np.random.default_rng(0)
    start = generator.normal(size=(3, 400))
    start *= 3 / np.linalg.norm(start, axis=0)
    ray = generator.uniform(-1, 1, (3, 400)) - start
    ray /= np.linalg.norm(ray, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = solid.meet(size, start, ray)
    hit = np.isfinite(distance)
    along = np.linspace(0, 5, 2000)
    levels = level(size, (start[..., None] + ray[..., None] * along).reshape(3, -1)).reshape(400, -1)
    assert 50 < hit.sum() < 350
    assert (levels[~hit].min(axis=1) > -1e-3).all()  # at most grazed
    points = start[:, hit] + distance[hit] * ray[:, hit]
    np.testing.assert_allclose(level(size, points), 0, atol=1e-9)
    assert (np.where(along < distance[hit, None] - 1e-9, levels[hit], 1) > 0).all()
    normal = solid.normal(size, points)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-9)
    steps = 1e-6 * np.eye(3)
    slope = np.stack([level(size, points + d[:, None]) - level(size, points - d[:, None]) for d in steps])
    np.testing.assert_allclose(normal, slope / np.linalg.norm(slope, axis=0), atol=1e-4)


def test_one_ray_meets_many_starts():
    """As sunlight does."""
    start = np.array([[0.0, 0.4, 0.6], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    with np.errstate(invalid="ignore"):
        distance = shapes.CAPSULE.meet(np.array([0.5, 0.0, 0.0]), start, np.array([[0.0], [0.0], [-1.0]]))
    np.testing.assert_allclose(distance, [1.5, 1.7, np.nan])


def test_floors_are_seen_from_above_as_far_as_they_go():
    start, down, up = np.array([0.0, 0, 2]), np.array([0.6, 0, -0.8]), np.array([0.6, 0, 0.8])
    with np.errstate(invalid="ignore"):
        for size, far in (((0, 0), 2.5), ((1.6, 0.1), 2.5), ((1.4, 9), np.inf)):
            assert shapes.meet_plane(np.array([*size, 1.0]), start, down) == far
            assert shapes.meet_plane(np.array([*size, 1.0]), start, up) == np.inf


# --- control problems

ONE = Episode(jnp.int32(0))
BODY = Body(jnp.float32(1), jnp.float32(0.5))
GOAL = Goal(jnp.array([-0.3, 0.4], jnp.float32))


def drawn(env, physics, task=ONE, action=None, size=120):
    state = ControlState(jnp.array(physics, jnp.float32), jnp.int32(0))
    return control.picture(env, task, state, None if action is None else np.array(action, np.float32), size)


PROBLEMS = {
    "pendulum": (ONE, [0.5, 0.0], [1.0, 0.0]),
    "pendulum-rods": (Rod(jnp.float32(0.5), jnp.float32(1.25)), [0.5, 0.0], [1.0, 0.0]),
    "cartpole-balance": (ONE, [0.1, 0, 0.1, 0], [0.5, 0, -0.1, 0]),
    "cartpole-swingup": (ONE, [0.1, 0.4, 0, 0], [0.1, 0.8, 0, 0]),
    "point-mass": (ONE, [1.0, -1.0], [1.0, 1.0]),
    "navigation": (GOAL, [0.2, 0.1], [-0.2, 0.1]),
    "double-integrator": (BODY, [0.4, 0.0], [-0.2, 0.0]),
    "point-direction": (ONE, [0.4, 1.0, 3.0], [0.4, -1.0, 3.0]),
}


def test_every_control_problem_is_tried():
    assert PROBLEMS.keys() == CONTROLS.keys()


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_control_problem_has_a_picture_of_its_state_and_action(name):
    task, one, other = PROBLEMS[name]
    env = make(name).env
    assert control.drawable(env)
    image = drawn(env, one, task)
    assert image.dtype == np.uint8
    assert image.shape[1:] == (120, 3)
    assert 40 < image.shape[0] <= 120
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10
    push = np.full(env.spec.action.shape, 0.8)
    different = [drawn(env, other, task), *(drawn(env, one, task, a) for a in (push, -push))]
    for i, one_of_them in enumerate([image, *different]):
        assert all((one_of_them != another).any() for another in different[i:])
    np.testing.assert_array_equal(drawn(env, one, task, 0 * push), image)
    np.testing.assert_array_equal(drawn(env, one, task, 5 * push), drawn(env, one, task, 0 * push + 1))


def place_of(image, colour):
    """Mean place of a colour, from -1 on the left to 1 on the right, and as far upwards."""
    rows, columns = np.nonzero((image == colour).all(axis=-1))
    height, width, _ = image.shape
    return (2 * columns.mean() + 1 - width) / width, (height - 2 * rows.mean() - 1) / width


@pytest.mark.parametrize(
    ("env", "physics", "x", "y"),
    [
        (Pendulum(), [0, 0], 0, 1),
        (Pendulum(), [np.pi / 2, 0], -1, 0),
        (Pendulum(), [np.pi, 0], 0, -1),
        (CartPoleBalance(), [0, 0, 0.2, 0], 1, 1),
        (CartPoleBalance(), [0, 0, -0.2, 0], -1, 1),
        (CartPoleSwingUp(), [0, 0, 0, 0], 0, -1),
        (CartPoleSwingUp(), [0, 0.7, 0, 0], -1, -1),
        (CartPoleSwingUp(), [0, np.pi, 0, 0], 0, 1),
        (CartPoleSwingUp(), [1, np.pi, 0, 0], 1, 1),
        (PointMass(), [1, -0.5], 1, -1),
        (PointDirection(), [-0.5, 1, 0], -1, 0),
    ],
)
def test_the_agent_is_where_the_physics_has_it(env, physics, x, y):
    for found, sign in zip(place_of(drawn(env, physics, size=240), AGENT), (x, y), strict=True):
        assert sign == (abs(found) > 0.02) * np.sign(found)


def test_the_goal_is_where_the_task_has_it():
    x, y = place_of(drawn(Navigation(), [0.3, -0.4], GOAL, size=240), GOAL_FLOOR)
    assert x == pytest.approx(-0.3, abs=0.02)
    assert y == pytest.approx(0.4, abs=0.02)


def test_the_side_that_pays_is_green():
    for pays in (-1, 1):
        assert np.sign(place_of(drawn(PointDirection(), [0, pays, 0]), GOAL_FLOOR)[0]) == pays


def test_a_body_is_as_large_as_its_mass_and_never_leaves_the_sheet():
    light, heavy = (Body(jnp.float32(mass), jnp.float32(0)) for mass in BODIES.ranges[0])
    sizes = [(drawn(DoubleIntegrator(), [0.5, 0], task) == WOOD).all(axis=-1).sum() for task in (light, heavy)]
    assert sizes[1] > 1.5 * sizes[0]
    for x in (-80.0, -2.0, 2.0, 80.0):
        found, _ = place_of(drawn(DoubleIntegrator(), [x, 0], BODY), WOOD)
        assert 0.5 < np.sign(x) * found < 1
    far = [drawn(DoubleIntegrator(), [x, 0], BODY) for x in (80, 80.1)]
    assert (far[0] != far[1]).any()


def test_a_rod_is_as_long_as_it_is_and_as_wide_as_its_mass_per_length():
    def shown(mass, length):
        rod = Rod(jnp.float32(mass), jnp.float32(length))
        pixels = np.argwhere((drawn(RodPendulum(), [np.pi / 2, 0], rod, size=240) == AGENT).all(axis=-1))
        return np.ptp(pixels, axis=0)  # it lies on its side

    (thin, short), (thick, long), (heavy, _) = shown(0.5, 0.75), shown(1.5, 1.25), shown(1.5, 0.75)
    assert long > 1.5 * short
    assert heavy > 1.5 * thick > 1.2 * thin


def test_a_step_takes_as_long_as_the_problem_says():
    periods = {name: control.seconds(make(name).env) for name in CONTROLS}
    assert periods == pytest.approx(
        {
            "pendulum": 0.05,
            "pendulum-rods": 0.05,
            "cartpole-balance": 0.02,
            "cartpole-swingup": 0.04,
            "double-integrator": 0.1,
            "point-mass": control.STEP_SECONDS,
            "point-direction": control.STEP_SECONDS,
            "navigation": control.STEP_SECONDS,
        }
    )


def test_a_variant_is_drawn_like_what_it_is_made_from():
    class Variant(Pendulum):
        pass

    np.testing.assert_array_equal(drawn(Variant(), [1, 0]), drawn(Pendulum(), [1, 0]))
    assert not control.drawable(Control())
    assert not control.drawable(robot("hopper"))
