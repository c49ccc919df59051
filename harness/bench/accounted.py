"""Run a command and note its own CPU: `python accounted.py FILE COMMAND…`; a script of the hosts.

Noted is what the process and its threads used, not its children: read from its zombie, where the
kernel's account is complete. Added to FILE: user and system time in clock ticks.
Source: proc(5), /proc/pid/stat, fields 14 and 15; waitid(2), WNOWAIT.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> int:
    """Run it, with our own standard input and output, and end as it ended."""
    file, *argv = sys.argv[1:]
    pid = os.fork()
    if not pid:
        os.execv(argv[0], argv)  # noqa: S606 - no shell is wanted
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    with Path(file).open("a") as opened:
        opened.write(f"{fields[11]} {fields[12]}\n")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    raise SystemExit(main())
