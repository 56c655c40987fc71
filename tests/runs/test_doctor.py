"""The doctor: looks at everything, and says what is bad."""

import json

import pytest

from metadyna import cli
from metadyna.runs import cache, doctor


def test_a_sound_machine_is_found_sound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checks = {check.name: check for check in doctor.examine(tmp_path)}
    names = {"versions", "machine", "devices", "matrix product", "compilation cache", "disk", "this folder"}
    assert names | {"environment"} == checks.keys()
    assert all(check.good for check in checks.values() if check.name != "disk")
    assert "jax " in checks["versions"].finding
    assert list(tmp_path.iterdir()) == []


def test_a_missing_cache_is_bad_and_decides_the_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(cache, "enable_compilation_cache", lambda: None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "--json"])
    assert stop.value.code == 1
    bad = [check["name"] for check in json.loads(capsys.readouterr().out) if not check["good"]]
    assert "compilation cache" in bad


def test_a_folder_that_cannot_be_written_is_bad(monkeypatch):
    def refuse(**where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = {check.name: check for check in doctor.examine(None)}["this folder"]
    assert (check.good, check.finding) == (False, "cannot be written: Permission denied")
