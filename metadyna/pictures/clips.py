"""Clips: what an agent does on one task, episode after episode, as an animated GIF."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from metadyna.collect.episodes import episode_lengths
from metadyna.envs.cooking import CookingGrid
from metadyna.envs.gridworld import Action, CityGrid
from metadyna.errors import UserError
from metadyna.models.abstract import Abstract
from metadyna.nets.sight import sight
from metadyna.pictures import films, spaces
from metadyna.pictures.films import captioned
from metadyna.pictures.grids import picture, text
from metadyna.runs.loop import Result
from metadyna.types import Pictured, Problems, Transition

FRAME_SECONDS = 0.6
PAUSE_FRAMES = 3
"""Copies of an episode's last frame, so that its end can be read."""


def render(
    result: Result,
    out: Path,
    task: int | None = None,
    seed: int = 0,
    split: str = "test",
    size: int = 360,
    seconds: float = 10.0,
) -> dict[str, Any]:
    """Let one seed of a run adapt to one task of a split and write all its episodes to `out` (.gif).

    `task` is an index into the split's enumeration (default: the middle one). Grids and mazes are shown step by step
    to the end, all else at its own speed for the first `seconds` of an episode; of a round of several the first one.
    Returns what was shown: name, length and return of each episode; of grids the problem and the instruction too, and
    each episode's actions and boards.
    """
    if out.suffix != ".gif":
        raise UserError(f"{out} does not end in .gif, the format of clips")
    if not seconds > 0:
        raise UserError(f"seconds must be above 0, not {seconds:g}")
    program, name = result.program, result.config.task
    collector: Any = program.collector
    env = collector.env
    camera = None if isinstance(env, CityGrid | CookingGrid | Pictured) else films.camera(env, name)
    params = _actor(result, seed)
    index, one = _chosen(program.tasks(split), task, split)
    watching = replace(collector, watch=camera is not None)
    trial = result.config.system.trial(params, watching, one, jax.random.key(index))
    alone, many = jax.tree.map(lambda x: x[0], one), len(trial.names) > 1
    takes, shown = [], []
    for number, what in enumerate(trial.names, 1):
        episode = jax.tree.map(lambda x, i=number - 1: x[:, :, i, 0], trial.episodes)
        if camera:
            title = f"{name}: {number}. {what}" if many else f"{name}: {what}"
            takes.append(films.shoot(camera, alone, episode, title, size, seconds))
            record = takes[-1].record
        elif isinstance(env, Pictured):
            title = f"{name}: {what}" + (", and its abstract state" if isinstance(params, Abstract) else "")
            frames, record = _seen_episode(env, params, episode, title, size)
            takes += frames
        else:
            scored = trial.score != "last" or number == len(trial.names)
            what = f"{number}. {what}" + ("" if scored else " (not scored)")
            frames, record = _episode(env, alone, episode, what, scored, size)
            takes += frames
        shown.append({"name": what, **record})
    _write(out, takes, filmed=camera is not None)
    return {"out": str(out), "task": index, **_asked(env, alone), "episodes": shown}


def _asked(env: Any, task: Any) -> dict[str, Any]:
    """The problem and the instruction, where tasks have them."""
    if not isinstance(env, Problems):
        return {}
    return {"problem": int(env.problem(task)), "instruction": np.asarray(env.instruction(task)).tolist()}


def _write(out: Path, takes: list[Any], filmed: bool) -> None:
    """Films at their own speed, or frames one by one."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if filmed:
            films.write(out, takes)
        else:
            imageio.imwrite(out, np.stack(takes), duration=int(1000 * FRAME_SECONDS), loop=0)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None


def _seen_episode(
    env: Any, params: Any, episode: Transition, title: str, size: int
) -> tuple[list[UInt8[np.ndarray, "height width 3"]], dict[str, Any]]:
    """Frames and record of an episode [T, 1] seen as pictures, beside the abstract states if there are any."""
    length = int(episode_lengths(episode.last)[0])
    actions = [env.action_names[int(a)] for a in np.asarray(episode.action[:length, 0])]
    returns = np.append(0, np.cumsum(np.asarray(episode.reward[:length, 0], np.float64)))
    obs = jnp.concatenate([episode.obs[:1, 0], episode.next_obs[:length, 0]])
    panels = spaces.seen(np.asarray(jax.vmap(env.picture)(obs)), size)
    if isinstance(params, Abstract):
        states = np.asarray(jax.jit(sight(env))(params.encoder, obs))
        gap = np.full((*panels.shape[:2], size // 20, 3), 255, np.uint8)
        panels = np.concatenate([panels, gap, spaces.abstract(states, size)], axis=2)
    labels = ["start", *(f"step {step}: {action}" for step, action in enumerate(actions, 1))]
    frames = [
        captioned(panel, title, f"{label}   return {total:+.1f}")
        for panel, label, total in zip(panels, labels, returns, strict=True)
    ]
    return frames + [frames[-1]] * PAUSE_FRAMES, {"length": length, "actions": actions, "return": float(returns[-1])}


def _actor(result: Result, seed: int) -> Any:
    """What one seed of a run acts with."""
    if not 0 <= seed < result.config.seeds:
        raise UserError(f"seed index {seed} is out of range; the run has {result.config.seeds}, counted from 0")
    return jax.tree.map(lambda x: x[seed], result.params)


def _chosen(tasks: Any, task: int | None, split: str) -> tuple[int, Any]:
    """One task of a split and its index."""
    count = jax.tree.leaves(tasks)[0].shape[0]
    index = count // 2 if task is None else task
    if not 0 <= index < count:
        raise UserError(f"task {index} is out of range; the {split} split has tasks 0 to {count - 1}")
    return index, jax.tree.map(lambda x: x[index : index + 1], tasks)


def _episode(
    env: CityGrid | CookingGrid, task: Any, episode: Transition, name: str, scored: bool, size: int
) -> tuple[list[UInt8[np.ndarray, "height width 3"]], dict[str, Any]]:
    """Frames and record of one episode; the grids are deterministic, so its actions tell every state."""
    length = int(episode_lengths(episode.last)[0])
    actions = [Action(int(a)) for a in np.asarray(episode.action[:length, 0])]
    rewards = np.asarray(episode.reward[:length, 0])
    state: Any = env.reset(task, jax.random.key(0))[0]
    frames = [captioned(picture(env, task, state, size), name, "start")]
    boards = [text(env, task, state)]
    for step, action in enumerate(actions):
        state, _ = env.step(task, state, jnp.int32(action), jax.random.key(0))
        total = f"   return {rewards[: step + 1].sum():+.1f}" if scored else ""
        label = f"step {step + 1}: {action.name.lower().replace('_', ' ')}{total}"
        frames.append(captioned(picture(env, task, state, size), name, label))
        boards.append(text(env, task, state))
    frames += [frames[-1]] * PAUSE_FRAMES
    record = {"length": length, "actions": [action.name for action in actions], "boards": boards}
    return frames, {**record, "return": float(rewards.sum())} if scored else record
