"""One backup on its way in: pieces of `btrfs receive`, checkpoints between them, and the commit.

A *piece* is one receive (`btrsync.piece`) into `.incoming-<id>`, in the same directory as the backup's final
name, for a read-only subvolume cannot be moved to another (EROFS; measured). A *checkpoint* ends a piece with
an END of our own, makes it durable and keeps it as a partial; the next piece goes on from a snapshot of that.
*Commit* is the only way to a visible name: checked, on disk, renamed, acknowledged, in this order.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from signal import SIGKILL
from typing import TYPE_CHECKING, Self

from btrsync import partials
from btrsync.errors import (
    BtrsyncError,
    CommandError,
    Exit,
    IntegrityError,
    NoSpaceError,
    RefusedError,
    StalledError,
    StorageError,
    StreamError,
    UnreachableError,
    last_lines,
)
from btrsync.partials import Partial, Record
from btrsync.piece import Care, Piece
from btrsync.stream.head import format_head
from btrsync.stream.pieces import END_COMMAND, format_resumption
from btrsync.system import btrfs, files, process
from btrsync.wire import StopAskedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from btrsync.plan.snapshots import Subvolume
    from btrsync.protocol import Begin, PartialEntry
    from btrsync.stream.head import FirstCommand

INCOMING_PREFIX = ".incoming-"
USUAL_CARE = Care()
MORE_SPACE = "free space there, or add a disk to its array"


class Incoming:
    """A transfer in progress. Left without `commit` or `keep`, the directory is as it was.

    before: the partials of this very snapshot that are there; goes_on: that one of them which the
    stream continues, None for a stream from its beginning; others: those of other snapshots of the job;
    lock_fd: inherited by `btrfs receive`, so that the lock outlives a killed server for as long as its
    receive does; care: how that is run.

    What the stream is to blame for leaves nothing of it. What this machine is to blame for leaves the last
    checkpoint: receive was killed or stood still, a disk failed or is full. `kept_bytes` tells afterwards how
    much of the stream that is.
    """

    def __init__(
        self,
        directory: Path,
        begin: Begin,
        lock_fd: int,
        *,
        before: Sequence[Partial] = (),
        others: Sequence[Partial] = (),
        goes_on: Partial | None = None,
        care: Care = USUAL_CARE,
    ) -> None:
        self.begin = begin
        self.goes_on = goes_on
        self.stop_fd: int | None = None
        """What can be read once we are asked to stop: receive may not stand still for long then."""
        self.kept_bytes = 0
        self._directory = directory
        self._lock_fd = lock_fd
        self._before = tuple(before)
        self._others = tuple(others)
        self._own: Partial | None = None
        self._care = care
        self._is_accident = False
        self._piece: Piece | None = None
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
        kept = self._own or self.goes_on
        if self._is_accident and kept is not None:
            self.kept_bytes = kept.entry.offset_bytes
        is_superseded = self._is_accident and self._own is not None
        if is_superseded:
            self._let_own_stay()
        with contextlib.suppress(*((BtrsyncError, OSError) if error is not None else ())):
            # What cannot be put away is not what went wrong; the sweep of the next connection sees to it.
            self._stack.close()
        if isinstance(error, NoSpaceError):
            # The client goes on with none of these: they are of no use to it, and may be what takes the room.
            is_anew = self.goes_on is None and not is_superseded
            for partial in (*self._others, *(self._before if is_anew else ())):
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
        with self._accidents_noted():
            self._checkpoint(entry)
            assert self._own is not None
            self.go_on(self._own)

    def keep(self, entry: PartialEntry | None) -> None:
        """End the transfer here; keep what `entry` describes, or else what the last checkpoint did.

        Raises what `commit` raises; what was kept before is kept then.
        """
        if entry is not None:
            with self._accidents_noted():
                self._checkpoint(entry)
        self._let_own_stay()

    def _let_own_stay(self) -> None:
        if self._own is not None:
            # Where receive hangs we would hang as well: the sweep keeps but the newest.
            if not process.is_child_stuck():
                partials.delete_all(self._directory, self._before)
            self._own = None

    def commit(self) -> Subvolume:
        """End the last piece, check it, put it on disk, give it its name; return what it is.

        Raises CommandError, NoSpaceError, IntegrityError or StorageError; nothing is visible then.
        """
        with self._accidents_noted():
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
            self._piece = Piece(self._directory, staging, self._lock_fd, self._care)
        self.give(format_start(staging.encode()))

    def give(self, block: bytes | memoryview) -> None:
        """Write `block` into receive. Raises why it stopped reading, if it did."""
        with self._fed() as piece:
            piece.give(block)

    def splice(self, source_fd: int, size_bytes: int) -> None:
        """Move as much, which is there, from the pipe `source_fd` into receive. Raises as `give` does."""
        with self._fed() as piece:
            piece.splice(source_fd, size_bytes)

    @contextlib.contextmanager
    def _fed(self) -> Iterator[Piece]:
        piece = self._piece
        assert piece is not None
        piece.stop_fd = self.stop_fd
        with self._accidents_noted():
            try:
                yield piece
            except BrokenPipeError:
                raise self._receive_error(piece.end()) from None

    @contextlib.contextmanager
    def _accidents_noted(self) -> Iterator[None]:
        """The time in which what this machine is to blame for is noted: see above."""
        try:
            yield
        except BtrsyncError as error:
            if _is_accident(error) and not self._is_accident:
                self._is_accident = True
                has_kept = self._own is not None or self.goes_on is not None
                error.message += (
                    "; what came up to the last checkpoint is kept"
                    if has_kept
                    else "; there was no checkpoint yet"
                )
            raise

    def _finish_piece(self) -> tuple[Subvolume, str]:
        """Let receive come to its end, check its work, make it durable."""
        piece = self._piece
        assert piece is not None
        self.give(END_COMMAND)
        piece.stop_fd = self.stop_fd
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
        if self.goes_on is not None and self._own is None and exit.returncode != -SIGKILL:
            with contextlib.suppress(OSError):
                partials.count_failure(self._directory, self.goes_on)
        # Its other lines name paths here, which are nobody else's business.
        reasons = [line for line in exit.stderr.splitlines() if line.startswith("ERROR: ")]
        words = reasons[-1] if reasons else last_lines(exit.stderr, lines=1)
        hint = "nothing of this transfer was kept at the receiving end" if exit.returncode > 0 else None
        return CommandError(Exit(exit.argv, exit.returncode, words, exit.name), hint=hint)

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
        if not process.is_child_stuck():
            with contextlib.suppress(OSError):
                self._directory.rmdir()


def _is_accident(error: BtrsyncError) -> bool:
    """Tell whether it is this machine that failed, and not what was sent."""
    if isinstance(error, CommandError):
        return error.exit.returncode < 0
    return isinstance(error, (StalledError, StopAskedError, StorageError))


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
