"""One backup on its way back: the client's part of a fetch, which is a server's in all other transfers."""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from btrsync.errors import (
    BtrsyncError,
    IntegrityError,
    NoSpaceError,
    ProtocolError,
    RemoteError,
    UnreachableError,
)
from btrsync.incoming import MORE_SPACE, Incoming
from btrsync.intake import Intake
from btrsync.piece import Care
from btrsync.plan.fetching import can_clone_from_original
from btrsync.protocol import Abort, Begin, Committed, End, Failed, Fetch, Ready, Stream, Total
from btrsync.system import btrfs
from btrsync.system.beneath import FilesBeneath
from btrsync.system.signals import stop_signals_deferred
from btrsync.target import backup_entry
from btrsync.wire import Data, StopAskedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from btrsync.partials import Partial
    from btrsync.plan.fetching import Parent
    from btrsync.plan.snapshots import Backup
    from btrsync.protocol import AnyMessage
    from btrsync.rate import RateLimit
    from btrsync.stream.rewriting import Rewriter
    from btrsync.wire import Wire


CHECKPOINT_BYTES = 4 << 30
CHECKPOINT_S = 300.0
"""As a server's, by default."""


class Request(NamedTuple):
    """What is to be fetched: `backup` of `job` into `directory`, from `send_parent` there.

    before: the partials of that very backup that are there; goes_on: that one of them which is to be
    continued; lock_fd: inherited by `btrfs receive`; progs_version: of btrfs-progs here; buffer_bytes: of the
    pipe into receive; rate: how fast it may come.
    """

    job: str
    backup: Backup
    send_parent: Parent | None
    directory: Path
    before: Sequence[Partial]
    goes_on: Partial | None
    lock_fd: int
    progs_version: str
    buffer_bytes: int
    rate: RateLimit


class Listener(Protocol):
    """Who hears how a fetch goes. progress: bytes of data that are written here, of how many."""

    def warning(self, text: str) -> None: ...
    def progress(self, data_bytes: int, total_bytes: int | None) -> None: ...


