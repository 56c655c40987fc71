"""The command line: every verb answers, and every bad input ends with one line and code 2."""

import json
import shutil
from dataclasses import replace

import pytest

from metadyna import cli, envs
from metadyna.experiments import figures
from metadyna.experiments.presets import PRESETS
from metadyna.runs import config, loop
from metadyna.systems import SYSTEMS
from tests.tiny import TINY, compiled_once, copy, home, sha256, trained  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture
def metadyna(capsys):
    """Run a command: its exit code, what it printed and what it complained."""

    def call(line, *more):
        words = [word.replace("RUN", str(trained().folder)) for word in line.split()]
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, *map(str, more)])
        printed, complained = capsys.readouterr()
        return stop.value.code, printed, complained

    return call


# --- reading


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("list", {"systems", "tasks", "presets", "figures"}),
        ("evaluate RUN", {"task", "split", "tasks", "step", "return", "interval", "seeds", "references"}),
        ("evaluate RUN --split train", {"task", "split", "tasks", "step", "return", "interval", "seeds", "references"}),
        ("inspect RUN", {"folder", "step", "iteration", "state_sha256", "seed_sha256", "config", "environment"}),
        ("plot RUN --out OUT.png", {"out", "arms"}),
        ("render RUN --out OUT.gif", {"out", "task", "problem", "instruction", "episodes"}),
    ],
)
def test_reading_verbs_speak_json_and_english(line, keys, metadyna, tmp_path):
    line = line.replace("OUT", str(tmp_path / "out"))
    code, printed, complained = metadyna(line)
    assert (code, complained) == (0, "")
    assert printed.strip()
    code, printed, complained = metadyna(line, "--json")
    assert (code, complained) == (0, "")
    assert keys <= json.loads(printed).keys()


def test_list_knows_everything(metadyna):
    listed = json.loads(metadyna("list --json")[1])
    assert listed["tasks"].keys() == envs.TASKS.keys()
    assert listed["presets"] == {system: list(presets) for system, presets in PRESETS.items()}
    assert set(PRESETS) == set(SYSTEMS)
    assert all("quick" in presets for presets in PRESETS.values())  # what `train` takes if it is told nothing
    assert listed["figures"].keys() == figures.FIGURES.keys()
    assert "96 test tasks" in listed["tasks"]["city-5x5"]


def test_a_system_without_presets_is_not_called_unknown(metadyna, monkeypatch):
    monkeypatch.delitem(PRESETS, "sac")
    code, _, complained = metadyna("train sac")
    assert code != 0
    assert complained.startswith("metadyna: system 'sac' has no presets")


def test_evaluate_agrees_with_python(metadyna):
    report = json.loads(metadyna("evaluate RUN --json")[1])
    assert report["return"] == pytest.approx(float(trained().evaluate().returns[0, -1].mean()))
    assert report["references"]["optimal"] == pytest.approx(0.7)
    assert report["interval"] is None
    assert json.loads(metadyna("inspect RUN --json")[1])["state_sha256"] == sha256(trained())


