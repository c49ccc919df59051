"""Whose turn it is in a client's directory: one run at a time, with all the sessions that it opens.

The first session of a run holds `.lock`. Other sessions of the same run share the lock of the directory
itself, which a new run has for itself while it sweeps what dead ones left: it waits until nobody holds
either. A `btrfs receive` that outlived its server counts, for it has inherited its server's lock.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from btrsync.errors import RefusedError
from btrsync.system.lock import Lock, directory_lock, evict, holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK_NAME = ".lock"
KEEPING_S = 60.0
"""How long a dead connection may take to put on disk what it has received, before it is killed."""
WAITING_INTERVAL_S = 2.0


@contextmanager
def first_session(
    directory: Path,
    client: str,
    run_id: str,
    *,
    wait_s: float,
    tell: Callable[[str], None],
    sweep: Callable[[], None],
) -> Iterator[int]:
    """The turn of a run's first session, and the descriptor of its lock.

    A dead connection of the same run makes way at once; for another run we wait up to `wait_s` seconds and
    `tell` for whom, now and then. sweep: called when nobody else is at work. Raises LockedError.
    """
    path = directory / LOCK_NAME
    evict(path, run_id, grace_s=KEEPING_S)
    deadline, said = time.monotonic() + wait_s, 0.0

    def say_waiting() -> None:
        nonlocal said
        if time.monotonic() - said >= WAITING_INTERVAL_S:
            said = time.monotonic()
            tell(str(holder(path) or "its last transfer is still ending"))

    what = f"client {client} is being served already"
    with Lock(path, what, run_id=run_id, wait_s=wait_s, on_wait=say_waiting) as lock:
        left_s = max(0.0, deadline - time.monotonic())
        with directory_lock(directory, what, is_shared=False, wait_s=left_s, on_wait=say_waiting):
            sweep()
        yield lock.fileno()


@contextmanager
def further_session(directory: Path, client: str, run_id: str) -> Iterator[int]:
    """The turn of another session of the run that has its turn, and the descriptor of its lock.

    Raises RefusedError if it is not that run's turn, LockedError.
    """
    with directory_lock(directory, f"client {client} is being served already", is_shared=True) as fd:
        # Only now: nobody sweeps while the lock is shared.
        found = holder(directory / LOCK_NAME)
        if not run_id or found is None or found.run_id != run_id:
            raise RefusedError(
                f"client {client} asks for another session of a run that is not being served",
                hint="run `btrsync sync` again",
            )
        yield fd
