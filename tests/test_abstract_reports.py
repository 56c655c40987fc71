"""Reports on CRAR and GMAS, and clips of what they see, from runs as small as they can be."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from metadyna import clip, draw_abstract
from metadyna.envs import make
from metadyna.experiments import abstract, figures
from tests.tiny import compiled_once, tiny, trained  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


def results():
    """One run in the simple maze, which stands for two arms."""
    result = trained(tiny("crar", "simple-maze", steps=20))
    return {"CRAR": result, "cosine 2": result}


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_scores_are_tabulated_beside_the_baseline_and_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(abstract, "DEPTHS", (1,))
    arms = results()
    picture, table = abstract.panels(arms, tmp_path, "fig")
    assert picture.stat().st_size
    rows = {(row["arm"], row["depth"], row["epsilon"]): row for row in read(table)}
    trained = arms["CRAR"].config.system.acting.depths
    cells = [*((d, "0.1") for d in {1, *trained}), *((d, "0.0") for d in trained)]
    assert set(rows) == {(arm, str(d), e) for arm in arms for d, e in cells}
    first = rows["CRAR", "1", "0.1"]
    assert float(first["lead"]) == 0
    assert (first["seeds"], first["tasks"]) == ("1", "10")
    assert len(read(abstract.controls(arms, tmp_path, "controls")[1])) == len(arms) * 2 * len(trained)
    scores = abstract.final_scores(arms["CRAR"], 1, 0.1)
    assert scores.shape == (1, 10)
    monkeypatch.setattr(abstract.run, "build", None)
    np.testing.assert_array_equal(abstract.final_scores(arms["CRAR"], 1, 0.1), scores)


def test_slopes_agree_with_themselves_and_errors_grow_from_nothing(tmp_path):
    *pictures, table = abstract.slopes({"CRAR": results()["CRAR"]}, tmp_path, "cosine")
    assert len(pictures) == 3
    assert all(path.stat().st_size for path in pictures)
    by_depth = {(row["quantity"], int(row["depth"])): float(row["mean"]) for row in read(table)}
    assert len(by_depth) == 3 * 6
    assert by_depth["cosine", 0] == pytest.approx(1, abs=1e-4)
    assert by_depth["model-error", 0] == by_depth["plan-gap", 0] == 0
    assert by_depth["model-error", 5] > 0
    assert by_depth["plan-gap", 1] > 0


def test_portraits_show_every_state(tmp_path):
    picture, table, summary = abstract.portraits({"simple maze": results()["CRAR"]}, tmp_path, "space")
    assert picture.stat().st_size
    points = np.loadtxt(table, delimiter=",", skiprows=1)[:, 1:]
    assert len(points) == 31
    nearest, error, still = read(summary)
    apart = [np.linalg.norm(np.delete(points, i, axis=0) - points[i], axis=1).min() for i in range(31)]
    assert float(nearest["least"]) == pytest.approx(min(apart), rel=0.01)
    assert float(error["largest"]) > float(error["median"]) > 0
    assert float(still["largest"]) > float(still["median"]) > 0
    obs, shade = abstract.everything(make("catcher").env)
    assert obs.shape == (200, 3)
    assert len(np.unique(np.asarray(obs), axis=0)) == 200
    assert shade.max() == 9
    with pytest.raises(TypeError, match="no list"):
        abstract.everything(make("labyrinth").env)


def test_the_runs_of_one_figure_serve_another(tmp_path, monkeypatch):
    arms = {"CRAR": results()["CRAR"].config}
    seen = []
    first = figures.Experiment("one", "One", arms, 1, report=lambda *told: seen.append(told) or [])
    figures.reproduce(first, tmp_path)
    monkeypatch.setattr(figures.run, "run", None)  # nothing is run again
    written = figures.reproduce(replace(first, name="two", runs_of="one"), tmp_path)
    assert [folder.name for _, folder, _ in seen] == ["one", "two"]
    assert [path.name for path in written] == ["two.json"]


def test_a_clip_shows_what_is_seen_beside_the_abstract_state(tmp_path, monkeypatch):
    labels, frames = [], []
    monkeypatch.setattr(clip, "captioned", lambda image, *label: labels.append(label) or image)
    monkeypatch.setattr(clip.imageio, "imwrite", lambda out, images, **_: frames.append(images))
    shown = clip.render(results()["CRAR"], tmp_path / "clip.gif", task=1, size=40)
    assert [episode["name"] for episode in shown["episodes"]] == ["depth 0"]
    episode = shown["episodes"][0]
    assert episode["length"] == len(episode["actions"]) == 500
    assert set(episode["actions"]) <= {"up", "down", "left", "right"}
    assert labels[0] == ("simple-maze: depth 0, and its abstract state", "start   return +0.0")
    assert labels[1][1] == f"step 1: {episode['actions'][0]}   return +0.0"
    assert frames[0].shape == (501 + clip.PAUSE_FRAMES, 40, 40 + 2 + 40, 3)


def test_what_is_drawn_of_an_abstract_state():
    pictures = np.stack([np.zeros((4, 2)), np.eye(4)[:, :2]])
    frames = draw_abstract.seen(pictures, 8)
    assert frames.shape == (2, 8, 4, 3)
    assert frames[1, 0, 0].tolist() == [255, 255, 255]
    assert frames[0].max() == 0
    maps = np.zeros((1, 2, 2, 3))
    maps[0, 0, 1] = (1, -1, 5)
    image = draw_abstract.abstract(maps, 4)[0]
    assert image[0, 3].tolist() == [255, 0, 255]
    assert image[3, 0].tolist() == [128, 128, 128]
    points = draw_abstract.abstract(np.array([[0.0, 0.0], [1.0, 0.0]]), 100)
    assert points.shape == (2, 100, 100, 3)
    assert points[0, 50, 50].tolist() == points[1, 50, 90].tolist() == list(draw_abstract._NOW)
