"""The door through which every single process starts: built environment, kept stderr, sure end.

Every child is started in a session of its own. A Ctrl-C at the terminal, or the SIGHUP of a
closing one, therefore reaches this program alone, which ends its children in order (abort on the
wire first, then terminate); and without a controlling terminal no child can stop to ask a
question. The price: whoever installs signal handlers must turn SIGTERM and SIGHUP into an
exception, for only leaving the context ends the child. A child whose parent was killed outright
meets end of file or a broken pipe, and ends of that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from btrsync.errors import CommandError, CommandNotFoundError, CommandTimeoutError, Exit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Word = str | os.PathLike[str]
"""One word of an argv."""

DEVNULL: Final = subprocess.DEVNULL
STDERR_TAIL_BYTES: Final = 32 * 1024
TERMINATE_GRACE_S: Final = 5.0
KILL_GRACE_S: Final = 10.0
"""After SIGKILL a process ends at once, unless it hangs in the kernel (state D in proc(5))."""
USUAL_DIRECTORIES: Final = (
    "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
)  # fmt: skip
PACKAGES: Final = {
    "btrfs": "btrfs-progs", "ssh": "openssh-client", "ssh-keygen": "openssh-client",
    "ionice": "util-linux", "prlimit": "util-linux", "setpriv": "util-linux",
    "mount": "mount", "umount": "mount", "cryptsetup": "cryptsetup-bin", "dmsetup": "dmsetup",
    "mkfs.btrfs": "btrfs-progs", "wipefs": "util-linux", "swapoff": "mount", "vgchange": "lvm2",
    "mdadm": "mdadm",
}  # fmt: skip
"""Debian's package for each program that this project starts."""

_stuck: list[Process] = []


def is_child_stuck() -> bool:
    """Tell whether a child of ours hangs in the kernel and was left behind: so would we on the same disk."""
    return bool(_stuck)


def _debug(words: str, *values: object) -> None:
    # logging takes a tenth of the start of `serve`; who wants to read these lines has imported it.
    if logging := sys.modules.get("logging"):
        logging.getLogger(__name__).debug(words, *values)


class Completed(msgspec.Struct, frozen=True):
    """A process that ended with an expected status; `stdout` whole, `stderr` its last 32 KiB."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: str


class Process:
    """A running child; made by `spawn`, whose context ends it."""

    def __init__(self, argv: tuple[str, ...], child: subprocess.Popen[bytes], stderr_fd: int) -> None:
        self.argv = argv
        self._child = child
        self._stderr_fd = stderr_fd
        self._started = time.monotonic()
        self._is_logged = False

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        """Return the status if the process has ended (negative for a signal), else None."""
        returncode = self._child.poll()
        if returncode is not None:
            self._log_end(returncode)
        return returncode

    def wait(self, timeout_s: float | None = None) -> Exit:
        """Wait for the end and return it with the last words on stderr, whatever the status.

        Raises CommandTimeoutError after `timeout_s` seconds; the process still runs then, until
        it is terminated or its context is left.
        """
        if not self._has_ended_within(timeout_s):
            raise CommandTimeoutError(f"{shlex.join(self.argv)} did not end within {timeout_s:g} s")
        returncode = self._child.wait()
        self._log_end(returncode)
        return Exit(self.argv, returncode, self.stderr_tail())

    def terminate(self) -> None:
        """Send SIGTERM to the process and to those it started; nothing if it has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process and to those it started; nothing if it has ended."""
        self._signal(signal.SIGKILL)

    def end(self) -> bool:
        """Send SIGKILL and wait for the end; False if it does not come, for the process hangs in the kernel.

        Then it is left behind, and keeps what it has inherited until it ends.
        """
        if self._child.returncode is None:
            # Not reaped yet, so the group is still ours: what is left of it goes as well.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            if not self._has_ended_within(KILL_GRACE_S):
                _stuck.append(self)
                return False
        return True

    @contextmanager
    def end_fd(self) -> Iterator[int]:
        """A descriptor that can be read as soon as the process has ended; before its end is waited for."""
        pidfd = os.pidfd_open(self.pid)
        try:
            yield pidfd
        finally:
            os.close(pidfd)

    def stderr_tail(self) -> str:
        """Return what the process has said on stderr so far, the last 32 KiB of it."""
        size = os.fstat(self._stderr_fd).st_size
        offset = max(0, size - STDERR_TAIL_BYTES)
        return os.pread(self._stderr_fd, STDERR_TAIL_BYTES, offset).decode(errors="replace")

    def _has_ended_within(self, timeout_s: float | None) -> bool:
        """Wait without reaping, so that the process group can still be signalled safely."""
        if self._child.returncode is not None:
            return True
        with self.end_fd() as pidfd:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def _signal(self, number: signal.Signals) -> None:
        if self._child.poll() is None:
            # Its own session, so the group's number is its pid, and stays so until it is reaped.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _log_end(self, returncode: int) -> None:
        if not self._is_logged:
            self._is_logged = True
            seconds = time.monotonic() - self._started
            _debug("%s: status %d after %.3f s", self.argv[0], returncode, seconds)

    def close(self) -> None:
        """End the process however it resists, then let go of its stderr; the context does this.

        One that hangs in the kernel is left behind: see `is_child_stuck`.
        """
        try:
            if self in _stuck:
                return
            if self._child.poll() is None:
                self.terminate()
                self._has_ended_within(TERMINATE_GRACE_S)
                if not self.end():
                    return
            self._log_end(self._child.wait())
        finally:
            os.close(self._stderr_fd)


def run(
    argv: Sequence[Word],
    *,
    input: bytes | None = None,
    ok: Sequence[int] = (0,),
    timeout_s: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run a program to its end and return what it said.

    input: bytes for its stdin, never logged; without it stdin is the null device. ok: statuses that
    are expected; timeout_s: seconds until it is killed; env: added to the built environment.
    Raises CommandError at any other status, CommandTimeoutError, CommandNotFoundError.
    """
    stdin = DEVNULL if input is None else subprocess.PIPE
    with _running(argv, stdin=stdin, stdout=subprocess.PIPE, env=env, pass_fds=()) as (process, child):
        try:
            stdout, _ = child.communicate(input, timeout_s)
        except subprocess.TimeoutExpired:
            said = process.stderr_tail().strip()
            raise CommandTimeoutError(
                f"{shlex.join(process.argv)} did not end within {timeout_s:g} s and was killed"
                + (f": {said.splitlines()[-1]}" if said else "")
            ) from None
        exit = process.wait()
    if exit.returncode not in ok:
        raise CommandError(exit)
    return Completed(exit.argv, exit.returncode, stdout, exit.stderr)


