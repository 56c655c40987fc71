"""Small continuous control problems in pure JAX, each with its reward and its end as known functions.

Agents act in [-1, 1]; every problem says what its actuators make of that. Angles in radians, times in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.settings import Horizon, Settings
from metadyna.types import Box, EnvSpec, TimeStep


class ControlState(NamedTuple):
    """Physical state, and steps taken."""

    physics: Float[Array, "*batch dims"]
    time: Int[Array, "*batch"]


class Episode(NamedTuple):
    """The task of a problem that has only one: it numbers the episodes of an evaluation."""

    number: Int[Array, "*batch"]


@dataclass(frozen=True)
class OneTask(Settings):
    """The same MDP every time; a split is `episodes` of it, from starts of their own."""

    episodes: Annotated[int, "[1, 1000000]"] = 10

    def sample(self, key: PRNGKeyArray) -> Episode:
        """Draw the number of one episode."""
        return Episode(jax.random.randint(key, (), 0, self.episodes))

    def enumerate(self) -> Episode:
        """Every episode once."""
        return Episode(jnp.arange(self.episodes))


@dataclass(frozen=True)
class Control(Settings):
    """What the problems below share: an episode of `horizon` steps that may terminate earlier."""

    horizon: Horizon = 200

    def reset(self, task: Any, key: PRNGKeyArray) -> tuple[ControlState, TimeStep]:
        """Start an episode."""
        physics = self.start(task, key)
        nothing, yes, no = jnp.zeros(self.spec.action.shape), jnp.bool_(True), jnp.bool_(False)
        timestep = TimeStep(self.observe(task, physics), jnp.float32(0), jnp.float32(1), yes, no, nothing)
        return ControlState(physics, jnp.int32(0)), timestep

    def step(
        self, task: Any, state: ControlState, action: Float[Array, "actions"], key: PRNGKeyArray
    ) -> tuple[ControlState, TimeStep]:
        """Advance by one control period. Actions outside [-1, 1] are clipped."""
        action = jnp.clip(action, -1, 1)
        physics = self.advance(task, state.physics, action, key)
        reward, terminated = self.judge(task, state.physics, action, physics)
        state = ControlState(physics, state.time + 1)
        last, discount = terminated | (state.time >= self.horizon), 1 - terminated.astype(jnp.float32)
        return state, TimeStep(self.observe(task, physics), reward, discount, jnp.bool_(False), last, action)

    @property
    def spec(self) -> EnvSpec:
        """Spaces and horizon."""
        raise NotImplementedError

    def start(self, task: Any, key: PRNGKeyArray) -> Float[Array, "dims"]:
        """Draw the physical state at the start of an episode."""
        raise NotImplementedError

    def advance(self, task: Any, physics: Array, action: Array, key: PRNGKeyArray) -> Float[Array, "dims"]:
        """Integrate over one control period."""
        raise NotImplementedError

    def observe(self, task: Any, physics: Array) -> Float[Array, "observed"]:
        """What the agent sees of a physical state."""
        raise NotImplementedError

    def judge(self, task: Any, before: Array, action: Array, after: Array) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        """What a step between two physical states pays, and whether it terminates the episode."""
        raise NotImplementedError

    def state_of(self, task: Any, obs: Array) -> ControlState:
        """The state that shows as an observation, as if an episode began there."""
        return ControlState(self.locate(task, obs), jnp.int32(0))

    def locate(self, task: Any, obs: Array) -> Float[Array, "dims"]:
        """The physical state that shows as an observation: the observation itself, unless a problem says otherwise."""
        del task
        return obs


@dataclass(frozen=True)
class KnownControl(Control):
    """A problem whose reward and end can be told from what is observed (`types.Known`)."""

    def judge(self, task: Any, before: Array, action: Array, after: Array) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        """Judge by what is observed."""
        obs, next_obs = self.observe(task, before), self.observe(task, after)
        return self.reward(task, obs, action, next_obs), self.terminated(task, next_obs)

    def reward(self, task: Any, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """What a step pays."""
        raise NotImplementedError

    def terminated(self, task: Any, next_obs: Float[Array, "dims"]) -> Bool[Array, ""]:
        """Never, unless a problem says otherwise."""
        del task, next_obs
        return jnp.bool_(False)


@dataclass(frozen=True)
class Pendulum(KnownControl):
    """Swing a pendulum up and hold it, with too little torque to lift it directly: Gymnasium's Pendulum-v1.

    Physics (θ, θ̇), θ = 0 upright; observed (cos θ, sin θ, θ̇). Actions are torques of up to 2 N m. A step pays
    -(θ² + 0.1 θ̇² + 0.001 u²) for the state before it.
    """

    max_torque: Annotated[float, "[0, 1000000]"] = 2.0
    max_speed: Annotated[float, "[0, 1000000]"] = 8.0
    period: Annotated[float, "(0, 1000000]"] = 0.05
    gravity: Annotated[float, "[-1000000, 1000000]"] = 10.0

    @property
    def spec(self) -> EnvSpec:
        """Three numbers in, one out."""
        return EnvSpec(Box((3,)), Box((1,), -1.0, 1.0), self.horizon)

    def start(self, task: Any, key: PRNGKeyArray) -> Float[Array, "2"]:
        """Any angle, up to 1 rad/s."""
        del task
        return jax.random.uniform(key, (2,), minval=-1, maxval=1) * jnp.array([jnp.pi, 1.0])

    def advance(self, task: Any, physics: Array, action: Array, key: PRNGKeyArray) -> Float[Array, "2"]:
        """Semi-implicit Euler with mass and length 1: θ̈ = 3g/2l sin θ + 3u/ml²."""
        del task, key
        return self._turn(physics, self.gravity, self.max_torque * action[0])

    def _turn(self, physics: Array, pull: float | Array, torque: Array) -> Float[Array, "2"]:
        """One period under gravity over length, and torque over mass and length squared."""
        angle, speed = physics
        acceleration = 1.5 * pull * jnp.sin(angle) + 3 * torque
        speed = jnp.clip(speed + acceleration * self.period, -self.max_speed, self.max_speed)
        return jnp.stack([angle + speed * self.period, speed])

    def observe(self, task: Any, physics: Array) -> Float[Array, "3"]:
        """Cosine, sine, speed."""
        del task
        angle, speed = physics
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])

    def locate(self, task: Any, obs: Array) -> Float[Array, "2"]:
        """The angle of a direction, in (-π, π], and the speed."""
        del task
        return jnp.stack([jnp.arctan2(obs[1], obs[0]), obs[2]])

    def reward(self, task: Any, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """Price angle, speed and torque before the step."""
        del task, next_obs
        angle, torque = jnp.arctan2(obs[1], obs[0]), self.max_torque * action[0]
        return -(angle**2 + 0.1 * obs[2] ** 2 + 0.001 * torque**2)


class Rod(NamedTuple):
    """Parameters of a pendulum: mass in kg, length in m."""

    mass: Float[Array, "*batch"]
    length: Float[Array, "*batch"]


@dataclass(frozen=True)
class RodPendulum(Pendulum):
    """A pendulum whose mass and length are the hidden task; a rod of 1 kg and 1 m is `Pendulum`."""

    def advance(self, task: Rod, physics: Array, action: Array, key: PRNGKeyArray) -> Float[Array, "2"]:
        """Semi-implicit Euler: θ̈ = 3g/2l sin θ + 3u/ml²."""
        del key
        torque = self.max_torque * action[0] / (task.mass * task.length**2)
        return self._turn(physics, self.gravity / task.length, torque)


@dataclass(frozen=True)
class CartPoleBalance(KnownControl):
    """Keep a pole upright on a cart with a continuous force; every step pays 1.

    Physics and observation (x, ẋ, θ, θ̇), θ = 0 upright. Barto et al. 1983 with the constants of Gymnasium's
    CartPole-v1 and forces of up to 10 N. Ends where |x| > 2.4 m or |θ| > 12°.
    """

    force: Annotated[float, "[0, 1000000]"] = 10.0
    period: Annotated[float, "(0, 1000000]"] = 0.02

    @property
    def spec(self) -> EnvSpec:
        """Four numbers in, one out."""
        return EnvSpec(Box((4,)), Box((1,), -1.0, 1.0), self.horizon)

    def start(self, task: Any, key: PRNGKeyArray) -> Float[Array, "4"]:
        """Almost upright."""
        del task
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)

    def advance(self, task: Any, physics: Array, action: Array, key: PRNGKeyArray) -> Float[Array, "4"]:
        """Explicit Euler; cart 1 kg, pole 0.1 kg, half its length 0.5 m (Florian 2007, eq. 23-24, no friction)."""
        del task, key
        _, x_speed, angle, speed = physics
        cart, pole, half = 1.0, 0.1, 0.5
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        push = (self.force * action[0] + pole * half * speed**2 * sine) / (cart + pole)
        turn = (9.8 * sine - cosine * push) / (half * (4 / 3 - pole * cosine**2 / (cart + pole)))
        slide = push - pole * half * turn * cosine / (cart + pole)
        return physics + self.period * jnp.stack([x_speed, slide, speed, turn])

    def observe(self, task: Any, physics: Array) -> Float[Array, "4"]:
        """Everything."""
        del task
        return physics

    def reward(self, task: Any, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """Pay for being there."""
        del task, obs, action, next_obs
        return jnp.float32(1)

    def terminated(self, task: Any, next_obs: Float[Array, "4"]) -> Bool[Array, ""]:
        """Off the track, or too far from upright."""
        del task
        return (jnp.abs(next_obs[0]) > 2.4) | (jnp.abs(next_obs[2]) > jnp.deg2rad(12))


@dataclass(frozen=True)
class CartPoleSwingUp(KnownControl):
    """Swing a hanging pole up by pushing the cart: the cart-pole of PETS (Chua et al. 2018) with physics of our own.

    Physics (x, θ, ẋ, θ̇), θ = 0 hanging; observed (x, ẋ, cos θ, sin θ, θ̇). Actions are motor commands of up to 3,
    geared 100 times to newtons. Cart and pole have the masses of the original's capsules at 1000 kg/m³, their joints
    its damping. A step pays exp(-d²/ℓ²) - 0.01 u² on arrival, d the distance of the tip from upright at x = 0, ℓ the
    pole's length 0.6 m, so an episode of 200 steps pays at most 200. The track ends at ±2.5 m without a bounce.
    """

    command: Annotated[float, "[0, 1000000]"] = 3.0
    gear: Annotated[float, "[0, 1000000]"] = 100.0
    period: Annotated[float, "(0, 1000000]"] = 0.02
    substeps: Annotated[int, "[1, 10000]"] = 2
    length: Annotated[float, "(0, 1000000]"] = 0.6
    damping: Annotated[float, "[0, 1000000]"] = 1.0

    @property
    def spec(self) -> EnvSpec:
        """Five numbers in, one out."""
        return EnvSpec(Box((5,)), Box((1,), -1.0, 1.0), self.horizon)

    def start(self, task: Any, key: PRNGKeyArray) -> Float[Array, "4"]:
        """Hanging at rest, with noise N(0, 0.1) on everything."""
        del task
        return 0.1 * jax.random.normal(key, (4,))

    def advance(self, task: Any, physics: Array, action: Array, key: PRNGKeyArray) -> Float[Array, "4"]:
        """Fourth-order Runge-Kutta, two steps of 0.02 s under one force."""
        del task, key
        force = self.gear * self.command * action[0]
        for _ in range(self.substeps):
            physics = self._stay_on_track(_runge_kutta(lambda s: self._derivative(s, force), physics, self.period))
        return physics

    def observe(self, task: Any, physics: Array) -> Float[Array, "5"]:
        """Position and speed of the cart, direction and speed of the pole."""
        del task
        x, angle, x_speed, speed = physics
        return jnp.stack([x, x_speed, jnp.cos(angle), jnp.sin(angle), speed])

    def locate(self, task: Any, obs: Array) -> Float[Array, "4"]:
        """Cart and pole, the pole's angle in (-π, π]."""
        del task
        x, x_speed, cosine, sine, speed = obs
        return jnp.stack([x, jnp.arctan2(sine, cosine), x_speed, speed])

    def reward(self, task: Any, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """Pay for a tip near the top on arrival, less the price of the command."""
        del task, obs
        x, _, cosine, sine, _ = next_obs
        tip = jnp.stack([x - self.length * sine, -self.length * cosine])
        squared = jnp.sum((tip - jnp.array([0.0, self.length])) ** 2)
        return jnp.exp(-squared / self.length**2) - 0.01 * jnp.sum((self.command * action) ** 2)

    def _derivative(self, physics: Array, force: Array) -> Array:
        """Lagrange's equations of a cart and a hanging rod whose centre lies half its length below the hinge.

        The tip is at (x - ℓ sin θ, -ℓ cos θ): a positive angle swings it to the left.
        """
        _, angle, x_speed, speed = physics
        cart, pole, reach, inertia = _CART_MASS, _POLE_MASS, self.length / 2, _POLE_INERTIA
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        # (M + m) ẍ - m r cos θ θ̈ = F - b ẋ - m r sin θ θ̇²
        # -m r cos θ ẍ + (I + m r²) θ̈ = -b θ̇ - m g r sin θ
        a, b, d = cart + pole, -pole * reach * cosine, inertia + pole * reach**2
        right = force - self.damping * x_speed - pole * reach * sine * speed**2
        turn = -self.damping * speed - pole * 9.81 * reach * sine
        determinant = a * d - b * b
        return jnp.stack([x_speed, speed, (d * right - b * turn) / determinant, (a * turn - b * right) / determinant])

    def _stay_on_track(self, physics: Array) -> Array:
        x, angle, x_speed, speed = physics
        outside = jnp.abs(x) > 2.5
        return jnp.stack([jnp.clip(x, -2.5, 2.5), angle, jnp.where(outside, 0, x_speed), speed])


def _capsule(radius: float, length: float, density: float = 1000.0) -> tuple[float, float]:
    """Mass, and moment of inertia about the centre across the axis, of a cylinder with two half-balls as ends."""
    cylinder, ball = density * jnp.pi * radius**2 * length, density * 4 / 3 * jnp.pi * radius**3
    inertia = cylinder * (length**2 / 12 + radius**2 / 4)
    inertia += ball * (0.4 * radius**2 + length**2 / 4 + 3 / 8 * length * radius)
    return cylinder + ball, inertia


_CART_MASS, _ = _capsule(0.1, 0.2)
_POLE_MASS, _POLE_INERTIA = _capsule(0.05, 0.6)


def _runge_kutta(derivative: Any, state: Array, period: float) -> Array:
    """One step of the classical fourth-order method."""
    k1 = derivative(state)
    k2 = derivative(state + period / 2 * k1)
    k3 = derivative(state + period / 2 * k2)
    k4 = derivative(state + period * k3)
    return state + period / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@dataclass(frozen=True)
class PointMass(KnownControl):
    """Move a point in the plane to the origin (the point environment of MB-MPO's code, Clavera et al. 2018).

    A step moves by up to 0.1 per axis and pays minus the distance from the goal on arrival. Starts are uniform in
    [-2, 2]². Ends where both coordinates are within 0.01 of the goal.
    """

    horizon: Horizon = 30
    reach: Annotated[float, "[0, 1000000]"] = 0.1

    @property
    def spec(self) -> EnvSpec:
        """Two numbers in, two out."""
        return EnvSpec(Box((2,)), Box((2,), -1.0, 1.0), self.horizon)

    def start(self, task: Any, key: PRNGKeyArray) -> Float[Array, "2"]:
        """Anywhere in the square."""
        del task
        return jax.random.uniform(key, (2,), minval=-2, maxval=2)

    def advance(self, task: Any, physics: Array, action: Array, key: PRNGKeyArray) -> Float[Array, "2"]:
        """Move."""
        del task, key
        return physics + self.reach * action

    def observe(self, task: Any, physics: Array) -> Float[Array, "2"]:
        """Position."""
        del task
        return physics

    def reward(self, task: Any, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """Pay minus the distance on arrival."""
        del task, obs, action
        return -jnp.sqrt(jnp.sum(next_obs**2))

    def terminated(self, task: Any, next_obs: Float[Array, "2"]) -> Bool[Array, ""]:
        """Arrived."""
        del task
        return jnp.all(jnp.abs(next_obs) < 0.01)


class Goal(NamedTuple):
    """Where to go, in the plane."""

    position: Float[Array, "*batch 2"]


@dataclass(frozen=True)
class Goals(Settings):
    """Goals uniform in a square around the origin; a split is a number of them, drawn once for all."""

    half: Annotated[float, "[0, 1000000]"] = 0.5
    count: Annotated[int, "[1, 1000000]"] = 100

    def sample(self, key: PRNGKeyArray) -> Goal:
        """Draw one goal."""
        return Goal(jax.random.uniform(key, (2,), minval=-self.half, maxval=self.half))

    def enumerate(self) -> Goal:
        """The goals of the split."""
        return jax.vmap(self.sample)(jax.random.split(jax.random.key(0), self.count))


@dataclass(frozen=True)
class Navigation(Control):
    """Go to a goal in the plane that is not shown: what an episode pays is all there is to find it by.

    The navigation of MAML (Finn et al. 2017, section 5.3; rewards as in its code, cbfinn/maml_rl). Observed is the
    position, which starts at the origin. A step moves by up to 0.1 per axis and pays minus the distance from the goal
    on arrival, so that standing still pays -38.3 on average. Ends where both coordinates are within 0.01 of it.
    """

    horizon: Horizon = 100
    reach: Annotated[float, "[0, 1000000]"] = 0.1

    @property
    def spec(self) -> EnvSpec:
        """Two numbers in, two out."""
        return EnvSpec(Box((2,)), Box((2,), -1.0, 1.0), self.horizon)

    def start(self, task: Any, key: PRNGKeyArray) -> Float[Array, "2"]:
        """At the origin."""
        del task, key
        return jnp.zeros(2)

    def advance(self, task: Any, physics: Array, action: Array, key: PRNGKeyArray) -> Float[Array, "2"]:
        """Move."""
        del task, key
        return physics + self.reach * action

    def observe(self, task: Any, physics: Array) -> Float[Array, "2"]:
        """Position."""
        del task
        return physics

    def judge(self, task: Goal, before: Array, action: Array, after: Array) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        """Pay minus the distance from the goal; arriving ends the episode."""
        del before, action
        away = after - task.position
        return -jnp.sqrt(jnp.sum(away**2)), jnp.all(jnp.abs(away) < 0.01)


Number = Annotated[float, "[-1000000, 1000000]"]
"""What a task is made of."""


@dataclass(frozen=True)
class Ranged(Settings):
    """Tasks made of numbers, each uniform in a range; a split is a grid of `side` values of each."""

    make: Callable[..., Any]
    ranges: tuple[tuple[Number, Number], ...]
    side: Annotated[int, "[1, 10000]"] = 5

    def sample(self, key: PRNGKeyArray) -> Any:
        """Draw one task."""
        return self._at(jax.random.uniform(key, (len(self.ranges),)))

    def enumerate(self) -> Any:
        """Lay out the grid, with both ends of every range."""
        axes = [jnp.linspace(0, 1, self.side)] * len(self.ranges)
        return self._at([share.ravel() for share in jnp.meshgrid(*axes, indexing="ij")])

    def _at(self, shares: Any) -> Any:
        places = zip(self.ranges, shares, strict=True)
        return self.make(*(low + (high - low) * share for (low, high), share in places))


class Body(NamedTuple):
    """Parameters of a double integrator: mass in kg, damping in N s/m."""

    mass: Float[Array, "*batch"]
    damping: Float[Array, "*batch"]


BODIES = Ranged(Body, ((0.5, 2.0), (0.0, 1.0)))
RODS = Ranged(Rod, ((0.5, 1.5), (0.75, 1.25)))


@dataclass(frozen=True)
class DoubleIntegrator(KnownControl):
    """Bring a body on a line to rest at the origin; its mass and damping are the hidden task.

    Physics and observation (x, ẋ); forces of up to 1 N. A step pays -(x² + 0.1 ẋ² + 0.01 u²) on arrival.
    """

    horizon: Horizon = 100
    period: Annotated[float, "(0, 1000000]"] = 0.1

    @property
    def spec(self) -> EnvSpec:
        """Two numbers in, one out."""
        return EnvSpec(Box((2,)), Box((1,), -1.0, 1.0), self.horizon)

    def start(self, task: Any, key: PRNGKeyArray) -> Float[Array, "2"]:
        """Up to 1 m away, up to 1 m/s."""
        del task
        return jax.random.uniform(key, (2,), minval=-1, maxval=1)

    def advance(self, task: Body, physics: Array, action: Array, key: PRNGKeyArray) -> Float[Array, "2"]:
        """Semi-implicit Euler."""
        del key
        x, speed = physics
        speed = speed + self.period * (action[0] - task.damping * speed) / task.mass
        return jnp.stack([x + self.period * speed, speed])

    def observe(self, task: Any, physics: Array) -> Float[Array, "2"]:
        """Position and speed."""
        del task
        return physics

    def reward(self, task: Any, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """Price distance and speed on arrival, and force."""
        del task, obs
        return -(next_obs[0] ** 2 + 0.1 * next_obs[1] ** 2 + 0.01 * action[0] ** 2)


@dataclass(frozen=True)
class PointDirection(Control):
    """Run one way or the other, not knowing which pays: every `switch` steps a coin decides anew.

    Observed is only the speed v; v' = 0.9 v + 0.1 a, and a step pays d v' - 0.05 a² with d = ±1 hidden. Knowing d pays
    154.2 per episode; no policy without memory gets more than 0 (reference card of M3PO, section 6).
    Physics (v, d, steps since the start).
    """

    switch: Annotated[int, "[1, 2000000000]"] = 50

    @property
    def spec(self) -> EnvSpec:
        """One number in, one out."""
        return EnvSpec(Box((1,)), Box((1,), -1.0, 1.0), self.horizon)

    def start(self, task: Any, key: PRNGKeyArray) -> Float[Array, "3"]:
        """At rest, in either direction."""
        del task
        return jnp.stack([jnp.float32(0), _coin(key), jnp.float32(0)])

    def advance(self, task: Any, physics: Array, action: Array, key: PRNGKeyArray) -> Float[Array, "3"]:
        """Move, having tossed the coin if it is time."""
        del task
        speed, direction, time = physics
        direction = jnp.where((time > 0) & (time % self.switch == 0), _coin(key), direction)
        return jnp.stack([0.9 * speed + 0.1 * action[0], direction, time + 1])

    def observe(self, task: Any, physics: Array) -> Float[Array, "1"]:
        """Only the speed."""
        del task
        return physics[:1]

    def judge(self, task: Any, before: Array, action: Array, after: Array) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        """Pay for running the way that pays."""
        del task, before
        speed, direction, _ = after
        return direction * speed - 0.05 * action[0] ** 2, jnp.bool_(False)


def _coin(key: PRNGKeyArray) -> Float[Array, ""]:
    return jax.random.rademacher(key, (), jnp.float32)
