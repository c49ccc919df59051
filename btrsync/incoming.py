"""One backup on its way in: pieces of `btrfs receive`, checkpoints between them, and the commit.

A *piece* is one receive into `.incoming-<id>`, in the same directory as the backup's final name, for a
read-only subvolume cannot be moved to another (EROFS; measured). A *checkpoint* ends a piece with an END
of our own, makes it durable and keeps it as a partial; the next piece goes on from a snapshot of that.
*Commit* is the only way to a visible name: checked, on disk, renamed, acknowledged, in this order.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING, Self

from btrsync import partials
from btrsync.errors import (
    BtrsyncError,
    CommandError,
    Exit,
    IntegrityError,
    NoSpaceError,
    RefusedError,
    StorageError,
    StreamError,
    UnreachableError,
    last_lines,
)
from btrsync.partials import Partial, Record
from btrsync.stream.head import format_head
from btrsync.stream.pieces import END_COMMAND, format_resumption
from btrsync.system import btrfs, files, pipes, process
from btrsync.system.private import confined_argv, private_view
from btrsync.system.signals import stop_signals_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from btrsync.plan.snapshots import Subvolume
    from btrsync.protocol import Begin, PartialEntry
    from btrsync.stream.head import FirstCommand

INCOMING_PREFIX = ".incoming-"
MORE_SPACE = "free space there, or add a disk to its array"


class Incoming:
    """A transfer in progress. Left without `commit` or `keep`, the directory is as it was.

    before: the partials of this very snapshot that are there; goes_on: that one of them which the
    stream continues, None for a stream from its beginning; lock_fd: inherited by `btrfs receive`, so
    that the lock outlives a killed server for as long as its receive does; priority: words before its
    argv; buffer_bytes: of the pipe into it.
    """

    def __init__(
        self,
        directory: Path,
        begin: Begin,
        lock_fd: int,
        *,
        before: Sequence[Partial] = (),
        goes_on: Partial | None = None,
        priority: Sequence[str] = (),
        buffer_bytes: int = pipes.PIPE_SIZE_BYTES,
    ) -> None:
        self.begin = begin
        self.goes_on = goes_on
        self._directory = directory
        self._lock_fd = lock_fd
        self._before = tuple(before)
        self._own: Partial | None = None
        self._buffer_bytes = buffer_bytes
        self._priority = tuple(priority)
        self._piece: _Piece | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with storage_errors(self._directory), contextlib.ExitStack() as stack:
            if make_private_directory(self._directory):
                stack.callback(self._remove_directory)
            self._directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, self._directory_fd)
            self._lock_job()
            # Opened before anything is written: syncfs reports only errors since then (man 2 syncfs).
            self._device_errors = btrfs.device_errors(self._directory)
            stack.callback(self._forget_own)
            stack.callback(self._close_piece)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self._stack.close()
        if isinstance(error, NoSpaceError) and self.goes_on is None:
            # The client begins anew, so these are of no use to it, and may be what takes the room.
            for partial in self._before:
                with contextlib.suppress(OSError):
                    partials.count_failure(self._directory, partial)

    def _lock_job(self) -> None:
        try:
            fcntl.flock(self._directory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"another session of this run is receiving into {self._directory}",
                hint="run `btrsync sync` again",
            ) from None

    @property
    def write_fd(self) -> int:
        """The pipe into the present piece's receive."""
        assert self._piece is not None
        return self._piece.write_fd

    @property
    def kept(self) -> PartialEntry | None:
        """What a later transfer could go on from, if this one ended now."""
        partial = self._own or self.goes_on
        return partial.entry if partial else None

    def start(self, first: FirstCommand) -> None:
        """Check what the stream announces against what was agreed, and give receive its head.

        Raises StreamError before receive has seen a byte.
        """
        for what, announced, agreed in (
            ("the UUID", first.uuid, self.begin.uuid),
            ("the ctransid", first.ctransid, self.begin.ctransid),
            ("the parent", first.parent_uuid, self.begin.send_parent),
        ):
            if announced != agreed:
                raise StreamError(0, f"it announces {what} {announced}, and {agreed} was agreed")
        self._start_piece(lambda path: format_head(first, path=path))

    def go_on(self, partial: Partial) -> None:
        """Start a piece that goes on from `partial`."""

        def format_start(path: bytes) -> bytes:
            return format_resumption(
                partial.entry.stream_version, path, self.begin.uuid, self.begin.ctransid,
                partial.record.partial_uuid, partial.generation,
            )  # fmt: skip

        self._start_piece(format_start)

    def checkpoint(self, entry: PartialEntry) -> None:
        """End the present piece, make it durable and keep it as what `entry` describes, then go on from it.

        Raises what `commit` raises; what was kept before is kept then.
        """
        self._checkpoint(entry)
        assert self._own is not None
        self.go_on(self._own)

    def keep(self, entry: PartialEntry | None) -> None:
        """End the transfer here; keep what `entry` describes, or else what the last checkpoint did.

        Raises what `commit` raises; what was kept before is kept then.
        """
        if entry is not None:
            self._checkpoint(entry)
        if self._own is not None:
            partials.delete_all(self._directory, self._before)
            self._own = None

    def failure(self) -> BtrsyncError:
        """Return why `btrfs receive` stopped reading; call it after a broken pipe."""
        assert self._piece is not None
        return self._receive_error(self._piece.end())

    def commit(self) -> Subvolume:
        """End the last piece, check it, put it on disk, give it its name; return what it is.

        Raises CommandError, NoSpaceError, IntegrityError or StorageError; nothing is visible then.
        """
        found, staging = self._finish_piece()
        with storage_errors(self._directory):
            files.rename_noreplace(self._directory_fd, staging, self.begin.name)
        try:
            os.fsync(self._directory_fd)
        except OSError as error:
            # Visible, and perhaps not on disk. The client must hear neither yes nor no, or it would drop its
            # snapshot: so the connection ends here, and the next run finds out.
            path = self._directory / self.begin.name
            raise UnreachableError(
                f"{path} has its name, but cannot be made durable: {error.strerror}"
            ) from error
        # Before anything else is received: they carry the same received UUID, and are older.
        partials.delete_all(self._directory, [*self._before, *([self._own] if self._own else [])])
        self._own = None
        # What cannot be put away is no failure of the backup: the client would drop its snapshot.
        with contextlib.suppress(BtrsyncError, OSError):
            self._close_piece()
        return found

    def _checkpoint(self, entry: PartialEntry) -> None:
        found, staging = self._finish_piece()
        name = partials.new_name()
        record = Record(partial_uuid=found.uuid, entry=entry)
        with storage_errors(self._directory):
            files.rename_noreplace(self._directory_fd, staging, name)
        older, self._own = self._own, Partial(name, record, found.generation)
        try:
            self._close_piece()
            # The record makes it a partial: only now, when all that it describes is on disk.
            with storage_errors(self._directory):
                partials.write(self._directory, name, record)
        except BaseException:
            partials.delete_all(self._directory, [self._own])
            self._own = older
            raise
        if older is not None:
            partials.delete_all(self._directory, [older])

    def _start_piece(self, format_start: Callable[[bytes], bytes]) -> None:
        staging = f"{INCOMING_PREFIX}{os.urandom(8).hex()}"
        with storage_errors(self._directory):
            self._piece = _Piece(
                self._directory, staging, self._lock_fd,
                priority=self._priority, buffer_bytes=self._buffer_bytes,
            )  # fmt: skip
        self.give(format_start(staging.encode()))

    def give(self, block: bytes | memoryview) -> None:
        """Write `block` into receive. Raises why it stopped reading, if it did."""
        try:
            pipes.write_all(self.write_fd, block)
        except BrokenPipeError:
            raise self.failure() from None

    def _finish_piece(self) -> tuple[Subvolume, str]:
        """Let receive come to its end, check its work, make it durable."""
        piece = self._piece
        assert piece is not None
        self.give(END_COMMAND)
        exit = piece.end()
        if exit.has_failed:
            raise self._receive_error(exit)
        found = btrfs.subvolume(self._directory / piece.staging)
        self._check_received(found, piece.staging)
        btrfs.sync_filesystem(self._directory_fd)
        # `sync` returns 0 after an aborted transaction too: look at what the kernel thinks of it.
        if os.fstatvfs(self._directory_fd).f_flag & os.ST_RDONLY:
            raise StorageError(
                f"the filesystem of {self._directory} was forced read-only", hint="see dmesg there"
            )
        if (errors := btrfs.device_errors(self._directory)) != self._device_errors:
            raise StorageError(
                f"the error counters of the array's devices moved during the transfer, to {errors}",
                hint="see `btrfs device stats` there; the backup was not committed",
            )
        return found, piece.staging

    def _receive_error(self, exit: Exit) -> BtrsyncError:
        if "No space left on device" in exit.stderr or "Disk quota exceeded" in exit.stderr:
            return NoSpaceError(f"no space left at the receiving end in {self._directory}", hint=MORE_SPACE)
        if not exit.has_failed:
            return StreamError(0, "it goes on behind its end")
        if self.goes_on is not None and self._own is None:
            with contextlib.suppress(OSError):
                partials.count_failure(self._directory, self.goes_on)
        # Its other lines name paths here, which are nobody else's business.
        reasons = [line for line in exit.stderr.splitlines() if line.startswith("ERROR: ")]
        words = reasons[-1] if reasons else last_lines(exit.stderr, lines=1)
        return CommandError(
            Exit(exit.argv, exit.returncode, words, exit.name),
            hint="nothing of this transfer was kept at the receiving end",
        )

    def _check_received(self, found: Subvolume, staging: str) -> None:
        # Complete is read-only *and* the received UUID: receive sets them last, in two steps.
        if (
            not found.is_readonly
            or found.received_uuid != self.begin.uuid
            or found.stransid != self.begin.ctransid
        ):
            raise IntegrityError(
                f"btrfs receive ended well, but {staging} is not what was sent: "
                f"read-only is {found.is_readonly}, received UUID {found.received_uuid} (sent:"
                f" {self.begin.uuid}), transaction {found.stransid} (sent: {self.begin.ctransid})"
            )

    def _close_piece(self) -> None:
        piece, self._piece = self._piece, None
        if piece is not None:
            piece.close()

    def _forget_own(self) -> None:
        # Neither committed nor kept: what this transfer has checkpointed goes, what was there before stays.
        if self._own is not None:
            partials.delete(self._directory, self._own.name)

    def _remove_directory(self) -> None:
        # Only while nothing was committed or kept in it.
        with contextlib.suppress(OSError):
            self._directory.rmdir()