def test_plots_group_runs_by_what_differs(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    other = replace(TINY, system=replace(TINY.system, penalty=0.5))
    for folder, settings in zip(folders, (TINY, replace(TINY, seed=7), other), strict=True):
        config.save(settings, folder)
    assert cli.plot_arms(folders[:2]) == {"dream": folders[:2]}
    assert cli.plot_arms(folders) == {"penalty=0.1": folders[:2], "penalty=0.5": folders[2:]}


def test_version_and_usage(metadyna):
    assert metadyna("--version")[:2] == (0, "0.1.0\n")
    for line in ("", "--help"):
        code, printed, _ = metadyna(line)
        assert code == 0
        assert all(f"\n  {verb} " in printed for verb in cli.VERBS)


@pytest.mark.parametrize("verb", [*cli.VERBS, "train dream --preset smoke", "resume RUN"])
def test_every_verb_has_help(verb, metadyna):
    code, printed, complained = metadyna(verb, "--help")
    assert (code, complained) == (0, "")
    assert verb.split()[0] in printed
    if len(verb.split()) > 1:
        # Which system, and which of several parts, is for the preset to say.
        fields = [name for name in config.flat(TINY) if name.split(".")[-1] not in ("format", "name", "kind")]
        assert [name for name in fields if f"--{name.replace('_', '-')}" not in printed] == []


# --- doing


def test_train_then_resume_extends_the_run(metadyna, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "preset", lambda system, name: TINY)
    code, printed, complained = metadyna(f"train dream --steps=100 --seed 0 --out {tmp_path}/run")
    assert (code, complained) == (0, "")
    assert f"see metadyna evaluate {tmp_path}/run" in printed
    assert config.load(tmp_path / "run") == replace(TINY, steps=100)
    code, printed, complained = metadyna(f"resume {tmp_path}/run --steps 400")
    assert (code, complained) == (0, "")
    assert "changed steps: 100 -> 400" in printed
    assert "test return" in printed
    assert sha256(loop.load(tmp_path / "run")) == sha256(trained())


def test_a_damaged_checkpoint_is_noted_on_stderr(metadyna, tmp_path):
    folder = copy(tmp_path)
    newest = max((folder / "checkpoints").iterdir())
    (newest / "SHA256SUMS").write_text("")
    code, printed, complained = metadyna(f"evaluate {folder}")
    assert code == 0
    assert "95% over seeds" in printed
    assert complained.startswith("note: skipped the checkpoint")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("trian", "unknown verb 'trian'; did you mean train"),
        ("train", "train needs a system first; there are: crar, dream"),
        ("train dreem", "unknown system 'dreem'; did you mean dream?"),
        ("train dream --preset smok", "unknown preset 'smok'; did you mean smoke?"),
        ("train dream --preset", "--preset needs a value"),
        ("train dream --preset smoke --task city-5x", "unknown task 'city-5x'; did you mean city-5x5"),
        ("train dream --preset smoke --steps 0", "Config.steps = 0 is out of range; it must lie in [1, 2000000000]"),
        ("train dream --preset smoke --steps 3000000000", "Config.steps = 3000000000 is out of range"),
        ("train dream --preset smoke --system.explore.batch 0", "DDQN.batch = 0 is out of range; it must lie in ["),
        (
            "train dream --preset smoke --system.context.noise nan",
            "EncoderDecoder.noise = nan is out of range; it must lie in [",
        ),
        ("train dream --preset smoke --eval-every 10000000000", "Config.eval_every = 10000000000 is out of range; it"),
        (
            "train dream --preset smoke --checkpoint-seconds 1e400",
            "Config.checkpoint_seconds = inf is out of range",
        ),
        ("train dream --preset smoke --stop-at nan", "Config.stop_at = nan is out of range; it must lie in ["),
        (
            "train sac --system.networks.widths 64 0",
            "ActorCritic.widths[1] = 0 is out of range; it must lie in [1, 65536]",
        ),
        ("train ppo --system.ppo.minibatches 9000", "PPO.minibatches = 9000 leaves less than 2 rows each"),
        ("train dream --preset smoke --steps many", "invalid literal for int() with base 10: 'many'"),
        ("train dream --preset smoke --steps", "Missing value for argument '--steps'"),
        ("train dream --preset smoke --stepz 5", "--stepz"),
        ("train dream --preset smoke --system.exploration learnt", "Expected one of ('learned', 'random', 'none')"),
        ("train dream --preset smoke --out RUN", "already holds a run; continue it with `metadyna resume"),
        ("train dream --preset smoke --out HOME", "is not an empty folder"),
        ("resume", "resume needs a run folder first"),
        ("resume HOME", "is not a run folder: it has no config.json"),
        ("resume HOME/nowhere", "is not a run folder"),
        ("resume RUN --chunk 6", "was started with other settings: chunk: 5 -> 6"),
        ("resume RUN --system.penalty 0.3", "system.penalty: 0.1 -> 0.3"),
        ("evaluate", "metadyna evaluate --help"),
        ("evaluate HOME", "is not a run folder"),
        ("evaluate RUN --split tset", "unknown split 'tset'"),
        ("inspect HOME", "is not a run folder"),
        ("inspect RUN --jsn", "--jsn"),
        ("plot --out HOME/x.png", "plot needs at least one run folder"),
        ("plot RUN", "--out"),
        ("plot HOME --out HOME/x.png", "is not a run folder"),
        ("plot RUN --out HOME/x.png --metric eval/retrun", "no metric 'eval/retrun'"),
        ("plot RUN --out HOME/x.xyz", "x.xyz does not end in .png, .pdf or .svg"),
        ("plot RUN --out RUN/config.json/x.png", "cannot write"),
        ("render RUN --out HOME/x.mp4", "does not end in .gif"),
        ("render RUN --out HOME/x.gif --task 96", "task 96 is out of range; the test split has tasks 0 to 95"),
        ("render RUN --out HOME/x.gif --task -1", "task -1 is out of range"),
        ("render RUN --out HOME/x.gif --seed 1", "seed index 1 is out of range; the run has 1, counted from 0"),
        ("render RUN --out HOME/x.gif --split all", "unknown split 'all'"),
        ("render HOME --out HOME/x.gif", "is not a run folder"),
        ("reproduce dream-buss", "unknown figure 'dream-buss'; did you mean dream-bus?"),
        ("reproduce dream-bus --budget fulll", "unknown budget 'fulll'; did you mean full"),
        ("reproduce dream-bus --seeds 1", "needs at least 2"),
        ("reproduce dream-bus --seeds 0", "needs at least 2"),
        ("doctor --jsno", "--jsno"),
    ],
)
def test_bad_input_is_one_line_and_code_two(line, told, metadyna, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nothing = home() / "nothing"
    nothing.mkdir(exist_ok=True)
    (nothing / "file").touch()
    code, printed, complained = metadyna(line.replace("HOME", str(nothing)))
    assert (code, printed) == (2, "")
    assert told in complained
    assert complained.startswith("metadyna: ")
    assert complained.count("\n") == 1
    assert [path.name for path in nothing.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_before_training_is_no_traceback(metadyna, monkeypatch):
    def interrupt(words):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "list", interrupt)
    assert metadyna("list") == (130, "", "metadyna: interrupted\n")


def test_a_run_that_was_stopped_says_how_to_go_on(metadyna, tmp_path, monkeypatch):
    folder = shutil.copytree(trained().folder, tmp_path / "run")
    monkeypatch.setattr(loop, "resume", lambda *arguments: replace(trained(), interrupted=True, notes=("careful",)))
    code, printed, complained = metadyna(f"resume {folder}")
    assert code == 130
    assert "go on with: metadyna resume" in printed
    assert complained == "note: careful\n"
