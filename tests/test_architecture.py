"""The map of the package is true: every folder stands in it, and imports point up it only."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
LOW = {"errors", "settings", "types"}
"""What everybody may import."""


def imported(path):
    """Folders and modules of the package that a file imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("metadyna."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "metadyna":
            yield from (alias.name for alias in node.names)


def test_every_folder_is_explained():
    there = {path.parent.name for path in (ROOT / "metadyna").glob("*/__init__.py")}
    assert set(FOLDERS) == there
    assert len(FOLDERS) == len(there)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_up_the_map(folder):
    above = {*FOLDERS[: FOLDERS.index(folder) + 1], *LOW}
    for path in (ROOT / "metadyna" / folder).glob("*.py"):
        assert set(imported(path)) <= above, path.name


def test_no_system_imports_another():
    for path in (ROOT / "metadyna" / "systems").glob("[a-z]*.py"):
        assert "systems" not in set(imported(path)), path.name
