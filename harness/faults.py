"""Things broken on purpose: processes, hosts, links and disks. What can be put back is a context manager."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness import command, processes, wait

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.filesystem import Array
    from harness.host import Host
    from harness.netns import Link
    from harness.processes import ProcessInfo

STRIKE_S = 10.0
INTERPRETERS = ("python", "sh", "bash", "dash", "perl")
NSENTER = "nsenter"
SSHD_SESSION_TITLE = "sshd-session:"
BLOCK_BYTES = 1 << 20
LEAST_BYTES = 4096
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


# ------------------------------------------------------------------------------------ processes


def processes_in(host: Host) -> list[ProcessInfo]:
    """Return the processes of one host and of no other, by their pid namespace; pids as seen from here."""
    own = processes.pid_namespace(host.pid)
    return [info for pid, info in processes.everything().items() if processes.pid_namespace(pid) == own]


def is_match(argv: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether a command line begins with `words`, each compared by its last path component.

    The interpreter of a script is skipped: "btrsync serve" finds `/usr/bin/python3 /opt/bin/btrsync
    serve workstation`, but not `sh -c "btrsync serve"`. A process that has written its own title
    ("sshd: root@notty") is split at blanks first; from OpenSSH 9.8 on a session is called
    "sshd-session: root@notty", and found by the old name too.
    """
    tokens = [token for word in argv for token in word.split()]
    if not tokens:
        return False
    if tokens[0] == SSHD_SESSION_TITLE:
        tokens[0] = "sshd:"
    program = _last_component(tokens[0]).rstrip("0123456789.")
    if program == NSENTER:
        # For a moment the child of nsenter is in the host, still with nsenter's words.
        return False
    if program in INTERPRETERS:
        script = 1
        while "-c" not in tokens[1:] and script < len(tokens) and tokens[script].startswith("-"):
            script += 1
        if _begins(tokens[script:], words):
            return True
    return _begins(tokens, words)


def _begins(tokens: Sequence[str], words: Sequence[str]) -> bool:
    return len(tokens) >= len(words) and all(
        word in {token, _last_component(token)} for token, word in zip(tokens, words, strict=False)
    )


def _last_component(token: str) -> str:
    return token.rpartition("/")[2]


def find(host: Host, words: str) -> list[ProcessInfo]:
    """Return the living processes of a host whose command line begins with `words`, oldest first."""
    wanted = words.split()
    living = [info for info in processes_in(host) if info.state not in processes.DEAD]
    return sorted((info for info in living if is_match(info.argv, wanted)), key=lambda info: info.pid)


def wait_for_process(host: Host, words: str, *, timeout_s: float = STRIKE_S) -> ProcessInfo:
    """Wait until such a process runs in the host, and return the oldest one."""
    return wait.until(
        lambda: find(host, words),
        timeout_s=timeout_s,
        what=f"a process {words!r} on {host.name}",
        interval_s=0.002,
    )[0]


def kill(host: Host, words: str, number: int = signal.SIGKILL, *, timeout_s: float = STRIKE_S) -> ProcessInfo:
    """Wait for such a process, send it a signal and return what it was.

    With SIGKILL it is dead on return. Raises NeverCame if no such process came: then the fault
    was not exercised, which must never count as survived.
    """
    victim = wait_for_process(host, words, timeout_s=timeout_s)
    os.kill(victim.pid, number)
    if number == signal.SIGKILL:
        wait.until(lambda: not _is_running(victim.pid), timeout_s=STRIKE_S, what=f"the end of {victim}")
    return victim


def _is_running(pid: int) -> bool:
    info = processes.read(pid)
    return info is not None and info.state not in processes.DEAD


class StoppedProcess:
    """A process of a host that takes no more part: SIGSTOP, and SIGCONT on leaving.

    Example: `with StoppedProcess(daisy, "btrfs receive") as stopped: …`.
    """

    def __init__(self, host: Host, words: str, *, timeout_s: float = STRIKE_S) -> None:
        """Only remember what is wanted; entering waits for the process."""
        self.host = host
        self.words = words
        self.timeout_s = timeout_s
        self.pid = 0

    def __enter__(self) -> Self:
        """Stop it, and see it stopped."""
        self.pid = wait_for_process(self.host, self.words, timeout_s=self.timeout_s).pid
        os.kill(self.pid, signal.SIGSTOP)
        wait.until(self._is_stopped, timeout_s=STRIKE_S, what=f"{self.words!r} on {self.host.name} stopped")
        return self

    def _is_stopped(self) -> bool:
        info = processes.read(self.pid)
        return info is not None and info.state in processes.STOPPED

    def __exit__(self, *_: object) -> None:
        """Let it go on, if it still lives."""
        info = processes.read(self.pid)
        if info is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        parent = processes.read(info.parent)
        if parent is not None and parent.name == NSENTER:
            # nsenter stops itself when its child is stopped, and would never see its end.
            with contextlib.suppress(ProcessLookupError):
                os.kill(parent.pid, signal.SIGCONT)


# ---------------------------------------------------------------------------------------- hosts


def kill_host(host: Host) -> None:
    """Kill a host's first process. "Killed": peers see a clean end, unsynced data reaches the disk."""
    host.kill()


def vanish(host: Host, link: Link) -> None:
    """Cut the link, then kill the host. "Vanished": the peer sees silence and keeps its interface."""
    link.cut()
    host.kill()


