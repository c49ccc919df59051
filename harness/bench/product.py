"""The tool as a user has it: a wheel in a virtual environment of its own, nothing else installed there.

Measured in the developers' environment it starts slower: an editable installation and the
libraries of tests and linters are looked through at every start.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness import command

PROJECT = Path(__file__).parents[2]
PLACE = PROJECT / ".tox" / "product"
INSTALL_S = 600


def installed() -> Path:
    """Install the project from this tree, anew each time, and return the path of its `btrsync`.

    Raises CommandFailed where pip fails, for want of a network for example.
    """
    command.run([sys.executable, "-m", "venv", "--clear", PLACE], timeout_s=INSTALL_S)
    pip: list[str | Path] = [
        PLACE / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    command.run([*pip, PROJECT], timeout_s=INSTALL_S)
    # What a distribution's package would not have either.
    command.run(
        [PLACE / "bin" / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"],
        timeout_s=INSTALL_S,
    )
    return PLACE / "bin" / "btrsync"
