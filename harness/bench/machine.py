"""What was measured on, and with which versions of everything that took part.

Host commands used: `btrbk`, `btrfs`, `git`, `rsync`, `ssh`.
"""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

from harness import command

REPOSITORY = Path(__file__).parents[2]
VERSIONS = {
    "btrfs-progs": ["btrfs", "--version"],
    "openssh": ["ssh", "-V"],
    "btrbk": ["btrbk", "--version"],
    "rsync": ["rsync", "--version"],
}


def facts() -> dict[str, object]:
    """Return the machine and the versions as the fields of a JSON object."""
    processor = Path("/proc/cpuinfo").read_text(errors="replace")
    model = re.search(r"(?m)^model name\s*: (.*)$", processor)
    memory = re.search(r"(?m)^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "processor": model[1] if model else platform.machine(),
        "has_aes": bool(re.search(r"(?m)^(flags|Features)\s*:.*\baes\b", processor)),
        "memory_gib": round(int(memory[1]) / (1 << 20), 1) if memory else None,
        "python": platform.python_version(),
        "versions": {name: _version(argv) for name, argv in VERSIONS.items()},
        "commit": _first_line(["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(argv: list[str]) -> str:
    words = re.search(r"\d+(\.\d+)+\w*", _first_line(argv))
    return words[0] if words else "none"


def _first_line(argv: list[str]) -> str:
    try:
        said = command.run(argv, ok=None)
    except FileNotFoundError:
        return ""
    return (said.stdout + said.stderr).strip().partition("\n")[0]
