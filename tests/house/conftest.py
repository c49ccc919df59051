"""A copy of the tree to plant an offence in, and the tools that must see it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import command

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Checkout:
    """A copy of the tree without its history."""

    root: Path

    def plant(self, path: str, text: str) -> None:
        """Add `text` at the end of a file, which is made if it is not there."""
        with (self.root / path).open("a") as file:
            file.write(f"\n{text}\n")

    def run(self, *argv: str, stdin: str | None = None) -> command.Completed:
        """Run a tool of our virtual environment inside the copy; any status is fine."""
        return command.run(
            [str(BIN / argv[0]), *argv[1:]],
            cwd=self.root,
            ok=None,
            input=None if stdin is None else stdin.encode(),
            env={"PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", "COLUMNS": "200"},
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Return a copy of btrsync, harness, vmimages and their settings, free to be spoiled."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("btrsync", "harness", "vmimages"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return Checkout(tmp_path)
