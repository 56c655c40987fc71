"""Tables: numbers of seeds, means, both intervals, and the values."""

import numpy as np
import pytest

from metadyna.experiments import tables
from metadyna.experiments.tables import Row
from metadyna.runs import stats
from tests.experiments.reading import read


def test_a_row_has_its_mean_both_intervals_and_its_values(tmp_path):
    values = np.array([1.0, 2.0, 6.0])
    rows = [Row(["a", 3], values, ["words", 0.12345]), Row(["b", "c"], [4.0], ["", 0.0])]
    path = tables.write(tmp_path / "table.csv", ["arm", "step"], rows, ".3g", ["said", "known"])
    several, one = read(path)
    assert list(several) == [
        "arm", "step", "seeds", "mean", "low_95", "high_95", "t_low_95", "t_high_95", "said", "known", "values",
    ]  # fmt: skip
    assert [several[name] for name in ("arm", "step", "seeds", "mean", "values")] == ["a", "3", "3", "3", "1 2 6"]
    assert (several["said"], several["known"]) == ("words", "0.123")
    low, high = stats.bootstrap_interval(values, stats.mean)
    assert [float(several[name]) for name in ("low_95", "high_95")] == pytest.approx([low, high], abs=0.01)
    half = 4.30265 * np.std(values, ddof=1) / 3**0.5  # t(2) at 97.5 %
    assert [float(several[name]) for name in ("t_low_95", "t_high_95")] == pytest.approx([3 - half, 3 + half], abs=0.05)
    assert [one[name] for name in ("seeds", "mean", "low_95", "t_high_95", "values")] == ["1", "4", "nan", "nan", "4"]


@pytest.mark.parametrize("row", [Row(["a"], [1.0]), Row(["a", "b"], [1.0], [2.0])], ids=["too few", "too many"])
def test_a_row_has_a_cell_for_every_column(row, tmp_path):
    with pytest.raises(ValueError, match="argument 2"):
        tables.write(tmp_path / "table.csv", ["arm"], [row], extras=["known"])
