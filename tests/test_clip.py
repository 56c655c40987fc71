"""Clips: every step of every episode is shown, and the record says what was done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageSequence

from metadyna import clip
from metadyna.envs.gridworld import Action
from metadyna.errors import UserError
from tests.tiny import compiled_once, trained  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

FRAME_MS = int(1000 * clip.FRAME_SECONDS)


def test_a_clip_shows_every_step_of_both_episodes(tmp_path, monkeypatch):
    captions, draw = [], clip._captioned
    monkeypatch.setattr(clip, "_captioned", lambda image, *words: captions.append(words) or draw(image, *words))
    shown = clip.render(trained(), tmp_path / "new" / "clip.gif", task=5, size=80)
    explore, execute = shown["episodes"]
    assert captions[0] == ("1. exploration (goal unknown)", "start")
    assert captions[explore["length"] + 1] == ("2. execution", "start")
    assert len(captions) == explore["length"] + execute["length"] + 2
    assert not any("return" in label for title, label in captions if title.startswith("1. exploration"))
    assert captions[-1][1].endswith(f"return {execute['return']:+.1f}")
    # A GIF keeps equal neighbours as one longer frame: here the pause at the end of each episode.
    with Image.open(tmp_path / "new" / "clip.gif") as image:
        assert image.size == (80, 80 + clip.CAPTION_HEIGHT)
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
        assert image.info["loop"] == 0
    assert len(durations) == len(captions)
    assert sum(durations) == FRAME_MS * (len(captions) + 2 * clip.PAUSE_FRAMES)
    assert durations[explore["length"]] == durations[-1] == FRAME_MS * (1 + clip.PAUSE_FRAMES)


def test_the_record_is_what_the_agent_did(tmp_path):
    result = trained()
    shown = clip.render(result, tmp_path / "clip.gif", task=5, size=80)
    tasks = result.program.tasks("test")
    one = jax.tree.map(lambda x: x[5], tasks)
    assert shown["task"] == 5
    assert shown["problem"] == int(one.problem)
    assert shown["instruction"] == one.goal.tolist()
    scores = result.evaluate()
    env = result.program.family.env
    for i, episode in enumerate(shown["episodes"]):
        assert len(episode["actions"]) == episode["length"] == len(episode["boards"]) - 1
        if i == 1:  # the execution episode is the one that evaluation scores
            assert episode["length"] == int(scores.lengths[0, 1, 5])
            assert episode["return"] == pytest.approx(float(scores.returns[0, 1, 5]), abs=1e-5)
            state, _ = env.reset(one, jax.random.key(0))
            rewards = []
            for name in episode["actions"]:
                state, timestep = env.step(one, state, jnp.int32(Action[name].value), jax.random.key(0))
                rewards.append(timestep.reward)
            assert episode["return"] == pytest.approx(float(np.sum(rewards)), abs=1e-5)
        else:
            assert "return" not in episode


def test_the_default_task_is_the_middle_one(tmp_path):
    assert clip.render(trained(), tmp_path / "clip.gif", size=40)["task"] == 48


def test_a_clip_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*clip\.gif: "):
        clip.render(trained(), tmp_path / "file" / "clip.gif", size=40)
