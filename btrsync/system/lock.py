"""A lock that says who holds it, and that a dead holder lets go of by itself.

The lock is flock(2) on a file, so the kernel drops it with the process; what is written in the file
only tells others who that is. The file stays: to remove it would let two hold "the" lock, one of
the old file and one of the new.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

import msgspec

from btrsync.errors import LockedError
from btrsync.system.process import is_child_stuck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

FIRST_PAUSE_S: Final = 0.005
LONGEST_PAUSE_S: Final = 0.2
EVICTION_GRACE_S: Final = 5.0
HOLDER_BYTES: Final = 4096
SWEEPING_S: Final = 10.0
OWNER_NAME: Final = ".btrsync-owner"


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock: the process by pid and start, since when, and for which run."""

    pid: int
    started_ticks: int
    since: str
    run_id: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs: a pid may long be another's, its start time is not."""
        return _started_ticks(self.pid) == self.started_ticks

    def __str__(self) -> str:
        return f"busy since {self.since}, pid {self.pid}"


class Lock:
    """The lock at `path`, held inside the context; `what` is the name of what it guards, for errors.

    path: a file, made if missing, in a directory that exists. wait_s: seconds to wait for another
    to let go; on_wait is called between the looks, several times a second. run_id: of our run, for
    `evict`. Raises LockedError naming the holder; OSError if the file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        *,
        wait_s: float = 0,
        on_wait: Callable[[], None] | None = None,
        run_id: str = "",
    ) -> None:
        self.path = path
        self.what = what
        self.wait_s = wait_s
        self.on_wait = on_wait
        self.run_id = run_id
        self._fd = -1

    def __enter__(self) -> Self:
        fd = _opened(self.path)
        try:
            self._wait_for(fd)
            try:
                _write_holder(fd, _ourselves(self.run_id))
            except OSError as error:
                # Nobody can then be told who holds it, and no more: a full disk must let in who frees some.
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # While it is still ours: nobody may read our name in a lock that another holds.
            # A filesystem that was forced read-only meanwhile cannot, and one that hangs would let us hang:
            # the holder named there is dead soon.
            if not is_child_stuck():
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, 0)
        finally:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Return the descriptor that holds the lock; who inherits it keeps the lock until it ends too."""
        return self._fd

    def _wait_for(self, fd: int) -> None:
        if not _wait_until_taken(fd, fcntl.LOCK_EX, self.wait_s, self.on_wait):
            found = _read_holder(fd)
            raise LockedError(self.what, str(found) if found else "busy, held by an unknown process")


def _wait_until_taken(fd: int, mode: int, wait_s: float, on_wait: Callable[[], None] | None) -> bool:
    deadline = time.monotonic() + wait_s
    pause_s = FIRST_PAUSE_S
    while not _is_taken(fd, mode):
        if time.monotonic() >= deadline:
            return False
        if on_wait is not None:
            on_wait()
        time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
    return True


@contextlib.contextmanager
def directory_lock(
    path: Path, what: str, *, is_shared: bool, wait_s: float = 0, on_wait: Callable[[], None] | None = None
) -> Iterator[int]:
    """The lock on the directory `path` itself, for oneself or with others; gives its descriptor.

    Nobody is named in it: who inherits the descriptor keeps it. wait_s, on_wait: as for `Lock`. Raises
    LockedError, OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not _wait_until_taken(fd, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX, wait_s, on_wait):
            raise LockedError(what, "busy, a transfer of another run has not ended yet")
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def own_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory in `parent`, for root alone and for no longer than the context; its name is short.

    First those that dead processes left there are deleted: that have the prefix, a file of ours, and nobody
    who holds the lock on it. Raises LockedError, OSError.
    """
    # Late: few runs need them.
    from shutil import rmtree
    from tempfile import mkdtemp

    with contextlib.ExitStack() as stack:
        # Else what is being made, and is not locked yet, would be taken for one of the dead.
        with directory_lock(parent, str(parent), is_shared=False, wait_s=SWEEPING_S):
            for left in parent.glob(f"{prefix}*/{OWNER_NAME}"):
                if not left.is_symlink() and not _is_held(left):
                    rmtree(left.parent, ignore_errors=True)
            path = parent / mkdtemp(prefix=prefix, dir=parent)
            stack.callback(rmtree, path, ignore_errors=True)
            stack.enter_context(Lock(path / OWNER_NAME, str(path)))
        yield path


def holder(path: Path) -> Holder | None:
    """Return the living process that holds the lock at `path`; None if nobody does. Never blocks.

    Looking does not take the lock, so it never stands in anybody's way. Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        found = _read_holder(fd)
    finally:
        os.close(fd)
    return found if found is not None and found.is_alive else None


def evict(
    path: Path, run_id: str, *, grace_s: float = EVICTION_GRACE_S, on_wait: Callable[[], None] | None = None
) -> bool:
    """End the process that holds the lock at `path` for our own run; True if there was one.

    For a client that comes back on a new connection while the server's process of the old one still
    sits on the lock. SIGTERM, `grace_s`, SIGKILL, the same again. Nothing but the living holder with the same
    `run_id` is ever signalled, through a pidfd, so that it cannot be another process by then.
    Afterwards take the lock as usual. Raises LockedError if even SIGKILL did not end it, OSError.
    """
    found = holder(path)
    if not run_id or found is None or found.run_id != run_id or found.pid == os.getpid():
        return False
    try:
        pidfd = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return False
    try:
        # Once more, now that the pidfd holds on to a process: is it that one, does it hold the lock?
        if holder(path) != found or not _is_held(path):
            return False
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if _has_ended(pidfd, grace_s, on_wait):
                return True
    finally:
        os.close(pidfd)
    raise LockedError(str(path), f"{found}, and it does not end")


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_taken(fd: int, mode: int = fcntl.LOCK_EX) -> bool:
    """Try to take the lock; never blocks."""
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(path: Path) -> bool:
    fd = _opened(path)
    try:
        return not _is_taken(fd)
    finally:
        os.close(fd)


def _has_ended(pidfd: int, grace_s: float, on_wait: Callable[[], None] | None) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + grace_s
    while (left_s := deadline - time.monotonic()) > 0:
        if poll.poll(min(left_s, LONGEST_PAUSE_S) * 1000):
            return True
        if on_wait is not None:
            on_wait()
    return False


def _ourselves(run_id: str) -> Holder:
    pid = os.getpid()
    started_ticks = _started_ticks(pid)
    assert started_ticks is not None  # we run
    return Holder(pid, started_ticks, datetime.now(UTC).isoformat(timespec="seconds"), run_id)


def _started_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None if it does not run any more.

    Source: proc(5), /proc/PID/stat, field 22, and field 3: a zombie has let go of everything. The
    name in field 2 may hold spaces and parentheses.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[22 - 3])


def _write_holder(fd: int, found: Holder) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, msgspec.json.encode(found) + b"\n", 0)


def _read_holder(fd: int) -> Holder | None:
    """Return what is written in a lock file; None if it is empty, half written or foreign."""
    try:
        return msgspec.json.decode(os.pread(fd, HOLDER_BYTES, 0), type=Holder)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
