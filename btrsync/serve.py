"""The server's end of the wire: what one connection of one client may ask, in which order.

The client's identity comes from the forced command alone. Whatever fails is told to the client as
one `Failed` message, and leaves its directory as it was.
"""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from btrsync.errors import (
    MACHINE_ERRNOS,
    BtrsyncError,
    IntegrityError,
    ProtocolError,
    UnreachableError,
    storage_error,
)
from btrsync.incoming import storage_errors
from btrsync.piece import Care
from btrsync.protocol import (
    MAX_REQUEST_BYTES,
    OUR_VERSIONS,
    Abort,
    Begin,
    Bye,
    Committed,
    End,
    Failed,
    Fetch,
    Hello,
    Inventory,
    Ready,
    Stream,
    Total,
    Waiting,
)
from btrsync.room import Room
from btrsync.system import btrfs
from btrsync.system.priority import priority_argv
from btrsync.system.process import is_child_stuck
from btrsync.system.signals import stop_signals_deferred
from btrsync.target import Target, backup_entry, open_target
from btrsync.turn import first_session, further_session
from btrsync.wire import ClosedError, Data, StopAskedError, Wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from btrsync.config import ServerConfig
    from btrsync.incoming import Incoming
    from btrsync.intake import Intake
    from btrsync.protocol import AnyMessage

RUN_ID_CHARACTERS = 128


def serve(
    load_config: Callable[[], ServerConfig],
    client: str,
    *,
    read_fd: int,
    write_fd: int,
    software: str,
    log: Callable[[str], None],
) -> int:
    """Serve one connection of `client` and return the exit status.

    load_config: called once the client can be told what is wrong with the configuration; software:
    our name and version; log: takes one line for the server's log. Never raises BtrsyncError.
    """
    peer = f"client {client}"
    with Wire(read_fd, write_fd, peer=peer, max_control_bytes=MAX_REQUEST_BYTES) as wire:
        try:
            wire.greet(OUR_VERSIONS)
            wire.start_heartbeats()
            _Connection(wire, client, log).run(load_config, software)
        except UnreachableError as error:
            # Nobody is left to be told.
            log(str(error))
            return error.exit_status
        except BtrsyncError as error:
            return _tell(wire, error, log)
        except OSError as error:
            if error.errno not in MACHINE_ERRNOS:
                raise
            return _tell(wire, storage_error(error, hint="see to the server"), log)
    return 0


def _tell(wire: Wire, error: BtrsyncError, log: Callable[[str], None]) -> int:
    log(str(error))
    with contextlib.suppress(UnreachableError):
        wire.send(_failed(error))
    return error.exit_status


