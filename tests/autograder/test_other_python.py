"""Releases do not depend on the Python that builds them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autograder import suite

BUILDING = ("typer", "rich", "pydantic", "msgspec", "nbgrader", "jupytext")
"""What `autograder build` needs; it imports neither torch nor transformers."""


def other_python() -> str:
    """Another supported interpreter of this machine."""
    for minor in (12, 13, 11):
        named = shutil.which(f"python3.{minor}")
        installed = (Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python3.{minor}")
        for found in [*([named] if named else []), *map(str, installed)]:
            command = [found, "-c", "import venv, ensurepip"]
            if (
                minor != sys.version_info.minor
                and subprocess.run(command, capture_output=True, check=False).returncode == 0
            ):
                return found
    pytest.skip("no second Python (3.11 or newer, with venv) on this machine to build with")


def test_another_python_builds_the_same_bytes(tmp_path: Path) -> None:
    """`build --check` holds on a second Python version, in an environment without torch."""
    root = suite.repository()
    subprocess.run([other_python(), "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(root / "constraints.txt"), *BUILDING], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", str(root)], check=True)
    done = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "autograder"), "build", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is up to date" in done.stdout
