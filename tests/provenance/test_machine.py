"""The record of a run's surroundings, and the compilation cache across processes."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import metadyna
from metadyna.provenance import machine
from metadyna.provenance.machine import environment_record
from metadyna.runs import cache

ROOT = Path(__file__).parents[2]

COMPILE = """
import jax
import jax.numpy as jnp
from metadyna.runs.cache import enable_compilation_cache
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
print(enable_compilation_cache())
jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones((4, 4)))
print(events.count("/jax/compilation_cache/cache_hits"))
"""


def compile_in_new_process(cache_home: Path, **extra: str) -> tuple[str, int, str]:
    """Returns the folder, the number of cache hits, and stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache_home), **extra}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True)
    folder, hits = done.stdout.split()
    return folder, int(hits), done.stderr


def test_record_is_json_and_complete(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")
    record = environment_record()
    assert json.loads(json.dumps(record)) == record
    assert record["versions"]["metadyna"] == metadyna.__version__
    assert record["versions"]["jax"] == jax.__version__
    assert record["jax_backend"] == "cpu"
    assert record["xla_flags"] == "--xla_cpu_prefer_vector_width=512"
    assert len(record["devices"]) == len(jax.devices())
    assert record["cores"] >= 1
    assert record["memory_bytes"] > 2**28
    assert record["started_utc"].endswith("+00:00")


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("train", "train"),
        ("200,000, beta 0.2", "200,000, beta 0.2"),
        ("--system.model.widths", "--system.model.widths"),
        ("metadyna/pendulum-random-v0", "metadyna/pendulum-random-v0"),
        ("runs/first", "runs/first"),
        ("{here}/runs/first", "runs/first"),
        ("--out={here}/runs", "--out=runs"),
        ("{here}", "."),
        ("/elsewhere/disk/runs", "runs"),
        ("--out=/elsewhere/runs", "--out=runs"),
        ("/elsewhere/Some One/runs", "runs"),
        ("-I/elsewhere/runs", "-Iruns"),
        ("{home}", "~"),
        ("{home}/runs", "runs"),
        ("~", "~"),
        ("~someone", "~"),
        ("~/runs", "runs"),
        ("..", "~"),
        ("../other/runs", "runs"),
        ("runs/../../other", "other"),
        ("file:///elsewhere/data", "file:data"),
        ("{{'out': '/elsewhere/runs'}}", "{{'out': 'runs'}}"),
        ("runs in /elsewhere/runs", "runs in runs"),
    ],
)
def test_an_argument_keeps_nothing_of_the_folders_around_it(argument, kept, tmp_path, monkeypatch):
    home, here = tmp_path / "someone", tmp_path / "someone" / "work"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    assert machine.impersonal(argument.format(here=here, home=home)) == kept.format()
    monkeypatch.chdir(tmp_path)  # above the homes
    assert machine.impersonal(str(here / "runs")) == machine.impersonal("someone/work/runs") == "runs"
    monkeypatch.chdir(home)
    assert machine.impersonal("work/runs") == machine.impersonal("../someone/work/runs") == "work/runs"


PROGRAM = "from metadyna.provenance import machine; print(machine.command())"


def test_the_command_is_the_verb_or_the_program_and_its_arguments(tmp_path):
    folder = tmp_path / "someone" / "bin"
    folder.mkdir(parents=True)
    (folder / "program.py").write_text(PROGRAM)
    (folder / "metadyna").write_text(PROGRAM)
    arguments = ["train", "ppo", "--out", f"{folder}/a run", "--seed", "3"]

    def told(*words):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}
        words = [sys.executable, *words, *arguments]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    told_arguments = "train ppo --out 'someone/bin/a run' --seed 3\n"
    assert told(str(folder / "metadyna")) == f"metadyna {told_arguments}"
    assert told(str(folder / "program.py")) == f"python someone/bin/program.py {told_arguments}"
    assert told("-m", "program") == f"python -m program {told_arguments}"
    assert told("-c", PROGRAM) == f"python -c {told_arguments}"