class _Connection:
    def __init__(self, wire: Wire, client: str, log: Callable[[str], None]) -> None:
        self._wire = wire
        self._client = client
        self._log = log
        self._is_streaming = False
        self._kept_bytes = 0

    def run(self, load_config: Callable[[], ServerConfig], software: str) -> None:
        hello = self._expect_hello()
        config = load_config()
        directory = config.client_directory(self._client)
        self._wire.send(
            Hello(
                hello.run_id,
                software,
                os.uname().release,
                btrfs.send_protocol(),
                hello.is_look_only,
                is_server=True,
            )
        )
        with contextlib.ExitStack() as stack:
            swept: list[str] = []
            lock_fd = -1
            with storage_errors(directory):
                target = open_target(directory, root=config.root, is_look_only=hello.is_look_only)
                if not hello.is_look_only:
                    lock_fd = stack.enter_context(self._turn(target, hello, config, swept))
                room = Room(target, config.entry(self._client).quota_bytes)
                jobs = target.inventory()
                inventory = Inventory(jobs, swept, target.partials(), room.available_bytes(jobs))
            for name in swept:
                self._log(f"deleted {name}, left by an interrupted transfer")
            self._wire.send(inventory)
            self._converse(target, room, lock_fd, config)

    def _expect_hello(self) -> Hello:
        message = self._wire.receive()
        if not isinstance(message, Hello):
            raise ProtocolError(f"client {self._client} began with {type(message).__name__} instead of Hello")
        if len(message.run_id) > RUN_ID_CHARACTERS or not message.run_id.isprintable():
            raise ProtocolError(f"client {self._client} has {message.run_id[:100]!r} for its run id")
        return message

    def _turn(
        self, target: Target, hello: Hello, config: ServerConfig, swept: list[str]
    ) -> AbstractContextManager[int]:
        """Return our turn in the client's directory, to enter; `swept` takes the names of what goes."""
        if hello.session:
            return further_session(target.directory, self._client, hello.run_id)

        def sweep() -> None:
            ttl = timedelta(days=config.partial_ttl_days)
            swept.extend(target.sweep(now=datetime.now(UTC), partial_ttl=ttl))

        return first_session(
            target.directory, self._client, hello.run_id, wait_s=config.lock_wait_s,
            tell=lambda who: self._wire.send(Waiting(who)), sweep=sweep,
        )  # fmt: skip

    def _converse(self, target: Target, room: Room, lock_fd: int, config: ServerConfig) -> None:
        while True:
            try:
                message = self._wire.receive()
            except ClosedError:
                # Between two transfers the end of the line means no more than Bye: nothing is under way.
                return
            if isinstance(message, Bye):
                return
            if isinstance(message, Fetch):
                self._answer(target, message, config)
                continue
            if not isinstance(message, Begin) or lock_fd < 0:
                raise ProtocolError(f"client {self._client} sent {type(message).__name__} out of turn")
            self._kept_bytes = 0
            try:
                committed = self._receive(target, room, message, lock_fd, config)
            except (UnreachableError, ProtocolError):
                raise
            except BtrsyncError as error:
                self._log(f"{message.job}/{message.name}: {error}")
                self._wire.send(_failed(error, self._kept_bytes))
                if is_child_stuck():
                    # On a disk of ours too: nobody touches it any more, nor does who has its lock.
                    return
                self._drain()
            else:
                self._log(f"{message.job}/{message.name}: committed")
                self._wire.send(committed)

    def _answer(self, target: Target, fetch: Fetch, config: ServerConfig) -> None:
        # Late: hardly any connection fetches.
        from btrsync.outflow import Outflow

        name = f"{fetch.job[:200]}/{fetch.name[:200]}"
        try:
            committed = Outflow(self._wire, target, self._client, config, self._log).answer(fetch)
        except (UnreachableError, ProtocolError):
            raise
        except BtrsyncError as error:
            self._log(f"{name}: not fetched: {error}")
            self._wire.send(_failed(error))
        else:
            self._log(f"{name}: {'fetched' if committed else 'looked at'}")

    def _receive(
        self, target: Target, room: Room, begin: Begin, lock_fd: int, config: ServerConfig
    ) -> Committed:
        care = Care(
            priority_argv(config.nice, config.io_class), config.buffer_bytes, config.receive_timeout_s
        )
        incoming = target.incoming(begin, lock_fd=lock_fd, care=care)
        try:
            return self._take(incoming, room, begin, config)
        except BtrsyncError:
            self._kept_bytes = incoming.kept_bytes or self._kept_bytes
            raise

    def _take(self, incoming: Incoming, room: Room, begin: Begin, config: ServerConfig) -> Committed:
        with incoming:
            done_bytes = incoming.goes_on.entry.data_bytes if incoming.goes_on else 0
            warning = room.check(begin, done_bytes=done_bytes)
            self._wire.send(Ready(btrfs.progs_version(), warning))
            self._is_streaming = True
            stream = self._wire.receive()
            if isinstance(stream, Abort):
                self._is_streaming = False
                raise IntegrityError(f"the client gave up: {stream.reason}")
            if not isinstance(stream, Stream):
                raise ProtocolError(f"client {self._client} sent {type(stream).__name__} instead of Stream")
            # Late: most connections find nothing to do.
            from btrsync.intake import Intake

            with Intake(
                self._wire, incoming, stream,
                checkpoint_bytes=config.checkpoint_bytes, checkpoint_s=config.checkpoint_seconds,
                limit_bytes=room.limit_bytes(begin, done_bytes=done_bytes),
            ) as intake, stop_signals_deferred() as stop_fd:  # fmt: skip
                incoming.stop_fd = stop_fd
                self._end(self._take_all(intake, begin, stop_fd), intake)
                # The signals still wait: what is whole would be given up, just before it has its name.
                with room.turn(begin, intake.data_bytes, done_bytes=done_bytes):
                    found = incoming.commit()
                    try:
                        room.note(begin, found.uuid, intake.data_bytes)
                    except (BtrsyncError, OSError) as error:
                        # The backup is there, whatever the ledger says.
                        self._log(f"{begin.job}/{begin.name}: counts nothing against the quota: {error}")
                return Committed(backup_entry(begin.name, found, 1), intake.data_bytes)

    def _take_all(self, intake: Intake, begin: Begin, stop_fd: int) -> AnyMessage:
        """Take the stream's frames and return the message behind them; keep what came if the line breaks."""
        with self._wire.stoppable(stop_fd):
            try:
                while isinstance(message := self._wire.receive(), (Data, Total)):
                    if isinstance(message, Data):
                        intake.take(message)
                    else:
                        intake.total_bytes = message.total_bytes
                if isinstance(message, Abort):
                    self._is_streaming = False
                    self._keep(intake, begin)
            except UnreachableError:
                self._keep(intake, begin)
                raise
            except StopAskedError as error:
                self._keep(intake, begin)
                self._log(f"{begin.job}/{begin.name}: {error}")
                with contextlib.suppress(UnreachableError):
                    self._wire.send(_failed(error, self._kept_bytes))
                raise
        return message

    def _keep(self, intake: Intake, begin: Begin) -> None:
        try:
            self._kept_bytes = intake.keep()
        except BtrsyncError as error:
            # To be told as well: a client that hears of nothing drops its snapshot.
            self._kept_bytes = intake.checkpointed_bytes
            self._log(f"{begin.job}/{begin.name}: only the last checkpoint was kept: {error}")
        if self._kept_bytes:
            self._log(f"{begin.job}/{begin.name}: cut; kept up to byte {self._kept_bytes}")

    def _end(self, message: AnyMessage, intake: Intake) -> None:
        self._is_streaming = False
        if isinstance(message, Abort):
            raise IntegrityError(f"the client gave up: {message.reason}")
        if not isinstance(message, End):
            raise ProtocolError(
                f"client {self._client} sent {type(message).__name__} in the middle of a stream"
            )
        if message.send_status or message.size_bytes != intake.size_bytes or not intake.is_whole():
            raise IntegrityError(
                f"the stream is not whole: {intake.size_bytes} bytes arrived, {message.size_bytes} were sent,"
                f" btrfs send ended with status {message.send_status}"
                + ("" if intake.is_whole() else ", and there was no END command")
            )

    def _drain(self) -> None:
        """Pass over the rest of a stream that failed: the client learns of it between two frames."""
        self._wire.drop_body()
        while self._is_streaming:
            message = self._wire.receive()
            if isinstance(message, Data):
                self._wire.drop_body()
            elif isinstance(message, (End, Abort)):
                self._is_streaming = False
            elif not isinstance(message, Total):
                raise ProtocolError(
                    f"client {self._client} sent {type(message).__name__} in the middle of a stream"
                )


def _failed(error: BtrsyncError, kept_bytes: int = 0) -> Failed:
    return Failed(error.message, error.exit_status, error.hint, error.retryable, kept_bytes)
