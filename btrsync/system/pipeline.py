"""Several programs, each reading what the one before it writes, under one verdict.

All stages are started, then waited for, and only then judged: by `find_culprit`, which blames the
most upstream stage that failed other than by SIGPIPE. Our own code at an end of a pipeline counts
as a stage: a broken pipe there is its SIGPIPE, and any other error there is the culprit, unless a
program further upstream had failed before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Self

import msgspec

from btrsync.errors import CommandTimeoutError, Exit, PipelineError
from btrsync.system import process
from btrsync.system.process import Word

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from btrsync.system.process import Process

DEVNULL: Final = process.DEVNULL
PIPE: Final = subprocess.PIPE
"""For `spawn`: this end of the pipeline is fed or drained by the code inside the context."""

PIPE_SIZE_BYTES: Final = 1024 * 1024
UPSTREAM_GRACE_S: Final = 1.0
"""How long a program that has closed its stdout may take to end, and so to be judged."""

_SIGPIPE: Final = -13
_OURSELVES: Final = Exit(("btrsync",), 0, name="btrsync itself")


class Stage(msgspec.Struct, frozen=True):
    """One program of a pipeline; `name` is what errors call it."""

    name: str
    argv: Sequence[Word]


class Pipeline:
    """Running stages, made by `spawn`; `feed_fd` and `drain_fd` are our own ends, where asked for."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise ValueError("a pipeline has at least one stage")
        self.stages = tuple(stages)
        self.processes: list[Process] = []
        self._feed_fd: int | None = None
        self._drain_fd: int | None = None

    @property
    def feed_fd(self) -> int:
        """Where the first stage's input is written. Raises ValueError if it is not ours, or closed."""
        if self._feed_fd is None:
            raise ValueError("this pipeline is not fed by us, or not any more")
        return self._feed_fd

    @property
    def drain_fd(self) -> int:
        """Where the last stage's output is read. Raises ValueError if it is not ours, or closed."""
        if self._drain_fd is None:
            raise ValueError("this pipeline is not drained by us, or not any more")
        return self._drain_fd

    def close_feed(self) -> None:
        """Tell the first stage that all was written; leaving the context does it too."""
        if self._feed_fd is not None:
            os.close(self._feed_fd)
            self._feed_fd = None

    def close_drain(self) -> None:
        """Read no further; leaving the context does it too."""
        if self._drain_fd is not None:
            os.close(self._drain_fd)
            self._drain_fd = None

    def is_feed_broken(self) -> bool:
        """Return whether nobody reads any more what we write."""
        return self._feed_fd is not None and bool(_events(self._feed_fd) & select.POLLERR)

    def is_drain_ended(self) -> bool:
        """Return whether nobody writes any more what we read."""
        return self._drain_fd is not None and bool(_events(self._drain_fd) & select.POLLHUP)

    def wait(self, timeout_s: float | None = None) -> list[Exit]:
        """Wait for the stages, `timeout_s` seconds in all, and return the end of each that ended."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        ended: list[Exit] = []
        for stage, started in zip(self.stages, self.processes, strict=True):
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            with contextlib.suppress(CommandTimeoutError):
                ended.append(msgspec.structs.replace(started.wait(left_s), name=stage.name))
        return ended

    @contextmanager
    def running(self, *, stdin: int, stdout: int, env: Mapping[str, str] | None) -> Iterator[Self]:
        """All stages started; on leaving, those that still run are ended, all at once."""
        with ExitStack() as stack:
            stack.callback(self.close_drain)
            stack.callback(self.close_feed)
            # The stages have their own copies of their ends: while we kept ours, no reader would
            # see end of file, and no writer SIGPIPE.
            with ExitStack() as ends:
                if stdin == PIPE:
                    stdin, self._feed_fd = _pipe()
                    ends.callback(os.close, stdin)
                for number, stage in enumerate(self.stages, 1):
                    is_last = number == len(self.stages)
                    read_fd, write_fd = DEVNULL, stdout
                    if not is_last or stdout == PIPE:
                        read_fd, write_fd = _pipe()
                        ends.callback(os.close, write_fd)
                        if is_last:
                            self._drain_fd = read_fd
                        else:
                            ends.callback(os.close, read_fd)
                    start = process.spawn(stage.argv, stdin=stdin, stdout=write_fd, env=env)
                    self.processes.append(stack.enter_context(start))
                    stdin = read_fd
            stack.callback(self._terminate)
            yield self

    def _terminate(self) -> None:
        for started in self.processes:
            started.terminate()


def run(
    stages: Sequence[Stage],
    *,
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
    env: Mapping[str, str] | None = None,
) -> tuple[Exit, ...]:
    """Run a pipeline to its end and return how each stage ended; all have ended well then.

    stdin, stdout: a file descriptor, or DEVNULL; the caller keeps and closes its own copy.
    env: added to the built environment of every stage. Raises PipelineError, CommandNotFoundError.
    """
    if PIPE in (stdin, stdout):
        raise ValueError("an end of our own needs pipeline.spawn: nobody would feed or drain it here")
    with Pipeline(stages).running(stdin=stdin, stdout=stdout, env=env) as pipeline:
        exits = tuple(pipeline.wait())
    if any(exit.has_failed for exit in exits):
        raise PipelineError(exits)
    return exits


@contextmanager
def spawn(
    stages: Sequence[Stage],
    *,
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
    env: Mapping[str, str] | None = None,
) -> Iterator[Pipeline]:
    """A running pipeline, for when our own code feeds or drains an end; the verdict falls on leaving.

    stdin, stdout: a file descriptor, DEVNULL, or PIPE for an end of our own.
    An exception from inside ends all stages. It stays the error, unless a program is to blame for
    it: who stopped reading what we fed (BrokenPipeError), or who failed upstream of what we drained.
    Raises PipelineError then, as it does on leaving normally when a stage failed.
    """
    with Pipeline(stages).running(stdin=stdin, stdout=stdout, env=env) as pipeline:
        try:
            yield pipeline
        except BrokenPipeError as error:
            if not pipeline.is_feed_broken():
                raise  # some other pipe of theirs
            raise _verdict_on_broken_feed(pipeline) from error
        except Exception as error:
            verdict = _verdict_on_upstream(pipeline)
            if verdict is None:
                raise
            raise verdict from error
        _verdict_on_leaving(pipeline, is_fed=stdin == PIPE, is_drained=stdout == PIPE)


def _verdict_on_leaving(pipeline: Pipeline, *, is_fed: bool, is_drained: bool) -> None:
    """Let go of our ends, wait for all stages, and raise PipelineError if one failed."""
    pipeline.close_feed()
    pipeline.close_drain()
    exits = pipeline.wait()
    if any(exit.has_failed for exit in exits):
        fed = [_OURSELVES] if is_fed else []
        drained = [_OURSELVES] if is_drained else []
        raise PipelineError([*fed, *exits, *drained])


def _verdict_on_broken_feed(pipeline: Pipeline) -> PipelineError:
    """Return whom to blame for our SIGPIPE: who failed, or who stopped reading without a word."""
    pipeline.close_feed()
    pipeline.close_drain()
    exits = pipeline.wait(UPSTREAM_GRACE_S)
    if pipeline.processes[0].poll() is None:
        # It closed its stdin and lives on: nothing has failed, but it stopped reading.
        first = pipeline.stages[0]
        exits.insert(0, Exit(pipeline.processes[0].argv, 0, pipeline.processes[0].stderr_tail(), first.name))
    return PipelineError([msgspec.structs.replace(_OURSELVES, returncode=_SIGPIPE), *exits])


def _verdict_on_upstream(pipeline: Pipeline) -> PipelineError | None:
    """Return whom to blame for an error of the code that drains; None if it is that code itself.

    Only a stage that failed before our end was closed can be the cause: the others were broken by
    us. Those still running are not judged, for we shall end them.
    """
    if not pipeline.is_drain_ended():
        return None
    exits = pipeline.wait(UPSTREAM_GRACE_S)
    if any(exit.has_failed and not exit.is_broken_pipe for exit in exits):
        return PipelineError(exits)
    return None


def _pipe() -> tuple[int, int]:
    """Return the ends of a new pipe, as large as we may have it; a smaller one is only slower."""
    read_fd, write_fd = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE_BYTES)
    return read_fd, write_fd


def _events(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, 0)  # the events asked about here are always reported
    return sum(events for _, events in poll.poll(0))