class Inflow:
    """One fetch; `look`, or `run` it once.

    `size_bytes` counts the stream on the wire, `data_bytes` what all of it has written,
    `resumed_from_bytes` what of that was there, `rewritten_bytes` what became of clones from the parent,
    where btrfs-progs here cannot make these, `kept_bytes` how much of the stream a failure has left here.
    """

    def __init__(self, request: Request, listener: Listener) -> None:
        self.kept_bytes = 0
        self.size_bytes = self.data_bytes = self.resumed_from_bytes = self.rewritten_bytes = 0
        self._request = request
        self._incoming: Incoming | None = None
        self._listener = listener
        parent = request.send_parent
        self._is_rewriting = (
            parent is not None and parent.is_original and not can_clone_from_original(request.progs_version)
        )

    def look(self, wire: Wire) -> Begin:
        """Return what would be sent. Raises RemoteError if it would not be."""
        wire.send(self._fetch(is_look_only=True))
        return self._expect_begin(wire)

    def run(self, wire: Wire) -> None:
        """Fetch it.

        Raises RemoteError if the target refuses or fails, UnreachableError if it is lost, what `Incoming` and
        `Intake` raise. What came is kept as a partial where it can be.
        """
        wire.send(self._fetch())
        try:
            # Again where the target starts over, or another stream is needed.
            while not self._receive(wire, self._expect_begin(wire)):
                pass
        except (UnreachableError, ProtocolError, RemoteError):
            raise
        except BtrsyncError as error:
            if self._incoming is not None and self._incoming.kept_bytes:
                self.kept_bytes = self._incoming.kept_bytes
            with contextlib.suppress(UnreachableError):
                wire.send(Failed(error.message, error.exit_status))
            raise

    def _fetch(self, *, is_look_only: bool = False) -> Fetch:
        asked = self._request
        return Fetch(
            asked.job, asked.backup.name, asked.send_parent.uuid if asked.send_parent else None,
            asked.goes_on.entry if asked.goes_on else None, is_look_only,
        )  # fmt: skip

    def _expect_begin(self, wire: Wire) -> Begin:
        begin = self._expect(wire, Begin)
        assert isinstance(begin, Begin)
        wanted = self._fetch()
        if (begin.job, begin.name, begin.send_parent) != (wanted.job, wanted.name, wanted.send_parent) or (
            begin.uuid != self._request.backup.received_uuid or begin.clone_sources
        ):
            raise ProtocolError(f"{wire.peer} begins to send something else than was asked for")
        entry = self._request.goes_on.entry if self._request.goes_on else None
        if begin.offset_bytes and (
            entry is None
            or (begin.offset_bytes, begin.digest, begin.ctransid)
            != (entry.offset_bytes, entry.proofs[-1].digest, entry.ctransid)
        ):
            raise ProtocolError(f"{wire.peer} goes on with something else than is here")
        return begin

    @staticmethod
    def _expect(wire: Wire, *wanted: type[AnyMessage]) -> AnyMessage:
        message = wire.receive()
        if isinstance(message, Failed):
            raise message.as_error()
        if isinstance(message, Data) or not isinstance(message, wanted):
            raise ProtocolError(f"{wire.peer} sent {type(message).__name__} out of turn")
        return message

    def _receive(self, wire: Wire, begin: Begin) -> bool:
        """Take one stream and commit it; False if the target gave it up, and will say why, or begin again."""
        goes_on = self._request.goes_on if begin.offset_bytes else None
        self.resumed_from_bytes = goes_on.entry.data_bytes if goes_on else 0
        with Incoming(
            self._request.directory, begin, self._request.lock_fd,
            before=self._request.before, goes_on=goes_on, care=Care(buffer_bytes=self._request.buffer_bytes),
        ) as incoming, contextlib.ExitStack() as stack:  # fmt: skip
            self._incoming = incoming
            self._check_room(begin)
            wire.send(Ready(self._request.progs_version))
            stream = self._expect(wire, Stream, Abort)
            if isinstance(stream, Abort):
                wire.send(_gave_up(stream, 0))
                return False
            assert isinstance(stream, Stream)
            rewriter = self._rewriter(stream, begin, stack) if self._is_rewriting else None
            intake = stack.enter_context(
                Intake(
                    wire,
                    incoming,
                    stream,
                    checkpoint_bytes=CHECKPOINT_BYTES,
                    checkpoint_s=CHECKPOINT_S,
                    limit_bytes=_limit(begin.total_bytes),
                    rewriter=rewriter,
                )
            )
            # Until it is committed: what is whole would be given up, just before it has its name.
            incoming.stop_fd = stop_fd = stack.enter_context(stop_signals_deferred())
            message = self._take_all(wire, intake, rewriter, stop_fd)
            if isinstance(message, Abort):
                wire.send(_gave_up(message, self.kept_bytes))
                return False
            self._check_end(wire, message, intake)
            found = incoming.commit()
            with contextlib.suppress(UnreachableError):
                # It is here, whether the target hears of it or not.
                wire.send(Committed(backup_entry(begin.name, found, 1), intake.data_bytes))
        return True

    def _rewriter(self, stream: Stream, begin: Begin, stack: contextlib.ExitStack) -> Rewriter:
        from btrsync.stream.rewriting import Rewriter

        assert self._request.send_parent is not None
        files = stack.enter_context(FilesBeneath(self._request.directory / self._request.send_parent.name))
        limit_bytes = _limit(begin.cloned_bytes)
        assert limit_bytes is not None
        return Rewriter(stream.stream_version, begin.uuid, files.read, limit_bytes=limit_bytes)

    def _check_room(self, begin: Begin) -> None:
        if begin.total_bytes is None:
            return
        from btrsync.plan.space import space_problem
        from btrsync.system.mounts import mount_of

        cloned_bytes = begin.cloned_bytes if self._is_rewriting else 0
        problem = space_problem(
            max(0, begin.total_bytes - self.resumed_from_bytes) + cloned_bytes,
            any(option.startswith("compress") for option in mount_of(self._request.directory).super_options),
            btrfs.space(self._request.directory),
            None,
        )
        if problem is not None and not problem.is_warning:
            raise NoSpaceError(f"{self._request.directory}: {problem.message}", hint=MORE_SPACE)
        if problem is not None:
            self._listener.warning(f"{self._request.directory}: {problem.message}")

    def _take_all(self, wire: Wire, intake: Intake, rewriter: Rewriter | None, stop_fd: int) -> AnyMessage:
        """Take the stream's frames and return the message behind them; keep what came if it breaks off.

        As a server does, but that here progress is shown.
        """
        with wire.stoppable(stop_fd):
            try:
                while isinstance(message := wire.receive(), (Data, Total)):
                    if isinstance(message, Total):
                        intake.total_bytes = message.total_bytes
                        continue
                    intake.take(message)
                    self.size_bytes += message.size_bytes
                    self.rewritten_bytes = rewriter.written_bytes if rewriter else 0
                    self.data_bytes = intake.data_bytes
                    self._listener.progress(self.data_bytes, intake.total_bytes)
                    self._hold_back(message.size_bytes, stop_fd)
            except (UnreachableError, StopAskedError):
                self._keep(intake)
                raise
            if isinstance(message, Abort):
                self._keep(intake)
            return message

    def _hold_back(self, size_bytes: int, stop_fd: int) -> None:
        """Wait until more may come, or we are to stop: what is not read, ssh and TCP soon do not send."""
        rate = self._request.rate
        if not rate.is_needed:
            return
        rate.take(size_bytes)
        poller = select.poll()
        poller.register(stop_fd, select.POLLIN)
        while wait_s := rate.wait_s(time.monotonic()):
            # A little at a time: another rate may begin meanwhile.
            if poller.poll(min(wait_s, 1.0) * 1000):
                return

    def _keep(self, intake: Intake) -> None:
        try:
            self.kept_bytes = intake.keep()
        except BtrsyncError as error:
            self._listener.warning(f"only the last checkpoint of the fetch was kept: {error}")

    def _check_end(self, wire: Wire, message: AnyMessage, intake: Intake) -> None:
        if isinstance(message, Failed):
            raise message.as_error()
        if not isinstance(message, End):
            raise ProtocolError(f"{wire.peer} sent {type(message).__name__} in the middle of a stream")
        if message.send_status or message.size_bytes != intake.size_bytes or not intake.is_whole():
            raise IntegrityError(
                f"the stream is not whole: {intake.size_bytes} bytes arrived, {message.size_bytes} were sent"
            )


def _limit(total_bytes: int | None) -> int | None:
    """Return how much may come where so much was announced: a lie, not a rounding, is refused."""
    return None if total_bytes is None else total_bytes + total_bytes // 64 + (1 << 20)


def _gave_up(abort: Abort, kept_bytes: int) -> Failed:
    reason = f"the stream was given up: {abort.reason}"
    return Failed(reason, IntegrityError.exit_status, kept_bytes=kept_bytes)
