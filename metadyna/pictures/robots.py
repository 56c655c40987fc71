# The binding has no stubs.
# pyright: reportAttributeAccessIssue=false
"""Pictures of MuJoCo's robots without OpenGL or a display: rays against the shapes of a model, in numpy.

Every pixel's ray is met with every shape, so what is in front is exact and nothing needs to be sorted. Shading is in a
few flat tones with a dark rim, which is legible when small and cheap in a GIF. Vectors lie along axis 0.
"""

import functools
from itertools import product
from typing import Any, NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float, Float64, UInt8

from metadyna.envs import shapes
from metadyna.envs.mujoco import HostRobot
from metadyna.envs.shapes import Distance, Vectors, across

GEOM = mujoco.mjtGeom
SOLIDS = {
    int(GEOM.mjGEOM_SPHERE): shapes.CAPSULE,
    int(GEOM.mjGEOM_CAPSULE): shapes.CAPSULE,
    int(GEOM.mjGEOM_CYLINDER): shapes.CYLINDER,
    int(GEOM.mjGEOM_ELLIPSOID): shapes.ELLIPSOID,
    int(GEOM.mjGEOM_BOX): shapes.BOX,
}
"""What robots are made of; meshes are not drawn."""

SKY = np.array([240, 244, 248], np.float32)
FLOOR = np.array([[202, 212, 222], [226, 232, 238]], np.float32)
FOG = 2.2  # the floor fades into the sky over this many times the camera's distance
SHADOW, RIM = 0.8, 0.45  # how much light is left there
TONES = 5
SAMPLES = 2  # rays per pixel and axis
WIDE = np.tan(np.deg2rad(20))  # half the width of what is seen at distance 1
UNSET = np.array([0.5, 0.5, 0.5, 1.0])  # MuJoCo's colour of a geom that has none of its own


class View(NamedTuple):
    """Where a robot is looked at from. In metres, and in degrees as of MuJoCo's free camera."""

    centre: tuple[float, float, float] = (0.0, 0.0, 0.5)
    """What is in the middle of the picture."""
    follow: str = "xy"
    """Axes on which the robot's centre of mass is added to that."""
    distance: float = 5.0
    azimuth: float = 125.0
    elevation: float = -22.0
    height: float = 0.75
    """Of the picture, as a share of its width."""
    check: float = 0.5
    """Side of the floor's checks."""
    behind: str = ""
    """Bodies with this in their name are shown a little further off: legs in one plane would run through each other."""


VIEWS = {
    "half_cheetah.xml": View((0.0, 0.0, 0.55), "x", 3.2, 90, -10),
    "hopper.xml": View((0.0, 0.0, 0.85), "x", 3.7, 90, -8),
    "walker2d_v5.xml": View((0.0, 0.0, 0.8), "x", 3.5, 90, -8, behind="left"),
    "swimmer.xml": View((0.0, 0.0, 0.0), "xy", 6.0, 90, -90),
    "ant.xml": View((0.0, 0.0, 0.4), "xy", 4.2, 125, -28),
    "humanoid.xml": View((0.0, 0.0, 0.82), "xy", 3.7, 125, -12),
    "inverted_pendulum.xml": View((0.0, 0.0, 0.2), "", 3.4, 90, -8),
    "reacher.xml": View((0.0, 0.0, 0.0), "", 0.95, 90, -90, height=1.0, check=0.1),
    "pusher_v5.xml": View((0.3, -0.3, -0.2), "", 2.6, 235, -35, check=0.25),
}
"""By the file of the model; others are seen as the defaults have it."""


