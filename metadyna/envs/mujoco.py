# The binding has no stubs.
# pyright: reportAttributeAccessIssue=false
"""Robots simulated by MuJoCo on the host, after Gymnasium's v5 tasks: B copies at once, numpy in and out.

A copy's whole state is an array (MuJoCo's full physics state), so stepping is a function of it and resuming is exact
by construction. `mujoco.rollout` spreads the copies over threads.

Differences from Gymnasium: actions lie in [-1, 1] and are scaled to the actuators. Ant and Humanoid are observed
without contact forces and body inertias and do not pay for contact (27 and 45 numbers, as in MBPO's comparison). Body
positions are those of the state; there they lag it by up to one substep. The constraint solver starts afresh every
control period; there it starts from its last solution. Trajectories agree to 1e-6 all the same.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int32, PRNGKeyArray, UInt32
from mujoco import rollout

from metadyna.errors import UserError
from metadyna.provenance import machine
from metadyna.settings import Horizon, Settings
from metadyna.types import Box, EnvSpec, HostEnv, TimeStep

FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS
FEW = 12
"""Copies that are stepped sooner than threads are woken: measured with half-cheetahs on two cores."""


class Snapshot(NamedTuple):
    """The state of B copies. Float64 is kept as pairs of 32-bit words, which JAX's default precision does not round."""

    physics: UInt32[np.ndarray, "B words"]
    time: Int32[np.ndarray, "B"]


class Reading(NamedTuple):
    """What rewards and observations are computed from, in float64."""

    position: Float64[np.ndarray, "B nq"]
    velocity: Float64[np.ndarray, "B nv"]
    seen: Float64[np.ndarray, "B seen"]


Bound = Annotated[float, "[-inf, inf]"]
"""An end of a healthy range; infinite where there is none."""


