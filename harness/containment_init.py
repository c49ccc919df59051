"""The inside of a containment: makes its mounts its own, mounts its /proc and becomes the command.

Runs as a script, the child of the containment's first process (tini). argv[1:] is the command.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from harness.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount, own_root


def main() -> None:
    """Prepare the namespace and become the command; an OSError says what could not be done."""
    root, here = (os.open(path, os.O_PATH | os.O_CLOEXEC) for path in ("/", "."))
    own_root()
    # Back into the chroot, if it was one.
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(here)
    mount("containment-proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - it becomes the command, and starts none


if __name__ == "__main__":
    main()
