"""One transfer, from the client's end of the wire: announced, sent or gone on with, and its end heard.

What the target has of it is read again from `btrfs send`, proven and thrown away, before a byte is sent.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from btrsync.errors import (
    BtrsyncError,
    CommandError,
    PrefixMismatchError,
    ProtocolError,
    RemoteError,
    UnreachableError,
)
from btrsync.plan.sizes import format_size
from btrsync.plan.stream_choice import StreamChoice, can_receive, choose_stream
from btrsync.protocol import (
    MAX_DATA_BYTES,
    Abort,
    Begin,
    Committed,
    End,
    Failed,
    Message,
    Progress,
    Ready,
    Stream,
    Total,
)
from btrsync.system import pipes, process
from btrsync.system.priority import priority_argv
from btrsync.wire import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from btrsync.protocol import PartialEntry
    from btrsync.rate import RateLimit
    from btrsync.system.process import Process
    from btrsync.wire import Wire

Expected = TypeVar("Expected", bound=Message)

PROVING_INTERVAL_S = 5.0
FRAME_BYTES = 512 << 10
GATHERING_S = 0.016
"""How long the pipe may fill before what little is in it becomes a frame."""


class Order(NamedTuple):
    """What is to be sent. begin: without offset and total; argv: of the `btrfs send` in a given form.

    total_bytes: what a stream of a given version writes, None if that is not known yet; goes_on: the
    partial to go on from; send_protocol: the highest stream version of this kernel.
    """

    begin: Begin
    argv: Callable[[StreamChoice], Sequence[str]]
    total_bytes: Callable[[int], int | None]
    send_protocol: int
    goes_on: PartialEntry | None = None


class Manners(Protocol):
    """How it is sent: the fields of a `btrsync.config.TargetConfig` that say so."""

    @property
    def compressed(self) -> Literal["auto", "always", "never"]: ...
    @property
    def nice(self) -> int: ...
    @property
    def io_class(self) -> Literal["idle", "best-effort"] | None: ...
    @property
    def buffer_bytes(self) -> int: ...


class Listener(Protocol):
    """Who hears how one transfer goes. progress: bytes of data that the target has written, of how many."""

    def step(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def progress(self, data_bytes: int, total_bytes: int | None) -> None: ...
    def starts_over(self, why: str) -> None: ...


class _StartsOverError(Exception):
    """What the target has of it is of no use."""


class Sending:
    """One transfer over the greeted `wire` to the target `name`; `run` it once.

    `sent_bytes` counts the stream on the wire; `has_begun` and `has_ended` tell whether the target was given
    the first and the last of it; `kept_bytes` how much a target that failed has kept, None if it did not say.
    """

    def __init__(
        self, wire: Wire, name: str, config: Manners, order: Order, rate: RateLimit, listener: Listener
    ) -> None:
        self.sent_bytes = 0
        self.kept_bytes: int | None = None
        self.has_begun = False
        self.has_ended = False
        self._stream_version = 1
        self._total_bytes: int | None = None
        """What the target knows of it."""
        self._is_awaited = False
        """Whether the target waits for more of us, and for an Abort if there is none."""
        self._wire = wire
        self._name = name
        self._config = config
        self._order = order
        self._rate = rate
        self._listener = listener

    def run(self) -> Committed:
        """Send it, and return what came of it.

        Raises CommandError if `btrfs send` fails, RemoteError if the target refuses or fails, RefusedError
        if it cannot take what it must, UnreachableError if it is lost.
        """
        if self._order.goes_on is not None:
            try:
                return self._go_on(self._order.goes_on)
            except _StartsOverError as error:
                self._listener.starts_over(str(error))
        return self._start()

    # --- from the beginning, or from what is there ----------------------------------------------

    def _start(self) -> Committed:
        choice = self._choose(None)
        while True:
            total_bytes = self._order.total_bytes(choice.stream_version)
            with self._aborted_on_error():
                ready = self._announce(total_bytes=total_bytes)
                choice = self._choose(ready.btrfs_progs)
                if total_bytes in (None, self._order.total_bytes(choice.stream_version)):
                    with self._sending(choice) as (send, read_fd):
                        return self._send(send, read_fd, choice)
            # A receiver so old that it takes holes as zeros: that is more than was announced.
            self._abort(BtrsyncError("its total is another one"))

    def _go_on(self, partial: PartialEntry) -> Committed:
        """Send what comes behind `partial`. Raises _StartsOverError before the target has seen a byte."""
        choice = StreamChoice(partial.stream_version, partial.is_compressed)
        with self._sending(choice) as (send, read_fd):
            try:
                self._prove(partial, send, read_fd)
            except PrefixMismatchError as error:
                raise _StartsOverError(
                    f"the stream differs from byte {error.offset_bytes} on: {error.problem}"
                ) from error
            proof = partial.proofs[-1]
            total_bytes = self._order.total_bytes(choice.stream_version)
            with self._aborted_on_error():
                ready = self._announce(
                    total_bytes=total_bytes, offset_bytes=proof.offset_bytes, digest=proof.digest
                )
                if can_receive(choice.stream_version, ready.btrfs_progs):
                    self._listener.progress(partial.data_bytes, total_bytes)
                    return self._send(send, read_fd, choice)
        too_old = f"{self._name} has btrfs-progs {ready.btrfs_progs}, too old for its stream"
        self._abort(BtrsyncError(too_old))
        raise _StartsOverError(too_old)

    def _choose(self, progs_version: str | None) -> StreamChoice:
        return choose_stream(
            self._config.compressed,
            send_protocol=self._order.send_protocol,
            progs_version=progs_version,
            target=self._name,
        )

    def _prove(self, partial: PartialEntry, send: Process, read_fd: int) -> None:
        """Read what the target has off `btrfs send`. Raises PrefixMismatchError if it is something else."""
        from btrsync.stream.prefix import Prefix

        prefix = Prefix(partial.proofs)
        size = format_size(partial.offset_bytes)
        said = time.monotonic()
        with Path(os.devnull).open("wb", buffering=0) as null:
            while not prefix.is_proven:
                if not self._wire.wait_input(read_fd):
                    self._heed()
                    continue
                size_bytes, is_unread = prefix.next_bytes()
                if is_unread:
                    moved = os.splice(read_fd, null.fileno(), size_bytes)
                    if moved:
                        prefix.skip(moved)
                        continue
                block = b"" if is_unread else os.read(read_fd, size_bytes)
                if not block:
                    self._check_exit(send)
                    raise PrefixMismatchError(prefix.offset_bytes, "it ends there")
                prefix.feed(block)
                if time.monotonic() - said > PROVING_INTERVAL_S:
                    said = time.monotonic()
                    percent = 100 * prefix.offset_bytes // partial.offset_bytes
                    self._listener.step(f"read again {percent} % of the {size} that are there")

    # --- the stream ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _sending(self, choice: StreamChoice) -> Iterator[tuple[Process, int]]:
        """A running `btrfs send`, and the pipe that it writes to."""
        config = self._config
        argv = [*priority_argv(config.nice, config.io_class), *self._order.argv(choice)]
        with contextlib.ExitStack() as stack:
            read_fd, write_fd = os.pipe()
            try:
                # Left last: who writes no more to a reader is done with.
                stack.callback(os.close, read_fd)
                pipes.enlarge(write_fd, config.buffer_bytes)
                send = stack.enter_context(process.spawn(argv, stdout=write_fd))
            finally:
                os.close(write_fd)
            yield send, read_fd

    def _announce(self, *, total_bytes: int | None, offset_bytes: int = 0, digest: bytes = b"") -> Ready:
        self._total_bytes, self.kept_bytes = total_bytes, None
        begin = replace(self._order.begin, total_bytes=total_bytes, offset_bytes=offset_bytes, digest=digest)
        self._wire.send(begin)
        ready = self._expect(Ready)
        self._is_awaited = True
        if ready.warning:
            self._listener.warning(f"{self._name}: {ready.warning}")
        return ready

    def _send(self, send: Process, read_fd: int, choice: StreamChoice) -> Committed:
        self._wire.send(Stream(choice.stream_version, choice.is_compressed))
        self.has_begun = True
        self._stream_version = choice.stream_version
        try:
            self._forward(read_fd)
        except ClosedError:
            # It may have said why before it hung up.
            self._heed()
            raise
        self._check_exit(send)
        self._is_awaited, self.has_ended = False, True
        self._wire.send(End(self.sent_bytes))
        return self._expect(Committed)

    def _forward(self, read_fd: int) -> None:
        """Pass what comes to the wire, no faster than is allowed."""
        limit_bytes = MAX_DATA_BYTES
        # No more than what the pipe has become: it may be smaller than what was asked for.
        frame_bytes = min(FRAME_BYTES, pipes.enlarge(read_fd, self._config.buffer_bytes) // 2)
        while True:
            if self._rate.is_needed:
                allowed = self._rate.allowance(time.monotonic())
                if allowed == 0:
                    self._wire.pause(self._rate.wait_s(time.monotonic()))
                    self._heed()
                    continue
                limit_bytes = MAX_DATA_BYTES if allowed is None else allowed
            if self._wire.wait_input(read_fd):
                # `btrfs send` writes command by command, and each frame costs both ends some 50 us.
                pipes.wait_filled(read_fd, frame_bytes, GATHERING_S)
                moved = self._wire.forward(read_fd, limit_bytes)
                if not moved:
                    return
                self.sent_bytes += moved
                self._rate.take(moved)
                self._tell_total()
            self._heed()

    def _tell_total(self) -> None:
        """Tell the target what has been counted beside: a partial's record says how much of it is there."""
        if self._total_bytes is None:
            self._total_bytes = self._order.total_bytes(self._stream_version)
            if self._total_bytes is not None:
                self._wire.send(Total(self._total_bytes))

    @staticmethod
    def _check_exit(send: Process) -> None:
        exit = send.wait()
        if exit.has_failed:
            raise CommandError(exit)

    # --- what the target says ------------------------------------------------------------------

    def _heed(self) -> None:
        """Take in what has come meanwhile: how far the target is, or that it failed."""
        while (message := self._wire.pending()) is not None:
            self._take(message)

    def _expect(self, wanted: type[Expected]) -> Expected:
        while True:
            message = self._wire.receive()
            if isinstance(message, wanted):
                return message
            self._take(message)

    def _take(self, message: object) -> None:
        if isinstance(message, Failed):
            self.kept_bytes = message.kept_bytes
            raise message.as_error()
        if not isinstance(message, Progress):
            raise ProtocolError(f"{self._name} sent {type(message).__name__} in the middle of a transfer")
        self._listener.progress(message.data_bytes, self._total_bytes)

    @contextlib.contextmanager
    def _aborted_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # Also when we are interrupted: the target need not wait for silence.
            self._abort(error)
            raise

    def _abort(self, error: BaseException) -> None:
        """Tell a target that waits for more why none comes, and hear what it has kept."""
        if not self._is_awaited:
            return
        self._is_awaited = False
        with contextlib.suppress(UnreachableError, RemoteError, ProtocolError):
            self._wire.send(Abort((str(error) or type(error).__name__)[:1000]))
            # The target answers with Failed, but not a failure of its own with a second one. Whom a signal
            # stops has nothing more to say here, so need not wait for who may never answer.
            if isinstance(error, BtrsyncError) and not isinstance(error, RemoteError):
                self._expect(Committed)
