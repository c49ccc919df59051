"""The harness's one door for processes: run a command to its end, or start one as a context manager."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    Word = str | os.PathLike[str]

DEVNULL = subprocess.DEVNULL
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUTPUT_LIMIT_CHARACTERS = 4000
TERMINATE_S = 5.0
PASSED_ON = ("BTRSYNC_CONTAINED", "BTRSYNC_LEDGER", "CI", "TMPDIR")
"""Inherited all the same: facts about where we run that hold for a child too."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command said and how it ended; `returncode` is negative for a signal.

    Bytes that are no UTF-8 are kept as surrogates: `os.fsencode(text)` gives them back.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class CommandFailed(AssertionError):
    """A command ended otherwise than it should have: the whole story in fixed lines.

    An assertion error, for in a test that is what it is.
    """

    def __init__(self, completed: Completed, problem: str) -> None:
        self.completed = completed
        self.problem = problem
        super().__init__(
            f"{problem}\n"
            f"command: {shlex.join(completed.argv)}\n"
            f"exit status: {completed.returncode}\n"
            f"stdout: {completed.stdout[-OUTPUT_LIMIT_CHARACTERS:].rstrip() or '-'}\n"
            f"stderr: {completed.stderr[-OUTPUT_LIMIT_CHARACTERS:].rstrip() or '-'}"
        )


def environment(env: Mapping[str, str] | None = None, *, path: str | None = None) -> dict[str, str]:
    """Return the environment of a child: PATH, LANG and HOME, and what `env` adds.

    Built, not inherited, so that a test does not depend on the shell it was started from.
    path: replaces our own PATH, for a child that lives in another root.
    """
    ours = path or os.environ.get("PATH", "")
    words = [word for word in ours.split(":") if word]
    words += [word for word in SYSTEM_PATH.split(":") if word not in words]
    built = {"PATH": ":".join(words), "LANG": "C.UTF-8", "HOME": os.environ.get("HOME", "/root")}
    built.update({name: os.environ[name] for name in PASSED_ON if name in os.environ})
    return {**built, **(env or {})}


class Process:
    """A running command: it leads a process group of its own, and its output lies in memory files.

    The group matters: `nsenter --pid` waits for a child of its own, and a signal that reached
    nsenter alone would leave the command running.
    """

    def __init__(
        self,
        argv: Sequence[Word],
        *,
        stdin: int = DEVNULL,
        stdout: int | None = None,
        env: Mapping[str, str] | None = None,
        path: str | None = None,
        cwd: Path | str | None = None,
        pass_fds: Collection[int] = (),
        with_terminal: bool = False,
    ) -> None:
        """Start it. Use `spawn`, which also ends it."""
        self.argv = tuple(os.fspath(word) for word in argv)
        self._files = [os.memfd_create(name) for name in ("stdout", "stderr")]
        try:
            self._process = subprocess.Popen(
                self.argv,
                stdin=None if with_terminal else stdin,
                stdout=self._files[0] if stdout is None and not with_terminal else stdout,
                stderr=None if with_terminal else self._files[1],
                env=environment(env, path=path),
                cwd=cwd,
                pass_fds=tuple(pass_fds),
                start_new_session=not with_terminal,
            )
        except BaseException:
            self.close()
            raise
        self._has_group = not with_terminal
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end and return the exit status; TimeoutError after `timeout_s` seconds."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{shlex.join(self.argv)} still runs after {timeout_s:g} s") from None

    def signal(self, number: int) -> None:
        """Send a signal to the command and to all that it started in its process group."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._has_group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self.signal(signal.SIGKILL)

    def end(self, grace_s: float = TERMINATE_S) -> int:
        """Terminate, wait `grace_s` seconds, kill, wait; return the exit status."""
        if self.poll() is None:
            self.terminate()
            # A stopped process takes its SIGTERM only when it is continued.
            self.signal(signal.SIGCONT)
            try:
                return self.wait(grace_s)
            except TimeoutError:
                self.kill()
        return self.wait()

    def completed(self) -> Completed:
        """Return what it said so far; `returncode` is that of `poll()`, or -1000 while it runs."""
        status = self.poll()
        return Completed(self.argv, -1000 if status is None else status, self.stdout, self.stderr)

    @property
    def stdout(self) -> str:
        """What it wrote to standard output so far, unless that went elsewhere."""
        return _text(self._files[0])

    @property
    def stderr(self) -> str:
        """What it wrote to standard error so far."""
        return _text(self._files[1])

    def close(self) -> None:
        """Let go of the memory files; may be called twice."""
        while self._files:
            os.close(self._files.pop())


def _text(fd: int) -> str:
    size_bytes = os.fstat(fd).st_size
    return os.pread(fd, size_bytes, 0).decode("utf-8", "surrogateescape")


@contextlib.contextmanager
def spawn(
    argv: Sequence[Word],
    *,
    stdin: int = DEVNULL,
    stdout: int | None = None,
    env: Mapping[str, str] | None = None,
    path: str | None = None,
    cwd: Path | str | None = None,
    pass_fds: Collection[int] = (),
) -> Iterator[Process]:
    """Start a command and yield it as a Process; on leaving it is terminated, then killed.

    stdin: a descriptor, else the null device. stdout: a descriptor; by default it is kept in
    memory and read by `Process.stdout`. stderr is always kept. path: replaces PATH.
    """
    process = Process(argv, stdin=stdin, stdout=stdout, env=env, path=path, cwd=cwd, pass_fds=pass_fds)
    try:
        yield process
    finally:
        try:
            process.end()
        finally:
            process.close()


def run(
    argv: Sequence[Word],
    *,
    input: str | bytes | None = None,
    ok: Collection[int] | None = (0,),
    timeout_s: float = 60,
    env: Mapping[str, str] | None = None,
    path: str | None = None,
    cwd: Path | str | None = None,
) -> Completed:
    """Run a command to its end and return what it said.

    input: what it reads, else nothing. ok: the exit statuses allowed; None allows any.
    timeout_s: after so many seconds it is killed with its process group.
    Raises CommandFailed with command, status, stdout and stderr; FileNotFoundError if there is
    no such program.
    """
    stdin = DEVNULL
    if input is not None:
        stdin = os.memfd_create("stdin")
        os.write(stdin, input.encode("utf-8", "surrogateescape") if isinstance(input, str) else input)
        os.lseek(stdin, 0, os.SEEK_SET)
    started = time.monotonic()
    try:
        process = Process(argv, stdin=stdin, env=env, path=path, cwd=cwd)
    finally:
        if stdin != DEVNULL:
            os.close(stdin)
    try:
        try:
            process.wait(timeout_s)
        except TimeoutError:
            process.kill()
            process.wait()
            problem = f"still ran after {time.monotonic() - started:.1f} s, killed"
            raise CommandFailed(process.completed(), problem) from None
        except BaseException:
            process.end()
            raise
        completed = process.completed()
    finally:
        process.close()
    if ok is not None and completed.returncode not in ok:
        allowed = ", ".join(str(status) for status in ok)
        raise CommandFailed(completed, f"exit status {completed.returncode}, not {allowed}")
    return completed
