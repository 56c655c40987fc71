"""Films: frames of what moves by itself, robots and control problems, at the speed at which it moves."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from metadyna.collect.episodes import episode_lengths
from metadyna.envs.switching import HostSwitching, Switching
from metadyna.errors import UserError
from metadyna.pictures import control
from metadyna.types import HostEnv, Transition

FRAME_SECONDS = 0.05
"""From frame to frame, or as little less as whole steps allow."""
PAUSE_SECONDS = 1.0
"""For which an episode's last frame stays."""
COLOURS = 64
CAPTION_HEIGHT = 56

Picture = UInt8[np.ndarray, "height width 3"]


class Camera(NamedTuple):
    """How an environment is drawn: `draw(task, state, action, size)`, the action being None at the start."""

    period: float
    """Seconds per step."""
    draw: Callable[[Any, Any, Any, int], Picture]


class Take(NamedTuple):
    """An episode on film."""

    frames: list[Image.Image]
    milliseconds: list[int]
    """For which each frame stays."""
    record: dict[str, Any]
    """Length and return of the whole episode."""


def camera(env: Any, name: str) -> Camera:
    """Find out how an environment is drawn; `UserError` if it cannot be."""
    if isinstance(env, Switching | HostSwitching):
        inner = camera(env.env, name)
        return Camera(
            inner.period,
            lambda task, state, action, size: inner.draw(state.course.task, state.env, action, size),
        )
    if control.drawable(env):
        return Camera(control.seconds(env), functools.partial(control.picture, env))
    if isinstance(env, HostEnv):
        # Loading MuJoCo takes a while, which only who runs a simulator should pay for.
        from metadyna.envs.mujoco import HostRobot
        from metadyna.pictures import robots

        if isinstance(env, HostRobot):
            return Camera(
                env.period, lambda task, state, action, size: robots.picture(env, state.physics.view(float), size)
            )
    raise UserError(
        f"there is no picture of {name}: grids, mazes, control problems and robots of this library can be rendered, "
        "but no other environments"
    )


def shoot(camera: Camera, task: Any, episode: Transition, title: str, size: int, seconds: float) -> Take:
    """Film the first `seconds` of an episode [T, 1] of one task, which a collector has watched."""
    before, after = (seen.state for seen in episode.hidden)
    states = jax.tree.map(lambda x, y: np.concatenate([x[:1, 0], y[:, 0]]), before, after)
    actions = np.asarray(episode.action[:, 0])
    rewards = np.asarray(episode.reward[: int(episode_lengths(episode.last)[0]), 0], np.float64)
    returns = np.append(0, np.cumsum(rewards))

    def shot(step: int) -> Image.Image:
        state, action = jax.tree.map(lambda x: x[step], states), actions[step - 1] if step else None
        label = f"{step * camera.period:.1f} s   return {returns[step]:+.1f}"
        return Image.fromarray(captioned(camera.draw(task, state, action, size), title, label))

    end = max(1, round(min(len(rewards), seconds / camera.period)))
    stride = max(1, int(FRAME_SECONDS / camera.period + 1e-6))
    steps = [*range(0, end, stride), end]
    # With one palette for all of them, what stands still has the same colours in every frame, and is stored once.
    sample = np.concatenate([shot(step) for step in (0, steps[len(steps) // 2], end)])
    # An octree keeps the few pixels of a small limb their own colour, where the default would mix them with others.
    palette = Image.fromarray(sample).quantize(COLOURS, Image.Quantize.FASTOCTREE)
    frames = [shot(step).quantize(palette=palette, dither=Image.Dither.NONE) for step in steps]
    hundredths = np.round(np.array(steps) * camera.period * 100)  # GIFs count in these
    stay = np.append(np.diff(hundredths), 100 * PAUSE_SECONDS)
    record = {"length": len(rewards), "return": float(returns[-1])}
    return Take(frames, (10 * stay).astype(int).tolist(), record)


def write(out: Path, takes: list[Take]) -> None:
    """Write episodes one after another, over and over again."""
    frames = [frame for take in takes for frame in take.frames]
    times = [time for take in takes for time in take.milliseconds]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=times, loop=0)


def captioned(image: np.ndarray, title: str, label: str) -> Picture:
    """Add a strip of two lines above a picture."""
    height, width, _ = image.shape
    canvas = Image.new("RGB", (width, height + CAPTION_HEIGHT), "white")
    canvas.paste(Image.fromarray(image), (0, CAPTION_HEIGHT))
    draw = ImageDraw.Draw(canvas)
    draw.text((10, 6), title, fill=(20, 20, 20), font=_font(20))
    draw.text((10, 32), label, fill=(90, 90, 90), font=_font(16))
    return np.asarray(canvas)


_font = functools.cache(ImageFont.load_default)
