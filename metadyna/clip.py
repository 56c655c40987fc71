"""Clips: what an agent does on one task, episode after episode, as an animated GIF."""

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from metadyna.envs.cooking import CookingGrid
from metadyna.envs.gridworld import Action, CityGrid
from metadyna.envs.render import picture, text
from metadyna.errors import UserError
from metadyna.rollout import episode_lengths
from metadyna.run import Result
from metadyna.types import Transition

CAPTION_HEIGHT = 56
FRAME_SECONDS = 0.6
PAUSE_FRAMES = 3
"""Copies of an episode's last frame, so that its end can be read."""


def render(
    result: Result, out: Path, task: int | None = None, seed: int = 0, split: str = "test", size: int = 360
) -> dict[str, Any]:
    """Let one seed of a run adapt to one task of a split and write all its episodes to `out` (.gif).

    `task` is an index into the split's enumeration (default: the middle one). Returns what was shown: the problem,
    the instruction, and return and actions of each episode.
    """
    config = result.config
    if out.suffix != ".gif":
        raise UserError(f"{out} does not end in .gif, the format of clips")
    if not 0 <= seed < config.seeds:
        raise UserError(f"seed index {seed} is out of range; the run has {config.seeds}, counted from 0")
    program = result.program
    env = program.family.env
    if not isinstance(env, CityGrid | CookingGrid):
        raise UserError(f"there is no picture of {type(env).__name__}; only grids can be rendered")
    tasks = program.tasks(split)
    count = tasks.problem.shape[0]
    index = count // 2 if task is None else task
    if not 0 <= index < count:
        raise UserError(f"task {index} is out of range; the {split} split has tasks 0 to {count - 1}")
    one = jax.tree.map(lambda x: x[index : index + 1], tasks)
    params = jax.tree.map(lambda x: x[seed], result.params)
    episodes = config.system.trial(params, program.collector, one, jax.random.key(index))
    frames, shown = [], []
    for number, (name, episode) in enumerate(zip(config.system.episode_names, episodes, strict=True)):
        scored = number == len(episodes) - 1
        title = f"{number + 1}. {name}" + ("" if scored else " (goal unknown)")
        pictures, record = _episode(env, jax.tree.map(lambda x: x[0], one), episode, title, scored, size)
        frames += pictures
        shown.append(record)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(out, np.stack(frames), duration=int(1000 * FRAME_SECONDS), loop=0)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return {
        "out": str(out),
        "task": index,
        "problem": int(one.problem[0]),
        "instruction": np.asarray(one.goal[0]).tolist(),
        "episodes": shown,
    }


def _episode(
    env: CityGrid | CookingGrid, task: Any, episode: Transition, name: str, scored: bool, size: int
) -> tuple[list[UInt8[np.ndarray, "height width 3"]], dict[str, Any]]:
    """Frames and record of one episode; the grids are deterministic, so its actions tell every state."""
    length = int(episode_lengths(episode.last)[0])
    actions = [Action(int(a)) for a in episode.action[:length, 0]]
    rewards = np.asarray(episode.reward[:length, 0])
    state: Any = env.reset(task, jax.random.key(0))[0]
    frames = [_captioned(picture(env, task, state, size), name, "start")]
    boards = [text(env, task, state)]
    for step, action in enumerate(actions):
        state, _ = env.step(task, state, jnp.int32(action), jax.random.key(0))
        total = f"   return {rewards[: step + 1].sum():+.1f}" if scored else ""
        label = f"step {step + 1}: {action.name.lower().replace('_', ' ')}{total}"
        frames.append(_captioned(picture(env, task, state, size), name, label))
        boards.append(text(env, task, state))
    frames += [frames[-1]] * PAUSE_FRAMES
    record = {"name": name, "length": length, "actions": [action.name for action in actions], "boards": boards}
    return frames, {**record, "return": float(rewards.sum())} if scored else record


def _captioned(image: np.ndarray, title: str, label: str) -> UInt8[np.ndarray, "height width 3"]:
    """Add a strip of two lines above a picture."""
    height, width, _ = image.shape
    canvas = Image.new("RGB", (width, height + CAPTION_HEIGHT), "white")
    canvas.paste(Image.fromarray(image), (0, CAPTION_HEIGHT))
    draw = ImageDraw.Draw(canvas)
    draw.text((10, 6), title, fill=(20, 20, 20), font=ImageFont.load_default(20))
    draw.text((10, 32), label, fill=(90, 90, 90), font=ImageFont.load_default(16))
    return np.asarray(canvas)
