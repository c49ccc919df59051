"""What can fail, as types that carry their data, render themselves and know their exit status.

Libraries raise these; only `cli` prints them or exits. `message` names the thing and what was
being done with it; `hint` says what to do next. A conflict is a value of `plan/`, known here only
as something that renders itself.
"""

from __future__ import annotations

import errno
import os
import shlex
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SIGPIPE_STATUSES = (-13, 141)
"""A stage that died of SIGPIPE: by the signal itself, or reported so by a shell."""


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: `returncode` is negative for a signal, as in `subprocess`."""

    argv: tuple[str, ...]
    returncode: int
    stderr: str = ""
    name: str = ""

    @property
    def has_failed(self) -> bool:
        return self.returncode != 0

    @property
    def is_broken_pipe(self) -> bool:
        return self.returncode in SIGPIPE_STATUSES

    def __str__(self) -> str:
        command = self.name or shlex.join(self.argv)
        if self.returncode < 0:
            ending = f"was killed by signal {-self.returncode}"
        else:
            ending = f"exited with status {self.returncode}"
        words = self.stderr.strip()
        return f"{command} {ending}" + (f": {last_lines(words)}" if words else "")


def last_lines(text: str, *, lines: int = 5, limit_characters: int = 2000) -> str:
    """Return the last lines of a program's stderr, fit for one error message."""
    return "\n".join(text.strip().splitlines()[-lines:])[-limit_characters:]


class Conflict(Protocol):
    """A conflict of `plan/`: a typed value with its evidence, which renders itself."""

    def __str__(self) -> str: ...
    @property
    def remedy(self) -> str: ...


class BtrsyncError(Exception):
    """An expected failure: one sentence, a hint, an exit status. A bug is any other exception."""

    exit_status: int = 70
    retryable: bool = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class ConfigError(BtrsyncError):
    """The configuration is wrong; every problem is named, not only the first."""

    exit_status = 3

    def __init__(self, file: Path | str, problems: Sequence[str], *, hint: str | None = None) -> None:
        self.file = str(file)
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{file}: {problem}" for problem in problems), hint=hint)


class LockedError(BtrsyncError):
    """Another run holds the lock."""

    exit_status = 4
    retryable = True

    def __init__(self, what: str, holder: str) -> None:
        self.what = what
        self.holder = holder
        super().__init__(f"{what}: {holder}", hint="wait for that run to end, or look at it with ps")


class UnreachableError(BtrsyncError):
    """The other end was not reached, or went silent."""

    exit_status = 5
    retryable = True


class CommandError(BtrsyncError):
    """A program ended with a status that it should not have."""

    exit_status = 6

    def __init__(self, exit: Exit, *, hint: str | None = None) -> None:
        self.exit = exit
        super().__init__(str(exit), hint=hint)


class CommandNotFoundError(BtrsyncError):
    """A program is not there, or cannot be executed."""

    exit_status = 6


class CommandTimeoutError(BtrsyncError):
    """A program did not end in time and was killed."""

    exit_status = 6


class StalledError(CommandTimeoutError):
    """A program did nothing for too long and was killed; another time it may go well."""

    retryable = True


class PipelineError(BtrsyncError):
    """A pipeline failed: `culprit` is the stage that failed first, not those it broke."""

    exit_status = 6

    def __init__(self, exits: Sequence[Exit]) -> None:
        self.exits = tuple(exits)
        self.culprit = find_culprit(self.exits)
        super().__init__(str(self.culprit))


def find_culprit(exits: Sequence[Exit]) -> Exit:
    """Return the most upstream stage that failed other than by SIGPIPE.

    When the far end dies the near end dies of SIGPIPE; when the near end dies, the far end
    complains of end of file. If SIGPIPE is all there is, the stage after the last one so killed
    stopped reading: it is returned even if its own status is 0.
    """
    for exit in exits:
        if exit.has_failed and not exit.is_broken_pipe:
            return exit
    broken = [index for index, exit in enumerate(exits) if exit.is_broken_pipe]
    if not broken:
        raise ValueError("no stage of this pipeline failed")
    if broken[-1] + 1 < len(exits):
        reader = exits[broken[-1] + 1]
        return Exit(
            reader.argv, reader.returncode, "stopped reading before the end\n" + reader.stderr, reader.name
        )
    return exits[broken[-1]]


class ConflictError(BtrsyncError):
    """What both sides hold does not allow a send; a person has to choose."""

    exit_status = 7

    def __init__(self, conflict: Conflict) -> None:
        self.conflict = conflict
        super().__init__(str(conflict), hint=conflict.remedy)


class StorageError(BtrsyncError):
    """A filesystem, subvolume or device is not what it must be."""

    exit_status = 8


class NoSpaceError(StorageError):
    """The target has no room."""


MACHINE_ERRNOS = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM,
    errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
    errno.ENXIO, errno.ESTALE,
})  # fmt: skip
"""What may fail on a sound program's way through a machine in trouble; any other is likely a bug."""


def storage_error(error: OSError, *, hint: str | None = None) -> StorageError:
    """Return what the machine refused as one sentence that names the path, if there is one."""
    kind = NoSpaceError if error.errno in {errno.ENOSPC, errno.EDQUOT} else StorageError
    reason = os.strerror(error.errno or 0)
    named = isinstance(error.filename, (str, bytes, os.PathLike))
    return kind(f"{os.fsdecode(error.filename)}: {reason}" if named else reason, hint=hint)


class IntegrityError(BtrsyncError):
    """What arrived is not what was sent."""

    exit_status = 9


class StreamError(BtrsyncError):
    """A send stream is malformed."""

    exit_status = 9

    def __init__(self, offset_bytes: int, problem: str) -> None:
        self.offset_bytes = offset_bytes
        self.problem = problem
        super().__init__(f"send stream, byte {offset_bytes}: {problem}")


class PrefixMismatchError(StreamError):
    """A send stream is not the one of which the server has the beginning."""


class RefusedError(BtrsyncError):
    """A request that is well formed but not allowed."""

    exit_status = 10


class ProtocolError(BtrsyncError):
    """The other end does not speak our protocol, or broke it."""

    exit_status = 10


class RemoteError(BtrsyncError):
    """A failure that the other end reported, with the exit status that it has there."""

    def __init__(self, message: str, *, hint: str | None, exit_status: int, retryable: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.exit_status = exit_status
        self.retryable = retryable
