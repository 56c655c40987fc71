"""Where rays enter the shapes that MuJoCo's models are made of, in closed form.

A shape lies at the origin along the axes and has MuJoCo's sizes; rays have length 1. Where one misses, the distance is
infinite or not a number. Vectors lie along axis 0: numpy is slow at sums over three neighbours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Size = Float[np.ndarray, "3"]
Vectors = Float[np.ndarray, "3 ..."]
"""Starts and directions need not be equally many, as long as their shapes broadcast."""
Distance = Float[np.ndarray, "..."]


def across(vector: Float[np.ndarray, "3 *ones"], others: Vectors) -> Vectors:
    """Give one vector as many axes as others have."""
    return vector.reshape(3, *[1] * (others.ndim - 1))


def _meet_ball(radius: Any, start: Any, ray: Any) -> Distance:
    (x, y, z), (dx, dy, dz) = start, ray
    middle = -(x * dx + y * dy + z * dz)
    return middle - np.sqrt(middle**2 - (x**2 + y**2 + z**2 - radius**2))


def _meet_tube(radius: Any, start: Any, ray: Any) -> Distance:
    """An endless cylinder around z."""
    (x, y, _), (dx, dy, _) = start, ray
    flat, middle = dx**2 + dy**2 + np.float32(1e-12), -(x * dx + y * dy)
    return (middle - np.sqrt(middle**2 - flat * (x**2 + y**2 - radius**2))) / flat


def _meet_capsule(size: Size, start: Vectors, ray: Vectors) -> Distance:
    """A ball that slides along z is met where the tube is, as long as it can slide there."""
    radius, half, _ = size
    (x, y, z), dz = start, ray[2]
    slid = np.clip(z + _meet_tube(radius, start, ray) * dz, -half, half)
    return _meet_ball(radius, (x, y, z - slid), ray)


def _normal_capsule(size: Size, point: Vectors) -> Vectors:
    x, y, z = point
    return np.stack([x, y, z - np.clip(z, -size[1], size[1])]) / size[0]


def _meet_cylinder(size: Size, start: Vectors, ray: Vectors) -> Distance:
    radius, half, _ = size
    (x, y, z), (dx, dy, dz) = start, ray
    side, end = _meet_tube(radius, start, ray), (-np.sign(dz) * half - z) / dz
    on_end = (x + end * dx) ** 2 + (y + end * dy) ** 2 <= radius**2
    return np.where(np.abs(z + side * dz) <= half, side, np.where(on_end, end, np.inf))


def _normal_cylinder(size: Size, point: Vectors) -> Vectors:
    radius, half, _ = size
    x, y, z = point
    on_end = np.abs(z) / half > np.hypot(x, y) / radius
    return np.where(on_end, np.stack([0 * x, 0 * y, np.sign(z)]), np.stack([x, y, 0 * z]) / radius)


def _meet_ellipsoid(size: Size, start: Vectors, ray: Vectors) -> Distance:
    start, ray = start / across(size, start), ray / across(size, ray)
    length = np.sqrt((ray**2).sum(axis=0))
    return _meet_ball(1, start, ray / length) / length


def _normal_ellipsoid(size: Size, point: Vectors) -> Vectors:
    normal = point / size[:, None] ** 2
    return normal / np.sqrt((normal**2).sum(axis=0))


def _meet_box(size: Size, start: Vectors, ray: Vectors) -> Distance:
    half = np.sign(ray) * across(size, ray)
    enter, leave = ((-half - start) / ray).max(axis=0), ((half - start) / ray).min(axis=0)
    return np.where(enter <= leave, enter, np.inf)


def _normal_box(size: Size, point: Vectors) -> Vectors:
    share = point / size[:, None]
    return np.sign(share) * (np.arange(3)[:, None] == np.abs(share).argmax(axis=0))


def meet_plane(size: Size, start: Vectors, ray: Vectors) -> Distance:
    """Seen from above; an axis of size 0 has no end."""
    (x, y, z), (dx, dy, dz) = start, ray
    distance = np.where(dz < 0, -z / dz, np.inf)
    long, wide = np.where(size[:2] > 0, size[:2], np.inf)
    return np.where((np.abs(x + distance * dx) <= long) & (np.abs(y + distance * dy) <= wide), distance, np.inf)


class Solid(NamedTuple):
    """How a kind of shape is met, and the outward unit vectors at points of its surface."""

    meet: Callable[[Size, Vectors, Vectors], Distance]
    normal: Callable[[Size, Vectors], Vectors]


CAPSULE = Solid(_meet_capsule, _normal_capsule)
"""Of radius and half its length without the ends; a ball if that is 0."""
CYLINDER = Solid(_meet_cylinder, _normal_cylinder)
ELLIPSOID = Solid(_meet_ellipsoid, _normal_ellipsoid)
BOX = Solid(_meet_box, _normal_box)