# ---------------------------------------------------------------------------------------- links


class _LinkFault:
    """A fault of a link: struck on entering, put back on leaving."""

    def __init__(self, link: Link) -> None:
        """Only remember the link."""
        self.link = link

    def __enter__(self) -> Self:
        """Strike."""
        self._strike()
        return self

    def __exit__(self, *_: object) -> None:
        """Put it back."""
        self._put_back()

    def _strike(self) -> None:
        raise NotImplementedError

    def _put_back(self) -> None:
        raise NotImplementedError


class CutLink(_LinkFault):
    """A cable pulled out: silence both ways, no carrier."""

    def _strike(self) -> None:
        self.link.cut()

    def _put_back(self) -> None:
        self.link.restore()


class SlowLink(_LinkFault):
    """A thin line: `rate_bits` per second both ways."""

    def __init__(self, link: Link, rate_bits: int = 8_000_000) -> None:
        """Only remember what is wanted."""
        super().__init__(link)
        self.rate_bits = rate_bits

    def _strike(self) -> None:
        self.link.slow(self.rate_bits)

    def _put_back(self) -> None:
        self.link.normal()


class SilentLink(_LinkFault):
    """A firewall that drops: the carrier is there, and nothing answers."""

    def _strike(self) -> None:
        self.link.drop()

    def _put_back(self) -> None:
        self.link.clear()


class ResettingLink(_LinkFault):
    """A firewall that resets every TCP connection at its next packet."""

    def _strike(self) -> None:
        self.link.reset()

    def _put_back(self) -> None:
        self.link.clear()


# ---------------------------------------------------------------------------------------- disks


class FullFilesystem:
    """A file system without room: `with FullFilesystem(path): …`.

    path: a directory of it, as seen from here. free_bytes: how much is left, about. Data space is
    filled; very small files may still find room among the metadata.
    """

    def __init__(self, path: Path, *, free_bytes: int = 0) -> None:
        """Only remember what is wanted."""
        self.file = path / ".harness-filler"
        self.free_bytes = free_bytes

    def __enter__(self) -> Self:
        """Fill it."""
        fd = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            size_bytes = self._allocate(fd)
            if self.free_bytes:
                os.ftruncate(fd, max(0, size_bytes - self.free_bytes))
            os.fsync(fd)
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(fd)
        # Room that a truncation or an earlier deletion freed is there only after a commit.
        command.run(["sync", "-f", self.file])
        return self

    @staticmethod
    def _allocate(fd: int) -> int:
        """Take all the room, in ever smaller pieces; return how much it was."""
        taken = 0
        piece = 1 << 30
        while piece >= LEAST_BYTES:
            try:
                os.posix_fallocate(fd, taken, piece)
                taken += piece
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece //= 2
        return taken

    def __exit__(self, *_: object) -> None:
        """Give the room back."""
        directory = self.file.parent
        self.file.unlink(missing_ok=True)
        command.run(["sync", "-f", directory])


class ReadErrors:
    """A member of a mounted array that cannot be read: EIO beyond what is written from now on.

    member: which loop device of the array, from 0; None: all of them. Writes still succeed and
    grow the file again, and what lies between reads as zeros, which btrfs counts as corruption.
    On leaving, all that was not written over is put back: be sure that nobody writes then.
    The caches of the whole machine are dropped, or the kernel would not read at all.
    """

    def __init__(self, array: Array, member: int | None = None) -> None:
        """Only remember what is wanted."""
        self.loops = array.loops if member is None else (array.loops[member],)
        self._mountpoints = tuple(array.mountpoints)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Save the content, cut the files, drop the caches."""
        with contextlib.ExitStack() as stack:
            for point in self._mountpoints:
                command.run(["sync", "-f", point])
            for loop in self.loops:
                stack.enter_context(_cut_off(loop.backing_file, loop.size_bytes))
            DROP_CACHES.write_text("3\n")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Put back what was there and was not written since."""
        self._stack.close()


@contextlib.contextmanager
def _cut_off(file: Path, size_bytes: int) -> Iterator[None]:
    disk = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    saved = os.memfd_create("read-errors")
    try:
        os.ftruncate(saved, size_bytes)
        for start, end in _extents(disk, size_bytes):
            _copy(disk, saved, start, end)
        os.ftruncate(disk, 0)
        try:
            yield
        finally:
            new = list(_extents(disk, os.fstat(disk).st_size))
            os.ftruncate(disk, size_bytes)
            for start, end in _extents(saved, size_bytes):
                for gap_start, gap_end in _without(start, end, new):
                    _copy(saved, disk, gap_start, gap_end)
    finally:
        os.close(saved)
        os.close(disk)


def _extents(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield where a sparse file has data, as (start, end). Source: lseek(2), SEEK_DATA."""
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _without(start: int, end: int, taken: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the parts of start..end that no range of `taken` (in order) covers."""
    for other_start, other_end in taken:
        if other_end <= start or other_start >= end:
            continue
        if other_start > start:
            yield start, other_start
        start = other_end
    if start < end:
        yield start, end


def _copy(source: int, target: int, start: int, end: int) -> None:
    for offset in range(start, end, BLOCK_BYTES):
        block = os.pread(source, min(BLOCK_BYTES, end - offset), offset)
        os.pwrite(target, block, offset)
