"""Owners and modes of files, as values to compare."""

from __future__ import annotations

from typing import Any


def owners_and_mode(machine: Any, path: str) -> str:
    """Return "root:root 0700 directory", links followed; "missing" if there is nothing."""
    said = machine.run("stat --dereference --format '%%U:%%G %%04a %%F' -- %s", path)
    return said.stdout.strip() if said.rc == 0 else "missing"


def who_may_write(machine: Any, path: str) -> str:
    """Return who may write something besides its owner: "root alone", or the owners and the mode."""
    shown = owners_and_mode(machine, path)
    if not shown.startswith("root:"):
        return shown
    mode = int(shown.split()[1], 8)
    return shown if mode & 0o022 else "root alone"
