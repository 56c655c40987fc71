"""Metrics: each step once through kills and resumes; progress that a log file can hold."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from metadyna.errors import UserError
from metadyna.runs import log
from metadyna.runs.log import Progress, RunLog, read_metrics

ROOT = Path(__file__).parents[2]


def events(folder: Path) -> list[Event]:
    """Read TensorBoard's event files: records of length, checksum, data, checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            record, data = data[12 : 12 + length], data[16 + length :]
            found.append(Event.FromString(record))
    return found


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    return [(event.step, value.tag, value.simple_value) for event in events(folder) for value in event.summary.value]


def test_rows_come_back_as_written(tmp_path):
    with RunLog(tmp_path / "new" / "run") as run_log:
        run_log.write(10, {"eval/return": -1.5, "loss": jnp.float32(0.25)})
        run_log.write(20, {"eval/return": [1.0, 3.0], "loss": np.array([0.5, jnp.inf])})
    assert read_metrics(tmp_path / "new" / "run") == [
        {"step": 10, "eval/return": -1.5, "loss": 0.25},
        {"step": 20, "eval/return": [1.0, 3.0], "loss": [0.5, float("inf")]},
    ]
    assert scalars(tmp_path / "new" / "run") == [
        (10, "eval/return", -1.5),
        (10, "loss", 0.25),
        (20, "eval/return", 2.0),
        (20, "loss", float("inf")),
    ]


def test_a_matrix_is_no_metric(tmp_path):
    with RunLog(tmp_path) as run_log, pytest.raises(ValueError, match="metric loss has shape"):
        run_log.write(1, {"loss": np.zeros((2, 2))})


def test_each_line_is_on_the_disk_when_write_returns(tmp_path):
    with RunLog(tmp_path) as run_log:
        for step in range(3):
            run_log.write(step, {"x": step})
            assert [row["step"] for row in read_metrics(tmp_path)] == list(range(step + 1))


def test_resume_has_each_step_once(tmp_path):
    with RunLog(tmp_path) as run_log:
        for step in (10, 20, 30, 40):
            run_log.write(step, {"x": 0})
    with RunLog(tmp_path, resume_step=20) as run_log:
        for step in (30, 40, 50):
            run_log.write(step, {"x": 1})
    assert [(row["step"], row["x"]) for row in read_metrics(tmp_path)] == [(10, 0), (20, 0), (30, 1), (40, 1), (50, 1)]
    restarts = [event.step for event in events(tmp_path) if event.session_log.status == event.session_log.START]
    assert restarts == [21]  # TensorBoard drops what it has from there on
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.parametrize("resume_step", [None, 20])
@pytest.mark.parametrize("torn", ['{"step": 30, "x": 1', '{"step"', "[1]", "\ufffd", '{"x": 1.0}'])
def test_a_torn_last_line_is_dropped(tmp_path, torn, resume_step):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "x": 1.0}\n{"step": 20, "x": 2.0}\n' + torn)
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]
    with RunLog(tmp_path, resume_step) as run_log:
        run_log.write(30, {"x": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30]


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "x": 1.0}')
    with RunLog(tmp_path) as run_log:
        run_log.write(20, {"x": 2})
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]


def test_damage_within_the_file_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\ngarbage\n{"step": 20}\n')
    with pytest.raises(UserError, match="line 2 is not a row of metrics"):
        read_metrics(tmp_path)


def test_no_metrics_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"no metrics in .*absent: No such file"):
        read_metrics(tmp_path / "absent")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"metrics\.jsonl is empty"):
        read_metrics(tmp_path)


def test_an_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: Not a directory"):
        RunLog(tmp_path / "file" / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_one_clear_error(tmp_path):
    with RunLog(tmp_path) as run_log:
        run_log._file.close()
        run_log._file = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 (the log closes it)
        with pytest.raises(UserError, match="No space left on device"):
            run_log.write(1, {"x": 1})


LOG_FOREVER = """
import sys
from pathlib import Path
from metadyna.runs.log import RunLog
run_log, step = RunLog(Path(sys.argv[1])), 0
while True:
    step += 1
    run_log.write(step, {"x": step})
    print(step, flush=True)
"""


def test_sigkill_loses_no_line_that_was_written(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOG_FOREVER, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(100):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        reported = process.stdout.read().split()
    steps = [row["step"] for row in read_metrics(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 100 + len(reported)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(log.time, "monotonic", lambda: self.now)


def test_plain_progress_prints_seldom_and_at_the_end(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Progress(500_000) as progress:
        for step in range(1_000, 31_000, 1_000):
            clock.now += 1
            progress.update(step, -1.5234 if step == 2_000 else None)
    assert capsys.readouterr().out.splitlines() == [
        "step 10,000/500,000  1,000 steps/s  eta 8m10s  return -1.523",
        "step 20,000/500,000  1,000 steps/s  eta 8m00s  return -1.523",
        "step 30,000/500,000  1,000 steps/s  eta 7m50s  return -1.523",
        "step 30,000/500,000  1,000 steps/s  took 30s  return -1.523",
    ]


def test_plain_progress_of_a_resumed_run_counts_its_own_steps(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Progress(1_000, start=900) as progress:
        clock.now += 20
        progress.update(900)
        clock.now += 20
        progress.update(1_000, 2.0)
    assert capsys.readouterr().out.splitlines() == [
        "step 900/1,000  0 steps/s  eta unknown",
        "step 1,000/1,000  5 steps/s  eta 0s  return 2",
        "step 1,000/1,000  2 steps/s  took 40s  return 2",
    ]


def test_no_progress_prints_nothing(capsys):
    with Progress(10, enabled=False) as progress:
        progress.update(10, 1.0)
    assert capsys.readouterr().out == ""


def test_bar_shows_step_rate_and_return(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(12_000, enabled=True) as progress:
        progress.update(6_000, -1.25)
    out = capsys.readouterr().out
    assert re.search(r"6000/12000 +[\d,]+ steps/s +eta .*return -1.25", out)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (113.0, "1m53s"), (59.7, "1m00s"), (7500.0, "2h05m"), (1e12, "unknown")]
)
def test_durations(seconds, text):
    assert log._duration(seconds) == text
