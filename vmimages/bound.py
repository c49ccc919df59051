"""Commands that end with the process that started them, also when that is killed.

Host commands used: `setpriv`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def bound(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the command with which `argv` gets a SIGKILL when its parent dies, prctl(2).

    Else an apt-get of a killed builder would go on for minutes, and hold its lock against the next.
    """
    return ["setpriv", "--pdeathsig", "KILL", *(os.fspath(word) for word in argv)]