def test_nothing_in_the_record_names_a_folder_or_a_user(tmp_path, monkeypatch):
    home = tmp_path / "someone"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "someone")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={home}/dump --xla_cpu_prefer_vector_width=512")
    monkeypatch.setattr(sys, "argv", [f"{home}/bin/metadyna", "train", "--out", f"{home}/runs"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    record = environment_record()
    assert record["command"] == "metadyna train --out runs"
    assert record["xla_flags"] == "--xla_dump_to=dump --xla_cpu_prefer_vector_width=512"
    text = json.dumps(record)
    assert "someone" not in text
    assert not re.search(r"(?<![\w./])[/~]\w", text)
    for place in (ROOT, Path.cwd(), sys.prefix):
        assert str(place) not in text


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_no_tracked_file_names_a_folder_of_a_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    absolute = re.compile(rb"(?<![\w.])/(home|root|tmp|work|Users)/")
    files = [ROOT / name for name in listed.split("\0") if name]
    assert len(files) > 100
    texts = {path: path.read_bytes() for path in files if path.is_file()}
    assert [path for path, text in texts.items() if b"\0" not in text and absolute.search(text)] == []


V2 = {"cgroup": "0::/job/step\n"}
V1 = {"cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n0::/other\n"}
V1_GROUP = "sys/cpu,cpuacct/job"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cgroup": "damaged\n"}, 8),
        (V2, 8),
        ({**V2, "sys/job/step/cpu.max": "max 100000\n"}, 8),
        ({**V2, "sys/job/step/cpu.max": "300000 100000\n"}, 3),
        ({**V2, "sys/job/step/cpu.max": "250000 100000\n"}, 3),
        ({**V2, "sys/job/step/cpu.max": "10000 100000\n"}, 1),
        ({**V2, "sys/job/step/cpu.max": "900000 100000\n"}, 8),  # more than it may run on
        ({**V2, "sys/job/step/cpu.max": "max 100000\n", "sys/job/cpu.max": "200000 100000\n"}, 2),
        ({**V2, "sys/job/step/cpu.max": "500000 100000\n", "sys/cpu.max": "200000 100000\n"}, 2),
        ({**V2, "sys/job/step/cpu.max": "damaged\n"}, 8),
        ({"cgroup": "0::/../on/the/host\n", "sys/cpu.max": "200000 100000\n"}, 2),
        ({**V1, f"{V1_GROUP}/cpu.cfs_quota_us": "-1\n", f"{V1_GROUP}/cpu.cfs_period_us": "100000\n"}, 8),
        ({**V1, f"{V1_GROUP}/cpu.cfs_quota_us": "200000\n", f"{V1_GROUP}/cpu.cfs_period_us": "50000\n"}, 4),
        ({**V1, "sys/memory/job/cpu.max": "100000 100000\n"}, 8),
    ],
)
def test_no_more_cores_are_used_than_the_quota_pays_for(files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.usable_cores(tmp_path / "cgroup", tmp_path / "sys") == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_process_on_one_core_starts_no_threads_for_others():
    script = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax
from metadyna import envs
from metadyna.provenance import machine
from metadyna.runs import seeds
seeds.use_cores(8)
assert len(jax.devices()) == 2, jax.devices()
assert machine.environment_record()["cores"] == 1
assert envs.make("inverted-pendulum").env._threads == 1
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, cwd=ROOT, timeout=120)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_git_state_is_that_of_this_package():
    state = machine._git_state()
    assert state is not None
    assert len(state["commit"]) == 40
    assert isinstance(state["dirty"], bool)


def test_a_checkout_that_does_not_hold_the_package_is_not_named(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine._git_state() is None  # no checkout at all
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "__init__.py").touch()
    assert machine._git_state() is None  # a checkout around an untracked package, such as a virtual environment
    monkeypatch.setenv("PATH", "")
    assert machine._git_state() is None


def test_programs_are_kept_between_processes(tmp_path):
    folder, hits, _ = compile_in_new_process(tmp_path)
    assert Path(folder).is_relative_to(tmp_path / "metadyna")
    assert hits == 0
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    num_programs = len(list(Path(folder).glob("*-cache")))
    assert num_programs > 0
    assert compile_in_new_process(tmp_path)[:2] == (folder, num_programs)


def test_a_cache_that_others_can_write_to_is_refused(tmp_path):
    (tmp_path / "metadyna").mkdir()
    (tmp_path / "metadyna").chmod(0o777)
    folder, _, stderr = compile_in_new_process(tmp_path)
    assert folder == "None"
    assert stderr.count("\n") == 1
    assert stderr.startswith("warning: compiled programs are not cached: others can write to ")


def test_a_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PermissionError, match="not a folder owned by this user"):
        cache._make_private(tmp_path)


def test_a_link_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(PermissionError, match="not a folder owned by this user"):
        cache._make_private(tmp_path / "link")


def test_an_impossible_cache_is_a_warning(tmp_path):
    (tmp_path / "metadyna").write_text("in the way")
    folder, _, stderr = compile_in_new_process(tmp_path)
    assert folder == "None"
    assert stderr.startswith("warning: compiled programs are not cached: ")


def test_a_folder_chosen_for_jax_is_left_alone(tmp_path):
    chosen = tmp_path / "chosen"
    folder, _, _ = compile_in_new_process(tmp_path, JAX_COMPILATION_CACHE_DIR=str(chosen))
    assert folder == str(chosen)
    assert not (tmp_path / "metadyna").exists()


def test_a_relative_cache_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache._cache_home() == tmp_path / ".cache"
