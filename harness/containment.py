"""Running a whole session in namespaces of its own, so that a SIGKILL of it leaves nothing behind."""

from __future__ import annotations

import os

CONTAINED_VARIABLE = "BTRSYNC_CONTAINED"


def is_contained() -> bool:
    """Whether this process runs in a containment."""
    return bool(os.environ.get(CONTAINED_VARIABLE))