@dataclass(frozen=True)
class Robot(Settings):
    """One of Gymnasium's tasks as a table: defaults are what most of the walkers share.

    The reward of a walker is `forward` × the velocity of its root over the step, + `healthy` while healthy,
    - `effort` × |u|². Indices refer to the observation.
    """

    xml: str
    frame_skip: Annotated[int, "[1, 10000]"]
    hidden: Annotated[int, "[0, 1000]"] = 1
    """Leading positions that are not observed: what the task does not depend on."""
    speed_limit: Annotated[float, "(0, inf]"] = float("inf")
    """Observed velocities are clipped to ± this."""
    forward: Annotated[float, "[-1000000, 1000000]"] = 1.0
    healthy: Annotated[float, "[-1000000, 1000000]"] = 0.0
    effort: Annotated[float, "[0, 1000000]"] = 1e-3
    height: tuple[Bound, Bound] = (-float("inf"), float("inf"))
    """Healthy range of observation 0."""
    height_closed: bool = False
    angle: tuple[Bound, Bound] = (-float("inf"), float("inf"))
    """Healthy range of observation 1."""
    state: Annotated[float, "(0, inf]"] = float("inf")
    """Healthy bound on the size of all other observations."""
    noise: Annotated[float, "[0, 1000000]"] = 5e-3
    """Initial positions are uniform within ± this, velocities too, or Gaussian."""
    gaussian_velocity: bool = False
    seen: tuple[tuple[str, str], ...] = ()
    """Points in space that the task needs: a field of MuJoCo's data, `xpos` or `subtree_com`, and a body."""
    horizon: Horizon = 1000

    def build(self, spec: Any) -> None:
        """Change what Gymnasium's file says, before it is compiled."""
        del spec

    def start(self, model: Any, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw positions and velocities at the start of an episode."""
        position = model.qpos0 + generator.uniform(-self.noise, self.noise, model.nq)
        if self.gaussian_velocity:
            return position, self.noise * generator.standard_normal(model.nv)
        return position, generator.uniform(-self.noise, self.noise, model.nv)

    def observe(self, now: Reading) -> np.ndarray:
        """Positions but the hidden ones, then velocities."""
        velocity = np.clip(now.velocity, -self.speed_limit, self.speed_limit)
        return np.concatenate([now.position[:, self.hidden :], velocity], axis=1)

    def progress(self, now: Reading) -> np.ndarray:
        """Where the robot is along its way."""
        return now.seen[:, 0] if self.seen else now.position[:, 0]

    def speed(self, before: Reading, now: Reading, period: float) -> np.ndarray:
        """Progress over the period."""
        return (self.progress(now) - self.progress(before)) / period

    def pay(
        self, task: Any, before: Reading, command: np.ndarray, now: Reading, obs: np.ndarray, period: float
    ) -> np.ndarray:
        """Reward of a step: progress over the period, health, effort."""
        del task
        speed = self.speed(before, now, period)
        alive = self.healthy * ~self.fallen(obs) if self.healthy else 0.0
        return self.forward * speed + alive - self.effort * np.sum(command**2, axis=1)

    def fallen(self, obs: Any) -> Any:
        """Whether an observation is unhealthy; of one copy in JAX or of many in numpy."""
        height, angle, rest = obs[..., 0], obs[..., 1], abs(obs[..., 1:])
        low, high = self.height
        outside = (height < low) | (height > high) if self.height_closed else ~((height > low) & (height < high))
        tilted = ~((angle > self.angle[0]) & (angle < self.angle[1]))
        return outside | tilted | ~(rest < self.state).all(axis=-1)

    def pay_by_sight(self, command: Array, next_obs: Array, velocity: int) -> Array:
        """The same for one copy, from what is observed: the root's velocity on arrival instead of over the step."""
        alive = self.healthy * ~self.fallen(next_obs)
        return self.forward * next_obs[velocity] + alive - self.effort * jnp.sum(command**2)


@dataclass(frozen=True)
class Reacher(Robot):
    """A planar arm of two links brings its fingertip to a target, drawn anew for every episode."""

    def start(self, model: Any, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Near the rest pose; the target is uniform in a disc of radius 0.2."""
        position = model.qpos0 + generator.uniform(-0.1, 0.1, model.nq)
        target = np.full(2, np.inf)
        while np.linalg.norm(target) >= 0.2:
            target = generator.uniform(-0.2, 0.2, 2)
        position[-2:] = target
        velocity = generator.uniform(-0.005, 0.005, model.nv)
        velocity[-2:] = 0
        return position, velocity

    def observe(self, now: Reading) -> np.ndarray:
        """Cosines and sines of the joints, target, joint velocities, fingertip minus target."""
        joints, offset = now.position[:, :2], now.seen[:, :2] - now.seen[:, 3:5]
        return np.concatenate(
            [np.cos(joints), np.sin(joints), now.position[:, 2:], now.velocity[:, :2], offset], axis=1
        )

    def pay(
        self, task: Any, before: Reading, command: np.ndarray, now: Reading, obs: np.ndarray, period: float
    ) -> np.ndarray:
        """Price distance and effort."""
        offset = now.seen[:, :3] - now.seen[:, 3:6]
        return -np.linalg.norm(offset, axis=1) - np.sum(command**2, axis=1)

    def pay_by_sight(self, command: Array, next_obs: Array, velocity: int) -> Array:
        """The same: arm and target lie in one plane."""
        return -jnp.linalg.norm(next_obs[8:10]) - jnp.sum(command**2)


@dataclass(frozen=True)
class Pusher(Robot):
    """An arm of seven joints pushes a puck to a goal."""

    def start(self, model: Any, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The puck starts at least 0.17 from the goal."""
        position, puck = model.qpos0.copy(), np.zeros(2)
        while np.linalg.norm(puck) <= 0.17:
            puck = generator.uniform([-0.3, -0.2], [0.0, 0.2])
        position[-4:-2], position[-2:] = puck, 0
        velocity = generator.uniform(-0.005, 0.005, model.nv)
        velocity[-4:] = 0
        return position, velocity

    def observe(self, now: Reading) -> np.ndarray:
        """Angles and velocities of the arm; positions of its tip, the puck and the goal."""
        return np.concatenate([now.position[:, :7], now.velocity[:, :7], now.seen], axis=1)

    def pay(
        self, task: Any, before: Reading, command: np.ndarray, now: Reading, obs: np.ndarray, period: float
    ) -> np.ndarray:
        """Price the distances of puck from tip and goal, and effort."""
        tip, puck, goal = np.split(now.seen, 3, axis=1)
        near, far = np.linalg.norm(puck - tip, axis=1), np.linalg.norm(puck - goal, axis=1)
        return -0.5 * near - far - 0.1 * np.sum(command**2, axis=1)

    def pay_by_sight(self, command: Array, next_obs: Array, velocity: int) -> Array:
        """The same: all positions are observed."""
        tip, puck, goal = jnp.split(next_obs[14:], 3)
        near, far = jnp.linalg.norm(puck - tip), jnp.linalg.norm(puck - goal)
        return -0.5 * near - far - 0.1 * jnp.sum(command**2)


@dataclass(frozen=True)
class Arm(Robot):
    """The pusher's arm without the puck brings its tip to a goal in space, drawn anew for every episode.

    It stands for the PR2 of MB-MPO (Clavera et al. 2018), which has no open model: seven joints, the same observation,
    reward and number of steps, and goals in a box of the same size before the shoulder, but another arm.
    """

    LOW, HIGH = (0.4, -0.85, -0.2), (0.6, -0.35, 0.2)
    """Corners of the goals' box, in metres; the shoulder is at (0.1, -0.6, 0), and the arm 0.82 long."""

    def build(self, spec: Any) -> None:
        """Take the puck and its goal away; add a tip between the prongs, and a goal that can be anywhere."""
        spec.delete(spec.body("object"))
        spec.delete(spec.body("goal"))
        spec.body("tips_arm").add_body(name="tip", pos=[0.1, 0.0, 0.0])
        goal = spec.worldbody.add_body(name="goal")
        goal.add_geom(size=[0.04, 0, 0], mass=0.01, rgba=[1, 0, 0, 1], contype=0, conaffinity=0)
        for axis, name in zip(np.eye(3), "xyz", strict=True):
            slide = mujoco.mjtJoint.mjJNT_SLIDE
            goal.add_joint(name=f"goal_{name}", type=slide, axis=axis, limited=mujoco.mjtLimited.mjLIMITED_FALSE)

    def start(self, model: Any, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Stretched out and almost at rest."""
        position = model.qpos0 + generator.normal(0, 0.01, model.nq)
        position[-3:] = generator.uniform(self.LOW, self.HIGH)
        velocity = generator.normal(0, 0.1, model.nv)
        velocity[-3:] = 0
        return position, velocity

    def observe(self, now: Reading) -> np.ndarray:
        """Angles and velocities of the arm; goal minus tip."""
        return np.concatenate([now.position[:, :7], now.velocity[:, :7], now.seen[:, 3:] - now.seen[:, :3]], axis=1)

    def pay(
        self, task: Any, before: Reading, command: np.ndarray, now: Reading, obs: np.ndarray, period: float
    ) -> np.ndarray:
        """Price squared distance on arrival, and effort."""
        return -np.sum(obs[:, -3:] ** 2, axis=1) - self.effort * np.sum(command**2, axis=1)

    def pay_by_sight(self, command: Array, next_obs: Array, velocity: int) -> Array:
        """The same."""
        return -jnp.sum(next_obs[-3:] ** 2) - self.effort * jnp.sum(command**2)


class Heading(NamedTuple):
    """Which way pays: 1 is forward, -1 backward."""

    sign: Float[Array, "*batch"]


@dataclass(frozen=True)
class Headings(Settings):
    """Either way; a split is `episodes` of each, from starts of their own."""

    episodes: Annotated[int, "[1, 1000000]"] = 5

    def sample(self, key: PRNGKeyArray) -> Heading:
        """Toss a coin."""
        return Heading(jax.random.rademacher(key, (), jnp.float32))

    def enumerate(self) -> Heading:
        """Forward, then backward, and so on."""
        return Heading(jnp.tile(jnp.array([1.0, -1.0]), self.episodes))


@dataclass(frozen=True)
class Headed(Robot):
    """Which way to run is the hidden task, a `Heading` (Finn et al. 2017, section 5.3)."""

    def pay(
        self, task: Any, before: Reading, command: np.ndarray, now: Reading, obs: np.ndarray, period: float
    ) -> np.ndarray:
        """Speed in that direction, effort."""
        return task.sign * self.speed(before, now, period) - self.effort * np.sum(command**2, axis=1)


class Pace(NamedTuple):
    """The speed that pays, in m/s."""

    speed: Float[Array, "*batch"]


@dataclass(frozen=True)
class Paced(Robot):
    """How fast to run is the hidden task, a `Pace` (Finn et al. 2017, section 5.3)."""

    def pay(
        self, task: Any, before: Reading, command: np.ndarray, now: Reading, obs: np.ndarray, period: float
    ) -> np.ndarray:
        """Price the difference from that speed, and effort."""
        return -np.abs(self.speed(before, now, period) - task.speed) - self.effort * np.sum(command**2, axis=1)


ROBOTS: dict[str, Robot] = {
    "half-cheetah": Robot("half_cheetah.xml", 5, effort=0.1, noise=0.1, gaussian_velocity=True),
    "hopper": Robot(
        "hopper.xml", 4, speed_limit=10.0, healthy=1.0, height=(0.7, np.inf), angle=(-0.2, 0.2), state=100.0
    ),
    "walker2d": Robot("walker2d_v5.xml", 4, speed_limit=10.0, healthy=1.0, height=(0.8, 2.0), angle=(-1.0, 1.0)),
    "swimmer": Robot("swimmer.xml", 4, hidden=2, effort=1e-4, noise=0.1),
    "ant": Robot(
        "ant.xml", 5, 2, healthy=1.0, effort=0.5, height=(0.2, 1.0), height_closed=True, noise=0.1,
        gaussian_velocity=True,
    ),
    "humanoid": Robot(
        "humanoid.xml", 5, 2, forward=1.25, healthy=5.0, effort=0.1, height=(1.0, 2.0), noise=1e-2,
        seen=(("subtree_com", "torso"),),
    ),
    "inverted-pendulum": Robot(
        "inverted_pendulum.xml", 2, 0, forward=0.0, healthy=1.0, effort=0.0, angle=(-0.2, 0.2), noise=0.01
    ),
    "reacher": Reacher("reacher.xml", 2, seen=(("xpos", "fingertip"), ("xpos", "target")), horizon=50),
    "pusher": Pusher(
        "pusher_v5.xml", 5, seen=(("xpos", "tips_arm"), ("xpos", "object"), ("xpos", "goal")), horizon=100
    ),
}  # fmt: skip
"""Gymnasium's v5 defaults by name."""


SHORT: dict[str, tuple[Robot, int]] = {
    "half-cheetah": (ROBOTS["half-cheetah"], 1),
    "ant": (replace(ROBOTS["ant"], effort=0.005), 2),
    "hopper": (ROBOTS["hopper"], 10),
    "swimmer": (ROBOTS["swimmer"], 1),
    "walker2d": (ROBOTS["walker2d"], 10),
    "arm": (Arm("pusher_v5.xml", 5, effort=0.005 / 2**2, seen=(("xpos", "tip"), ("xpos", "goal"))), 5),
}
"""The tasks of MB-MPO (Clavera et al. 2018), as near as these models come: its control periods of 0.01 s (half-cheetah,
swimmer), 0.02 s and 0.05 s (arm) as frame skips, its price of effort. Starts are those above, but for the arm."""

ERRANDS: dict[str, Robot] = {
    "half-cheetah-direction": Headed("half_cheetah.xml", 5, effort=0.05, noise=0.1, gaussian_velocity=True),
    "half-cheetah-velocity": Paced("half_cheetah.xml", 5, effort=0.05, noise=0.1, gaussian_velocity=True),
}
"""Families of hidden tasks, at Gymnasium's control period; the price of effort is PEARL's."""
ERRAND_HORIZON = 200


def _load(robot: Robot) -> Any:
    """Compile a model from Gymnasium's files."""
    folder = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    with warnings.catch_warnings():
        # The files use a compiler attribute that MuJoCo 4 still obeys, but complains of.
        warnings.filterwarnings("ignore", message=".*settotalmass")
        spec = mujoco.MjSpec.from_file(str(folder / robot.xml))
        robot.build(spec)
        return spec.compile()


class HostRobot(HostEnv):
    """B copies of a robot; many are stepped by threads. What pays may depend on a hidden task."""

    def __init__(self, robot: Robot, frame_skip: int | None = None, horizon: int | None = None):
        self.robot = robot
        self.frame_skip = frame_skip or robot.frame_skip
        self.model = _load(robot)
        self.horizon = horizon or robot.horizon
        self.period = self.model.opt.timestep * self.frame_skip
        low, high = self.model.actuator_ctrlrange.T
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._threads = machine.usable_cores()
        self._pool, self._alone = rollout.Rollout(nthread=self._threads), rollout.Rollout(nthread=0)
        self._data = [mujoco.MjData(self.model) for _ in range(self._threads)]
        self._size = mujoco.mj_stateSize(self.model, FULL)
        example = robot.observe(self._reading(self._start(np.random.default_rng(0))[None]))
        self._spec = EnvSpec(Box(example.shape[1:]), Box((self.model.nu,), -1.0, 1.0), self.horizon)

    # The functions below are the same for equal robots: what is compiled for one seed's serves all seeds.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostRobot) and self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._settings)

    @property
    def spec(self) -> EnvSpec:
        """Spaces and horizon."""
        return self._spec

    @property
    def _settings(self) -> tuple[type, Robot, int, int]:
        return type(self), self.robot, self.frame_skip, self.horizon

    def reset(
        self, tasks: Any, seeds: UInt32[np.ndarray, "B words"], state: Snapshot | None, where: Bool[np.ndarray, "B"]
    ) -> tuple[Snapshot, TimeStep]:
        """Start new episodes in the copies `where` (all of them where there is no state yet)."""
        del tasks
        batch = len(where)
        physics = np.zeros((batch, self._size)) if state is None else state.physics.view(np.float64).copy()
        time = np.zeros(batch, np.int32) if state is None else np.where(where, 0, state.time).astype(np.int32)
        for b in np.flatnonzero(where):
            physics[b] = self._start(np.random.default_rng(seeds[b]))
        state = Snapshot(physics.view(np.uint32), time)
        obs = self.robot.observe(self._reading(physics)).astype(np.float32)
        zeros = np.zeros(batch, np.float32)
        nothing = np.zeros((batch, self.model.nu), np.float32)
        return state, TimeStep(obs, zeros, zeros + 1, np.ones(batch, bool), np.zeros(batch, bool), nothing)

    def step(self, tasks: Any, state: Snapshot, action: Float[np.ndarray, "B actions"]) -> tuple[Snapshot, TimeStep]:
        """Advance all copies by one control period. Actions outside [-1, 1] are clipped; others must be finite."""
        batch = len(state.time)
        if action.shape != (batch, self.model.nu):  # what follows does not look
            raise UserError(f"{self.robot.xml}: actions are {action.shape}; they must be ({batch}, {self.model.nu})")
        if not np.isfinite(action).all():
            bad = np.flatnonzero(~np.isfinite(action).all(axis=1))[0]
            step, sent = state.time[bad] + 1, action[bad].tolist()
            raise UserError(f"{self.robot.xml}: the agent's action at step {step} is not finite: {sent}")
        action = np.clip(action, -1, 1)
        command = self._middle + self._half * action.astype(np.float64)
        old = state.physics.view(np.float64)
        states = np.empty((batch, self.frame_skip, self._size))
        controls = np.repeat(command[:, None], self.frame_skip, axis=1)
        # Shapes are right by now, and checking them again takes as long as some robots' physics. Threads get few large
        # shares: waking them for every copy costs more than an uneven end.
        alone = batch <= FEW or self._threads == 1
        (self._alone if alone else self._pool).rollout(
            [self.model] * batch,
            self._data[:1] if alone else self._data,
            old,
            controls,
            state=states,
            skip_checks=True,
            nstep=self.frame_skip,
            chunk_size=max(1, batch // (2 * self._threads)),
        )
        physics = np.ascontiguousarray(states[:, -1])
        before, now = self._reading(old), self._reading(physics)
        obs = self.robot.observe(now)
        reward = self.robot.pay(tasks, before, command, now, obs, self.period)
        fallen = self.robot.fallen(obs)
        time = state.time + 1
        timestep = TimeStep(
            obs.astype(np.float32),
            reward.astype(np.float32),
            (~fallen).astype(np.float32),
            np.zeros(batch, bool),
            fallen | (time >= self.horizon),
            action.astype(np.float32),
        )
        return Snapshot(physics.view(np.uint32), time), timestep

    def terminated(self, task: Any, next_obs: Array) -> Bool[Array, ""]:
        """Whether the robot has fallen (`types.Known`)."""
        del task
        return self.robot.fallen(next_obs)

    def _start(self, generator: np.random.Generator) -> np.ndarray:
        data, physics = self._data[0], np.empty(self._size)
        mujoco.mj_resetData(self.model, data)
        data.qpos[:], data.qvel[:] = self.robot.start(self.model, generator)
        mujoco.mj_forward(self.model, data)
        mujoco.mj_getState(self.model, data, physics, FULL)
        return physics

    def _reading(self, physics: np.ndarray) -> Reading:
        # The full physics state is time, positions, velocities, and whatever else a model has.
        nq, nv = self.model.nq, self.model.nv
        position, velocity = physics[:, 1 : 1 + nq], physics[:, 1 + nq : 1 + nq + nv]
        return Reading(position, velocity, self._look(position))

    def _look(self, positions: np.ndarray) -> np.ndarray:
        """The points in space that the task needs."""
        seen, data = np.empty((len(positions), 3 * len(self.robot.seen))), self._data[0]
        for b in range(len(positions) if self.robot.seen else 0):
            data.qpos[:] = positions[b]
            mujoco.mj_kinematics(self.model, data)
            mujoco.mj_comPos(self.model, data)
            seen[b] = np.concatenate([getattr(data.body(name), kind) for kind, name in self.robot.seen])
        return seen


class KnownRobot(HostRobot):
    """A robot whose reward can be told from what is observed (`types.Known`)."""

    def reward(self, task: Any, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """What a step pays, by what is observed (`types.Known`)."""
        del task, obs
        velocity = self.model.nq - self.robot.hidden
        command = jnp.asarray(self._middle, jnp.float32) + jnp.asarray(self._half, jnp.float32) * action
        return self.robot.pay_by_sight(command, next_obs, velocity)
