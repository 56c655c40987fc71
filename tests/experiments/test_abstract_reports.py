"""Reports on CRAR and GMAS, and clips of what they see, from runs as small as they can be."""

from copy import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.data.datasets import random_transitions
from metadyna.envs import make
from metadyna.experiments import abstract
from metadyna.models.abstract import Abstract
from metadyna.nets.convolutions import ConvNet
from metadyna.nets.layers import MLP, Linear
from metadyna.nets.pictures import Encoder
from metadyna.nets.sight import picture_shape
from metadyna.pictures import clips, spaces
from metadyna.planning.acting import TreeActing
from metadyna.types import Transition, num_actions
from tests.experiments.reading import read
from tests.tiny import compiled_once, drawn, logged, scores, tiny  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


def result():
    """A run in the simple maze."""
    return drawn(tiny("crar", "simple-maze"))


def linear(weight, bias):
    """A network of one layer."""
    return MLP((Linear(jnp.asarray(np.float32(weight)), jnp.asarray(np.float32(bias))),), jnp.tanh)


def abstract_model(see, change, plain, value):
    """One whose encoder does not look for shapes."""
    encoder = Encoder(ConvNet((), (), jnp.tanh, False), see)
    return Abstract(encoder, change, plain, plain, value, value.layers[0].bias.size)


