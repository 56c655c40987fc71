"""Figures: what is drawn, not how it looks."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from metadyna.errors import UserError
from metadyna.pictures import plots
from metadyna.runs.log import RunLog


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Figures as they were when saved."""
    figures = []
    save = Figure.savefig

    def remember(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def make_run(folder: Path, steps, values, metric: str = "eval/return") -> Path:
    with RunLog(folder) as run_log:
        for step, value in zip(steps, values, strict=True):
            run_log.write(step, {metric: value})
            run_log.write(step, {"loss": 0.0})
    return folder


def test_learning_curves_draw_mean_seeds_and_references(tmp_path, drawn):
    arms = {
        "floats": [
            make_run(tmp_path / "a", [0, 10, 20], [0.0, 1.0, 2.0]),
            make_run(tmp_path / "b", [0, 20], [2.0, 6.0]),
        ],
        "lists": [make_run(tmp_path / "c", [0, 20], [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])],
        "single": [make_run(tmp_path / "d", [0, 20], [1.0, 1.0])],
    }
    out = tmp_path / "figures" / "curves.png"
    plots.learning_curves(arms, out, references={"optimal": 7.0, "random": -1.0}, title="T", ylabel="return")
    assert out.read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    means = {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}
    np.testing.assert_allclose(means["floats (2 seeds)"], [[0, 1], [10, 2.5], [20, 4]])
    np.testing.assert_allclose(means["lists (3 seeds)"], [[0, 1], [20, 4]])
    assert "single (1 seed)" in means
    assert len(axes.lines) == 3 + 6 + 2  # means, seeds, references
    assert {text.get_text() for text in axes.texts} == {"optimal", "random"}


def test_curves_use_the_common_range(tmp_path, drawn):
    runs = [make_run(tmp_path / "a", [0, 10], [0.0, 10.0]), make_run(tmp_path / "b", [5, 30], [5.0, 30.0])]
    plots.learning_curves({"arm": runs}, tmp_path / "out.svg")
    (mean,) = (line for line in drawn[0].axes[0].lines if line.get_label() == "arm (2 seeds)")
    np.testing.assert_allclose(mean.get_xydata(), [[5, 5], [10, 10]])


def test_a_seed_that_has_stopped_is_drawn_at_its_own_steps(tmp_path, drawn):
    with RunLog(tmp_path) as log:
        for steps, values in (([10, 10], [0.0, 1.0]), ([20, 20], [1.0, 2.0]), ([20, 40], [1.0, 4.0])):
            log.write(steps, {"eval/return": values, "steps_per_second": 1.0})
    plots.learning_curves({"arm": [tmp_path]}, tmp_path / "out.png")
    first, second, mean, *_ = (line.get_xydata().tolist() for line in drawn[0].axes[0].lines)
    assert first == [[10, 0], [20, 1]]
    assert second == [[10, 1], [20, 2], [40, 4]]
    assert mean == [[10, 0.5], [20, 1.5]]


def test_reference_labels_do_not_overlap(tmp_path, drawn):
    run = make_run(tmp_path / "a", [0, 10], [0.0, 10.0])
    references = {f"level {i}": value for i, value in enumerate([9.9, 10.0, 10.0, 0.1, 5.0, 10.2])}
    plots.learning_curves({"arm": [run]}, tmp_path / "out.png", references=references)
    boxes = [Text.get_window_extent(text) for text in drawn[0].axes[0].texts]  # without the leader lines
    edges = sorted((box.y0, box.y1) for box in boxes)
    assert len(edges) == 6
    assert all(below[1] <= above[0] for below, above in pairwise(edges))


def test_spread_moves_only_what_is_close():
    assert plots._spread([0.1, 0.5, 0.9], 0.2) == [0.1, 0.5, 0.9]
    assert plots._spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert plots._spread([0.0, 0.5, 0.5, 0.55], 0.1) == pytest.approx([0.0, 0.41667, 0.51667, 0.61667], abs=1e-4)
    assert plots._spread([], 0.1) == []


def test_bars_draw_means_seeds_and_intervals(tmp_path, drawn):
    arms = {"a": [1.0, 2.0, 3.0], "b": np.array([-4.0])}
    plots.bars(arms, tmp_path / "bars.pdf", references={"optimal": 5.0}, title="T", ylabel="y")
    (axes,) = drawn[0].axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, -4.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a\n(3 seeds)", "b\n(1 seed)"]
    assert (tmp_path / "bars.pdf").read_bytes().startswith(b"%PDF")


def test_pairs_are_dots_about_the_line_of_equals(tmp_path, drawn):
    quantities = {"cost": [[1.0] * 9 + [3.0], [2.0] * 9 + [-90.0]], "return": [[4.0, 5.0, 6.0], [4.0, 6.0, 5.0]]}
    plots.pairs(quantities, tmp_path / "pairs.png", "title", "other", "one")
    cost, returns = drawn[0].axes
    for panel, (x, y) in zip((cost, returns), quantities.values(), strict=True):
        (dots,) = panel.collections
        np.testing.assert_array_equal(dots.get_offsets(), np.transpose([x, y]))
        (equal,) = panel.lines
        np.testing.assert_array_equal(equal.get_xdata(), equal.get_ydata())
        assert panel.get_xlabel() == "other"
    assert (
        (cost.get_xscale(), returns.get_xscale()) == (cost.get_yscale(), returns.get_yscale()) == ("symlog", "linear")
    )
    assert cost.get_ylabel() == "one"


def test_pyplot_is_never_touched():
    assert "pyplot" not in Path(plots.__file__).read_text().replace("no pyplot", "")


def test_missing_data_is_one_clear_error(tmp_path):
    run = make_run(tmp_path / "a", [0, 10], [0.0, 10.0])
    with pytest.raises(UserError, match=r"no metric 'eval/retrun' in .*it has: eval/return, loss"):
        plots.learning_curves({"arm": [run]}, tmp_path / "out.png", metric="eval/retrun")
    with pytest.raises(UserError, match="'arm' has no runs"):
        plots.learning_curves({"arm": []}, tmp_path / "out.png")
    later = make_run(tmp_path / "b", [20, 30], [0.0, 10.0])
    with pytest.raises(UserError, match="share no steps"):
        plots.learning_curves({"arm": [run, later]}, tmp_path / "out.png")
    with pytest.raises(UserError, match="cannot write"):
        plots.bars({"a": [1.0]}, run / "metrics.jsonl" / "out.png")
    assert not (tmp_path / "out.png").exists()
