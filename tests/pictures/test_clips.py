"""Clips: every step of every episode is shown, and the record says what was done."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageSequence

from metadyna import cli
from metadyna.collect.episodes import Seen
from metadyna.envs import make
from metadyna.envs.control import ControlState
from metadyna.envs.gridworld import Action
from metadyna.errors import UserError
from metadyna.pictures import clips, films
from metadyna.types import Transition
from tests.tiny import compiled_once, drawn, tiny  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

FRAME_MS = int(1000 * clips.FRAME_SECONDS)


def test_a_clip_shows_every_step_of_both_episodes(tmp_path, monkeypatch):
    captions, draw = [], clips.captioned
    monkeypatch.setattr(clips, "captioned", lambda image, *words: captions.append(words) or draw(image, *words))
    shown = clips.render(drawn(), tmp_path / "new" / "clip.gif", task=5, size=80)
    explore, execute = shown["episodes"]
    assert captions[0] == ("1. exploration (not scored)", "start")
    assert captions[explore["length"] + 1] == ("2. execution", "start")
    assert len(captions) == explore["length"] + execute["length"] + 2
    assert not any("return" in label for title, label in captions if title.startswith("1. exploration"))
    assert captions[-1][1].endswith(f"return {execute['return']:+.1f}")
    # A GIF keeps equal neighbours as one longer frame: here the pause at the end of each episode.
    with Image.open(tmp_path / "new" / "clip.gif") as image:
        assert image.size == (80, 80 + films.CAPTION_HEIGHT)
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
        assert image.info["loop"] == 0
    assert len(durations) == len(captions)
    assert sum(durations) == FRAME_MS * (len(captions) + 2 * clips.PAUSE_FRAMES)
    assert durations[explore["length"]] == durations[-1] == FRAME_MS * (1 + clips.PAUSE_FRAMES)


def test_the_record_is_what_the_agent_did(tmp_path):
    result = drawn()
    shown = clips.render(result, tmp_path / "clip.gif", task=5, size=80)
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
    assert clips.render(drawn(), tmp_path / "clip.gif", size=40)["task"] == 48


def test_a_clip_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*clip\.gif: "):
        clips.render(drawn(), tmp_path / "file" / "clip.gif", size=40)


# --- what moves by itself


def gif(path):
    """Its frames, and for how long they stay."""
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        return [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize(
    ("task", "size", "stay"), [("pendulum", (360, 416), 50), ("inverted-pendulum", (360, 326), 40)]
)
def test_the_command_line_films_a_saved_agent(task, size, stay, tmp_path, capsys):
    result, out = drawn(tiny("sac", task)), tmp_path / "new" / "clip.gif"
    index = 5  # the middle of ten
    with pytest.raises(SystemExit) as stop:
        cli.main(["render", str(result.folder), "--out", str(out), "--seconds", "0.6", "--json"])
    printed, complained = capsys.readouterr()
    assert (stop.value.code, complained) == (0, "")
    shown = json.loads(printed)
    (episode,) = shown["episodes"]
    assert shown == {"out": str(out), "task": index, "episodes": [episode]}
    assert episode.keys() == {"name", "length", "return"}
    frames = gif(out)
    assert all(image.shape == (size[1], size[0], 3) for image, _ in frames)
    assert len({image.tobytes() for image, _ in frames}) == len(frames)
    steps = min(episode["length"], round(600 / stay))
    assert [stays for _, stays in frames] == [stay] * steps + [1000 * films.PAUSE_SECONDS]
    assert len(np.unique(np.concatenate([image.reshape(-1, 3) for image, _ in frames]), axis=0)) <= films.COLOURS
    assert out.stat().st_size < 30_000 * len(frames)
    with pytest.raises(SystemExit):
        cli.main(["render", str(result.folder), "--out", str(out), "--seconds", "0.1"])
    printed, _ = capsys.readouterr()
    assert printed == f"episode: {episode['length']} steps, return {episode['return']:.1f}\n{out}\n"


def test_the_task_decides_what_is_filmed(tmp_path):
    result = drawn(tiny("sac"))
    shown = [clips.render(result, tmp_path / "clip.gif", task=task, size=60, seconds=0.05) for task in (3, 3, 4)]
    assert [s["task"] for s in shown] == [3, 3, 4]
    one, again, other = (s["episodes"][0] for s in shown)
    assert one == again
    assert one["length"] == other["length"] == 200
    assert one["return"] != other["return"]
    with pytest.raises(UserError, match="task 10 is out of range; the test split has tasks 0 to 9"):
        clips.render(result, tmp_path / "clip.gif", task=10)
    with pytest.raises(UserError, match=r"cannot write .*clip\.gif: "):
        clips.render(result, tmp_path / "clip.gif" / "clip.gif", size=60, seconds=0.05)


def episode_of(rewards, last):
    """A padded episode of one task, watched, that goes through the states 0, 1, 2, ..."""
    steps = len(rewards)
    time = np.arange(steps + 1, dtype=np.int32)[:, None]
    states = ControlState(time[..., None].astype(np.float32), time)
    zeros = np.zeros((steps, 1), np.float32)
    rewards = np.array(rewards, np.float32)[:, None]
    ends = jnp.asarray(np.arange(steps)[:, None] == last)
    before, after = (jax.tree.map(lambda x, part=part: x[part], states) for part in (slice(-1), slice(1, None)))
    return Transition(zeros, zeros[..., None], rewards, zeros, zeros, ends, hidden=(Seen(before, ()), Seen(after, ())))


@pytest.mark.parametrize(
    ("period", "seconds", "shown", "stay"),
    [
        (0.05, 0.15, [0, 1, 2, 3], [50, 50, 50, 1000]),
        (0.05, 9.0, [0, 1, 2, 3, 4, 5, 6], [50] * 6 + [1000]),
        (0.02, 9.0, [0, 2, 4, 6], [40, 40, 40, 1000]),
        (0.015, 9.0, [0, 3, 6], [40, 50, 1000]),
        (0.008, 9.0, [0, 6], [50, 1000]),
        (0.02, 0.05, [0, 2], [40, 1000]),
        (0.02, 0.06, [0, 2, 3], [40, 20, 1000]),
        (0.1, 0.01, [0, 1], [100, 1000]),
    ],
)
def test_films_run_at_the_speed_of_what_they_show(period, seconds, shown, stay, monkeypatch):
    seen, captions, draw = [], [], films.captioned
    monkeypatch.setattr(films, "captioned", lambda image, *words: captions.append(words) or draw(image, *words))

    def drawn(task, state, action, size):
        assert task == "task"
        assert (action is None) == (state.physics[0] == 0)
        seen.append(int(state.physics[0]))
        return np.full((size, size, 3), 30 * seen[-1], np.uint8)

    episode = episode_of([1, 2, 3, 4, 5, 6, 100, 100], last=5)
    take = films.shoot(films.Camera(period, drawn), "task", episode, "title", 20, seconds)
    assert seen[3:] == shown  # the first three are for the palette
    assert take.milliseconds == stay
    assert take.record == {"length": 6, "return": 21.0}
    totals = np.cumsum([0, 1, 2, 3, 4, 5, 6])
    assert captions[3:] == [("title", f"{step * period:.1f} s   return {totals[step]:+.1f}") for step in shown]
    assert all(frame.mode == "P" for frame in take.frames)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_film_needs_a_length(seconds, tmp_path):
    with pytest.raises(UserError, match=rf"^seconds must be above 0, not {seconds:g}$"):
        clips.render(drawn(), tmp_path / "clip.gif", seconds=seconds)


def test_other_environments_have_no_picture():
    told = r"^there is no picture of gym::Pendulum-v1: [^\n]* can be rendered, but no other environments$"
    with pytest.raises(UserError, match=told):
        films.camera(make("gym::Pendulum-v1").env, "gym::Pendulum-v1")