@contextmanager
def spawn(
    argv: Sequence[Word],
    *,
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    umask: int = -1,
) -> Iterator[Process]:
    """A running program; leaving the context terminates it, waits 5 s, kills it, and reaps it.

    stdin, stdout: a file descriptor, or DEVNULL; the caller keeps and closes its own copy.
    env: added to the built environment; pass_fds: descriptors that keep their numbers in the child;
    umask: the child's, ours if negative.
    One that hangs in the kernel is left behind.
    No status is judged here: `wait` returns it. Raises CommandNotFoundError.
    """
    if subprocess.PIPE in (stdin, stdout):
        raise ValueError("give one end of os.pipe(): the other end is then the caller's to close")
    with _running(argv, stdin=stdin, stdout=stdout, env=env, pass_fds=pass_fds, umask=umask) as (process, _):
        yield process


@contextmanager
def _running(
    argv: Sequence[Word],
    *,
    stdin: int,
    stdout: int,
    env: Mapping[str, str] | None,
    pass_fds: Sequence[int],
    umask: int = -1,
) -> Iterator[tuple[Process, subprocess.Popen[bytes]]]:
    words = tuple(os.fspath(word) for word in argv)
    _debug("+ %s", shlex.join(words))
    stderr_fd = _unnamed_file()
    try:
        child = subprocess.Popen(
            words,
            stdin=stdin, stdout=stdout, stderr=stderr_fd,
            env=_environment(env),
            pass_fds=pass_fds,
            start_new_session=True,
            umask=umask,
        )  # fmt: skip
    except OSError as error:
        os.close(stderr_fd)
        raise _not_started(words, error) from error
    except BaseException:
        os.close(stderr_fd)
        raise
    process = Process(words, child, stderr_fd)
    try:
        yield process, child
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                # A pipe nobody reads any more: what is still buffered for it has nowhere to go.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        process.close()


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    """Return a child's whole environment: little enough that a user's settings change nothing."""
    directories = os.environ.get("PATH", "").split(os.pathsep)
    wanted = [*directories, *(usual for usual in USUAL_DIRECTORIES if usual not in directories)]
    environment = {
        "PATH": os.pathsep.join(directory for directory in wanted if directory.startswith("/")),
        "LANG": "C.UTF-8",
        "HOME": os.environ.get("HOME") or os.path.expanduser("~"),
    }
    if agent := os.environ.get("SSH_AUTH_SOCK"):
        environment["SSH_AUTH_SOCK"] = agent
    return {**environment, **(added or {})}


def _unnamed_file() -> int:
    """Return a descriptor, open for appending, of a file without a name: it cannot be left behind."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open("/tmp", flags | os.O_TMPFILE, 0o600)  # noqa: S108 (it never has a name there)
    except OSError:
        # No /tmp, a read-only one, or a filesystem without O_TMPFILE: memory will do.
        return os.memfd_create("stderr", os.MFD_CLOEXEC)


def _not_started(argv: tuple[str, ...], error: OSError) -> CommandNotFoundError | OSError:
    """Return what a failed start means: no such program, or this machine's own trouble."""
    name = argv[0]
    if error.errno == errno.ENOENT:
        package = PACKAGES.get(name)
        hint = f"apt install {package}" if package else "install it, or correct PATH"
        return CommandNotFoundError(f"{name}: no such program", hint=hint)
    if error.errno in {errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP}:
        reason = os.strerror(error.errno).lower()
        return CommandNotFoundError(
            f"{name} cannot be executed: {reason}", hint="check its mode and its first line"
        )
    return error