class _Piece:
    """One `btrfs receive` into `staging`; closing it ends that and deletes what has that name still."""

    def __init__(
        self, directory: Path, staging: str, lock_fd: int, *, priority: Sequence[str], buffer_bytes: int
    ) -> None:
        self.staging = staging
        self._path = directory / staging
        with contextlib.ExitStack() as stack:
            stack.callback(self._delete)
            view = stack.enter_context(private_view(directory))
            argv = [*priority, *confined_argv(), *btrfs.receive_argv(view)]
            read_fd, self.write_fd = os.pipe()
            pipes.enlarge(self.write_fd, buffer_bytes)
            self._input = stack.enter_context(contextlib.ExitStack())
            self._input.callback(os.close, self.write_fd)
            try:
                # It ends with its input: what it has can only be kept by who feeds it.
                with stop_signals_blocked():
                    self._receive = stack.enter_context(
                        process.spawn(argv, stdin=read_fd, pass_fds=(lock_fd,), umask=0o077)
                    )
            finally:
                os.close(read_fd)
            self._stack = stack.pop_all()

    def end(self) -> Exit:
        """Close receive's input and wait for its end."""
        self._input.close()
        exit = self._receive.wait()
        return Exit(exit.argv, exit.returncode, exit.stderr, "btrfs receive")

    def close(self) -> None:
        self._input.close()
        self._stack.close()

    def _delete(self) -> None:
        if os.path.lexists(self._path):
            btrfs.delete_subvolume(self._path)


@contextlib.contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Let an OSError inside become a StorageError, or a NoSpaceError, that names the path or `directory`."""
    try:
        yield
    except OSError as error:
        where = error.filename or directory
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"{where}: no space left at the receiving end", hint=MORE_SPACE) from error
        raise StorageError(f"{where}: {os.strerror(error.errno or 0)}, at the receiving end") from error


def make_private_directory(directory: Path) -> bool:
    """Make `directory` for root alone if it is not there; tell whether it was made. Raises OSError."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True