def with_programs(patch):
    """One program for a walk, not one for each of its steps."""
    patch.setattr(abstract, "random_transitions", jax.jit(random_transitions, static_argnums=(0, 1, 2)))


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A run that catches, whose weights have changed since its evaluation before the last, and what is measured of it.

    Networks have one layer, and plans are looked at to the depth 2 instead of 5: more takes longer to compile.
    """
    result, rng = drawn(tiny("crar", "catcher")), np.random.default_rng(0)
    side, actions = picture_shape(result.program.family.env)[0], num_actions(result.program.family.env.spec)

    def at(steps):
        change, plain, value = (linear(rng.normal(size=(2 + actions, n)), rng.normal(size=n)) for n in (2, 1, actions))
        value = linear(value.layers[0].weight[:2], value.layers[0].bias)
        see = linear(rng.normal(size=(side**2, 2)), np.zeros(2))
        weights = jax.tree.map(lambda x: x[None], abstract_model(see, change, plain, value))
        learner = result.state.system.learner._replace(weights=weights, updates=jnp.int32([steps]))
        return replace(result, state=result.state._replace(system=result.state.system._replace(learner=learner)))

    before, run = at(5), at(10)
    rows = {each.steps: {**scores(each), "time/seconds": 30.0 * each.steps} for each in (before, run)}
    run = logged(run, tmp_path_factory.mktemp("played"), {**rows, 11: {"time/seconds": 600.0}})
    with pytest.MonkeyPatch.context() as patch:
        assert abstract.DEEPEST == 5
        patch.setattr(abstract, "DEEPEST", 2)
        patch.setattr(abstract, "DEPTHS", (1,))
        with_programs(patch)
        return run, abstract.measure(run)


def test_scores_are_those_of_the_last_evaluation_and_more(played):
    run, measured = played
    (depth,) = run.config.system.acting.depths
    assert depth == 0
    last = float(np.mean(run.evaluate().returns))
    assert measured["scores"]["depth 0, epsilon 0.1"] == measured["curve"]["depth 0"][-1] == pytest.approx(last)
    assert measured["curve"]["depth 0"][0] != pytest.approx(last)
    assert set(measured["scores"]) == {"depth 0, epsilon 0.1", "depth 1, epsilon 0.1", "depth 0, epsilon 0"}
    for cell, acting in (
        ("depth 1, epsilon 0.1", TreeActing((1,), epsilon=0.1)),
        ("depth 0, epsilon 0", TreeActing((0,), epsilon=0.0)),
    ):
        other = replace(run, config=replace(run.config, system=replace(run.config.system, acting=acting)))
        assert measured["scores"][cell] == pytest.approx(float(np.mean(other.evaluate().returns)))
    assert len(set(measured["scores"].values())) > 1
    assert measured["updates"] == measured["curve"]["updates"][-1] == run.steps
    assert measured["minutes"] == 10


def record(final, half):
    """A seed whose scores are those given, planned or not."""
    final, half = float(final), float(half)
    curve = {"updates": [10, 20], "depth 0": [-5.0, final], "depth 3": [half, final + 1]}
    cells = {"depth 0, epsilon 0.1": final, "depth 3, epsilon 0.1": final + 1, "depth 5, epsilon 0.1": final + 2}
    return {"updates": 20, "minutes": 1.0, "curve": curve, "scores": {**cells, "depth 0, epsilon 0": -5.0}}


def test_scores_and_leads_are_tabulated_by_arm_and_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(abstract, "DEPTHS", (0, 3, 5))
    arms = {
        "CRAR": [record(-3, -4), record(-1, -4)],
        "cosine 1": [record(-2, -4), record(0, -4)],
        "cosine 3": [record(-2, -2), record(1, -4)],
        "L2 1": 2 * [record(1, 0)],
    }
    picture, table, leads = abstract.panels(arms, tmp_path, "fig")
    assert picture.stat().st_size
    scores = {(row["arm"], row["when"], row["depth"], row["epsilon"]): row for row in read(table)}
    assert len(scores) == len(read(table)) == 4 * 6
    assert scores["CRAR", "last", "0", "0.1"]["values"] == "-3.000 -1.000"
    assert float(scores["CRAR", "last", "0", "0.1"]["mean"]) == -2
    assert float(scores["CRAR", "last", "0", "0.1"]["normalised_score"]) == pytest.approx(3 / 6.8625, abs=1e-3)
    assert scores["L2 1", "mean of the curve", "3", "0.1"]["values"] == "1.000 1.000"  # of 0 and 2

    found = {(row["arm"], row["over"], row["when"], row["depth"], row["epsilon"]): row for row in read(leads)}
    assert len(found) == len(read(leads)) == (3 + 1) * 6

    def lead(*where):
        return [float(found[where][name]) for name in ("mean", "low_95", "high_95", "detectable")]

    assert lead("cosine 1", "CRAR", "last", "3", "0.1") == [1, 1, 1, 0]
    assert lead("L2 1", "CRAR", "last", "5", "0.1")[:3] == [3, 2, 4]
    assert lead("L2 1", "CRAR", "last", "0", "0.0")[0] == 0
    assert lead("cosine 3", "cosine 1", "last", "0", "0.1")[:3] == [0.5, 0, 1]
    assert lead("cosine 3", "cosine 1", "mean of the curve", "3", "0.1")[:3] == [0.75, 0.5, 1]
    assert found["cosine 3", "cosine 1", "mean of the curve", "3", "0.1"]["values"] == "1.000 0.500"
    picture, table, leads = abstract.controls(arms, tmp_path, "controls")
    assert picture.stat().st_size
    assert (len(read(table)), len(read(leads))) == (4 * 6, (3 + 1) * 6)


def test_leads_are_over_the_first_arm_whatever_its_name(tmp_path):
    arms = {"beta 1": [record(-3, -4), record(-1, -4)], "beta 0.2": [record(-5, -5), record(-5, -5)]}
    _, _, leads = abstract.controls(arms, tmp_path, "controls")
    assert {(row["arm"], row["over"]) for row in read(leads)} == {("beta 0.2", "beta 1")}
    assert read(leads)[0]["values"] == "-2.000 -4.000"


def test_slopes_agree_with_themselves_and_errors_grow_from_nothing(played, tmp_path, monkeypatch):
    monkeypatch.setattr(abstract, "DEEPEST", 2)
    *pictures, table = abstract.slopes({"CRAR": [played[1]]}, tmp_path, "cosine")
    assert len(pictures) == 3
    assert all(path.stat().st_size for path in pictures)
    by_depth = {(row["quantity"], int(row["depth"])): float(row["mean"]) for row in read(table)}
    assert len(by_depth) == 3 * 3
    assert by_depth["cosine", 0] == pytest.approx(1, abs=1e-4)
    assert by_depth["model-error", 0] == by_depth["plan-gap", 0] == 0
    assert by_depth["model-error", 2] > 0
    assert by_depth["plan-gap", 1] > 0


def test_an_imagined_walk_is_compared_within_an_episode(monkeypatch):
    """A model that is right about every step, on a walk whose episodes, of 3 to 10 steps, begin far from each other."""
    monkeypatch.setattr(abstract, "DEEPEST", 3)
    lengths = np.random.default_rng(0).integers(3, 11, size=350)
    last = np.zeros(2_000, bool)
    last[np.cumsum(lengths)[np.cumsum(lengths) <= 2_000] - 1] = True
    number, steps = np.concatenate([[0], np.cumsum(last)[:-1]]), np.arange(2_000)
    obs = np.stack([steps, 1_000 * number], axis=1).astype(np.float32)
    walk = Transition(obs, np.zeros(2_000, np.int32), None, None, obs + np.float32([[1, 0]]), last)
    walk = jax.tree.map(jnp.asarray, walk)
    monkeypatch.setattr(abstract, "random_transitions", lambda *_: walk)
    monkeypatch.setattr(abstract, "sight", lambda _: lambda encoder, obs: obs)

    plain, ahead = linear(np.zeros((4, 1)), np.zeros(1)), linear(np.zeros((4, 2)), np.array([1, 0]))
    value = linear(np.eye(2), np.zeros(2))
    model = abstract_model(value, ahead, plain, value)
    family = make("simple-maze")
    told = abstract.depth_report(model, family, jax.random.key(0))
    np.testing.assert_array_equal(told["model-error"], 0)
    wrong = replace(model, change=linear(np.zeros((4, 2)), np.array([2, 0])))
    errors = np.asarray(abstract.depth_report(wrong, family, jax.random.key(0))["model-error"])
    np.testing.assert_allclose(errors / errors[1], np.arange(4), rtol=1e-4)  # one unit further off with every step


def test_portraits_show_every_state(tmp_path, monkeypatch):
    with_programs(monkeypatch)
    records = {"simple maze": [abstract.portray(result())]}
    picture, table, summary = abstract.portraits(records, tmp_path, "space")
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


def test_a_clip_shows_what_is_seen_beside_the_abstract_state(tmp_path, monkeypatch):
    labels, frames = [], []
    monkeypatch.setattr(clips, "captioned", lambda image, *label: labels.append(label) or image)
    monkeypatch.setattr(clips.imageio, "imwrite", lambda out, images, **_: frames.append(images))
    run, steps = replace(result()), 30  # of the 500 of an episode
    program = copy(run.program)
    program.collector = replace(program.collector, env=replace(program.collector.env, horizon=steps))
    vars(run)["program"] = program
    shown = clips.render(run, tmp_path / "clip.gif", task=1, size=40)
    assert [episode["name"] for episode in shown["episodes"]] == ["depth 0"]
    episode = shown["episodes"][0]
    assert episode["length"] == len(episode["actions"]) == steps
    assert set(episode["actions"]) <= {"up", "down", "left", "right"}
    assert labels[0] == ("simple-maze: depth 0, and its abstract state", "start   return +0.0")
    assert labels[1][1] == f"step 1: {episode['actions'][0]}   return +0.0"
    assert frames[0].shape == (steps + 1 + clips.PAUSE_FRAMES, 40, 40 + 2 + 40, 3)


def test_what_is_drawn_of_an_abstract_state():
    pictures = np.stack([np.zeros((4, 2)), np.eye(4)[:, :2]])
    frames = spaces.seen(pictures, 8)
    assert frames.shape == (2, 8, 4, 3)
    assert frames[1, 0, 0].tolist() == [255, 255, 255]
    assert frames[0].max() == 0
    maps = np.zeros((1, 2, 2, 3))
    maps[0, 0, 1] = (1, -1, 5)
    image = spaces.abstract(maps, 4)[0]
    assert image[0, 3].tolist() == [255, 0, 255]
    assert image[3, 0].tolist() == [128, 128, 128]
    points = spaces.abstract(np.array([[0.0, 0.0], [1.0, 0.0]]), 100)
    assert points.shape == (2, 100, 100, 3)
    assert points[0, 50, 50].tolist() == points[1, 50, 90].tolist() == list(spaces._NOW)