def picture(
    env: HostRobot, physics: Float64[np.ndarray, "state"], size: int = 360
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw one copy in a physical state (MuJoCo's full physics state) as RGB, `size` pixels wide."""
    view, model, data = VIEWS.get(env.robot.xml, View()), env.model, mujoco.MjData(env.model)
    data.qpos[:] = physics[1 : 1 + model.nq]
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    geoms = [_shape(model, data, geom, view) for geom in np.flatnonzero(model.geom_group <= 2).tolist()]
    solids = [geom for geom in geoms if geom.kind in SOLIDS]
    canvas = _Canvas(view, data.subtree_com[1], SAMPLES * size)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # rays that miss
        for geom in geoms:
            if geom.kind == GEOM.mjGEOM_PLANE:
                canvas.lay(geom, solids, view.check)
        for solid in solids:
            canvas.paint(solid)
    return canvas.picture()


class _Shape(NamedTuple):
    """A geom of the model where it is now."""

    kind: int
    size: Float[np.ndarray, "3"]
    position: Float[np.ndarray, "3 1"]
    axes: Float[np.ndarray, "3 3"]
    corners: Float[np.ndarray, "3 8"]
    """Of a box around it."""
    colour: Float[np.ndarray, "3"]

    def meet(self, start: Vectors, ray: Vectors) -> Distance:
        """How far along rays it is entered: infinite where it is missed or lies behind."""
        meet = SOLIDS[self.kind].meet if self.kind in SOLIDS else shapes.meet_plane
        turned = [np.tensordot(self.axes.T, x, 1) for x in (start - across(self.position, start), ray)]
        distance = meet(self.size, *turned)
        return np.where(distance > 0, distance, np.inf)

    def normal(self, points: Float[np.ndarray, "3 n"]) -> Float[np.ndarray, "3 n"]:
        """Outward unit vectors at points of its surface."""
        return self.axes @ SOLIDS[self.kind].normal(self.size, self.axes.T @ (points - self.position))


def _shape(model: Any, data: Any, geom: int, view: View) -> _Shape:
    position, axes = data.geom_xpos[geom].copy(), data.geom_xmat[geom].reshape(3, 3)
    if view.behind and view.behind in model.body(int(model.geom_bodyid[geom])).name:
        position += 0.12 * _axes(view)[2]
    colour, material = model.geom_rgba[geom], model.geom_matid[geom]
    if material >= 0 and (colour == UNSET).all():
        colour = model.mat_rgba[material]
    middle, half = model.geom_aabb[geom].reshape(2, 3)
    signs = np.array(list(product((-1, 1), repeat=3))).T
    corners = position[:, None] + axes @ (middle[:, None] + half[:, None] * signs)
    numbers = (model.geom_size[geom], position[:, None], axes, corners, 255 * colour[:3])
    return _Shape(int(model.geom_type[geom]), *(x.astype(np.float32) for x in numbers))


class _Canvas:
    """What a pinhole camera sees. Light comes from above, over the viewer's left shoulder."""

    def __init__(self, view: View, robot: Float64[np.ndarray, "3"], width: int):
        self.axes = _axes(view)
        right, _, forward = self.axes
        followed = np.array([axis in view.follow for axis in "xyz"])
        self.eye = (view.centre + followed * robot - view.distance * forward).astype(np.float32)[:, None]
        light = 0.75 * np.array([0, 0, 1]) - 0.35 * right - 0.55 * forward
        self.light = (light / np.linalg.norm(light)).astype(np.float32)[:, None]
        self.rays = _rays(view, width)
        self.fog = FOG * view.distance
        self.depth = np.full(self.rays.shape[1:], np.inf, np.float32)
        self.image = np.empty_like(self.rays)
        self.image[:] = SKY[:, None, None]

    def window(self, corners: Float[np.ndarray, "3 n"]) -> tuple[slice, slice]:
        """The pixels that may show something of what lies between some points."""
        right, up, forward = self.axes @ (corners - self.eye)
        rows, columns = self.depth.shape
        if forward.min() < 1e-2:  # around the camera, or behind it
            return slice(0, rows), slice(0, columns)
        x, y = columns / 2 * (1 + right / forward / WIDE), rows / 2 - columns / 2 * up / forward / WIDE
        top, bottom = np.clip([y.min() - 1, y.max() + 2], 0, rows).astype(int)
        low, high = np.clip([x.min() - 1, x.max() + 2], 0, columns).astype(int)
        return slice(top, bottom), slice(low, high)

    def lay(self, floor: _Shape, solids: list[_Shape], check: float) -> None:
        """Paint a level, checked floor, with shadows, that fades into the distance."""
        horizon = np.argmax(self.rays[2, :, 0] < 0)
        rays = self.rays[:, horizon:]
        distance = floor.meet(self.eye, rays)
        points = across(self.eye, rays) + distance * rays
        shadow = np.zeros(distance.shape, bool)
        for solid in solids:
            fall = (solid.corners[2] - floor.position[2]) / self.light[2]
            rows, columns = self.window(solid.corners - fall * self.light)
            window = slice(max(rows.start - horizon, 0), max(rows.stop - horizon, 0)), columns
            shadow[window] |= np.isfinite(solid.meet(points[:, *window], self.light))
        even = (np.floor(points[0] / check) + np.floor(points[1] / check)) % 2 == 0
        clear = np.exp(-((distance / self.fog) ** 2))
        light = np.where(shadow, np.float32(SHADOW), np.float32(1))
        for image, sky, one, other in zip(self.image, SKY, *FLOOR, strict=True):
            image[horizon:] += clear * (np.where(even, one, other) * light - sky)
        self.depth[horizon:] = distance

    def paint(self, solid: _Shape) -> None:
        """Paint what is in front of all that was painted before."""
        window = self.window(solid.corners)
        distance = solid.meet(self.eye, self.rays[:, *window])
        nearer = distance < self.depth[window]
        rays = self.rays[:, *window][:, nearer]
        normal = solid.normal(self.eye + distance[nearer] * rays)
        bright = np.round(TONES * np.clip((normal * self.light).sum(axis=0), 0, 1)) / TONES
        rim = (normal * rays).sum(axis=0) > -0.35
        self.depth[window][nearer] = distance[nearer]
        self.image[:, *window][:, nearer] = solid.colour[:, None] * np.where(rim, RIM, 0.6 + 0.55 * bright)

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """Average the rays of each pixel."""
        offsets = list(product(range(SAMPLES), repeat=2))
        total = sum(self.image[:, y::SAMPLES, x::SAMPLES] for y, x in offsets)
        return np.moveaxis(np.clip(total / len(offsets), 0, 255).round().astype(np.uint8), 0, -1)


def _axes(view: View) -> Float64[np.ndarray, "3 3"]:
    """The camera's right, up and forward."""
    azimuth, elevation = np.deg2rad([view.azimuth, view.elevation])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    level = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    forward = np.cos(elevation) * level + np.sin(elevation) * np.array([0.0, 0.0, 1.0])
    return np.stack([right, np.cross(right, forward), forward])


@functools.lru_cache(maxsize=4)
def _rays(view: View, width: int) -> Float[np.ndarray, "3 height width"]:
    """Unit vectors through the pixels, the same in every frame."""
    height = SAMPLES * round(view.height * width / SAMPLES)
    x = WIDE * ((np.arange(width) + 0.5) * 2 / width - 1)
    y = WIDE * (height - (np.arange(height) + 0.5) * 2) / width
    rays = np.tensordot(_axes(view).T, np.stack([*np.meshgrid(x, y), np.ones((height, width))]), 1)
    return (rays / np.linalg.norm(rays, axis=0)).astype(np.float32)
