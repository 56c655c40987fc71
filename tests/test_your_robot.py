"""The page "your own robot" does what it says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your-robot.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    metadyna ")]

_MODEL = "--system.model.widths 8 --system.model.members 2 --system.model.elites 2 --system.model.weight_decay 0 0"
SMALL = {
    "mbpo": f"{_MODEL} --system.fit.max_updates 5 --system.warmup 50 --system.refresh 50 --system.branches 4"
    " --system.updates 1 --system.networks.widths 8 --eval_every 100",
    "sac": "--system.warmup 50 --system.networks.widths 8 --chunk 50 --eval_every 100",
}
"""Settings that leave the path as it is and make it short."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robot")
    (folder / "slider.py").write_text(BLOCKS[0])
    return folder


def call(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_the_commands_that_are_run_here():
    verbs = [shlex.split(command)[1] for command in COMMANDS]
    assert verbs == ["train", "evaluate", "plot", "train", "plot"]
    assert len(BLOCKS) == 2


def test_from_file_to_plot(folder):
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        if words[0] == "train":
            words[words.index("3000")] = "150"
            words += shlex.split(SMALL[words[1]])
        call(folder, "-m", "metadyna", *words)
    assert (folder / "slider.png").stat().st_size > 5_000
    assert (folder / "both.png").stat().st_size > 5_000


def test_from_python(folder):
    short = BLOCKS[1].replace("steps=1_500", "steps=120, chunk=60, eval_every=120")
    assert short != BLOCKS[1]
    assert float(call(folder, "-c", short).splitlines()[-1]) < 0  # the last line is the evaluation


def test_gymnasium_finds_nothing_wrong(folder):
    check = re.search(r'python -c "(.*)"', PAGE)
    assert check
    call(folder, "-c", check[1])
