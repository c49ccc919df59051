"""Entering a host of a session that runs in another terminal: `python -m harness enter PID HOST`."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from harness import containment, processes
from harness.command import SYSTEM_PATH

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

INIT_NAME = "host_init.py"


def hosts_of(keeper: int) -> dict[str, int]:
    """Return the hosts of a session by name, with a pid inside each, as seen from here.

    keeper: the pid of the session, or of what keeps its containment.
    """
    found = {}
    for info in processes.descendants(keeper).values():
        for place, word in enumerate(info.argv):
            if place > 0 and word.endswith(INIT_NAME) and "python" in info.argv[0].rpartition("/")[2]:
                name = str(json.loads(info.argv[place + 1])["name"])
                found[name] = info.pid
    return found


def enter(keeper: int, name: str, argv: Sequence[str] = ()) -> NoReturn:
    """Become a shell (or `argv`) inside a host. Raises LookupError if there is no such host."""
    hosts = hosts_of(keeper)
    if name not in hosts:
        raise LookupError(f"session {keeper} has no host {name}; it has: {', '.join(hosts) or 'none'}")
    words = ["nsenter", "-t", str(hosts[name]), "-n", "-m", "-p", "-u", "-i", "--"]
    words += argv or ["/bin/bash", "-l"]
    inside = {"PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb")}
    os.execvpe(words[0], words, inside)  # noqa: S606 - it becomes the command, and starts none


def hint(names: Iterable[str]) -> str:
    """Return the lines that tell a person how to enter hosts of this very session."""
    python = sys.executable
    return "\n".join(f"    {python} -m harness enter {containment.keeper_pid()} {name}" for name in names)
