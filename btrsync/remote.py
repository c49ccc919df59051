"""The client's end of the wire: a target behind ssh, or one on this machine with the same wire between.

One connection and one remote process serve a whole run, whatever the number of jobs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from datetime import UTC, datetime
from signal import SIGKILL
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from btrsync.errors import (
    BtrsyncError,
    CommandError,
    CommandTimeoutError,
    LockedError,
    ProtocolError,
    RemoteError,
    StorageError,
    UnreachableError,
)
from btrsync.plan.snapshots import Backup
from btrsync.protocol import (
    OUR_VERSIONS,
    Bye,
    Failed,
    Hello,
    Inventory,
    Message,
    Ready,
    Waiting,
)
from btrsync.system import pipes, process, ssh
from btrsync.system.signals import STOP_SIGNALS
from btrsync.wire import ClosedError, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from uuid import UUID

    from btrsync.config import TargetConfig
    from btrsync.protocol import BackupEntry, Begin, Committed, PartialEntry
    from btrsync.rate import RateLimit
    from btrsync.sending import Listener, Order, Sending

Expected = TypeVar("Expected", bound=Message)
Result = TypeVar("Result")

SERVE_WORDS = ("btrsync", "serve")
"""What ssh asks for. A forced command ignores it; a server without one says what is missing."""
EXIT_WAIT_S = 3.0
KEEPING_S = 60.0
"""How long a server on this machine may take to put on disk what it has received, before it is killed."""
LOST_US = (UnreachableError.exit_status, *(128 + number for number in (*STOP_SIGNALS, SIGKILL)))
"""What a server ends with that has lost us, or was told to stop: it may be there again soon."""


class UncertainError(UnreachableError):
    """The connection was lost after the stream had ended: the target may have committed."""


class Sharing(Protocol):
    """What several sessions of a run at one target have in common.

    socket: through which those behind the first one reach its ssh, None for a target on this machine;
    stop_fd: readable when all are to end, by what `stop_error` makes; rate: their limit together.
    """

    @property
    def socket(self) -> Path | None: ...
    @property
    def stop_fd(self) -> int: ...
    @property
    def rate(self) -> RateLimit: ...
    def stop_error(self) -> BtrsyncError: ...


class Remote:
    """A connection to the target `name`. Enter it to start ssh; then `greet`, then `send`.

    session: 0 for a run's first one there, another number for each that is used beside it, all of them
    with the same `sharing`.
    """

    def __init__(
        self,
        name: str,
        config: TargetConfig,
        *,
        run_id: str,
        software: str,
        is_look_only: bool,
        session: int = 0,
        sharing: Sharing | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self._session = session
        self._sharing = sharing
        self._run_id = run_id
        self._software = software
        self._is_look_only = is_look_only
        self._stack = contextlib.ExitStack()
        self._is_open = False
        self.is_lost = False
        self.is_greeted = False
        """Whether it has answered us in this run."""
        self.sent_bytes = 0
        self.may_hold: set[UUID] = set()
        """The snapshots of which the target may hold something, by announced UUID."""
        self.available_bytes: int | None = None
        self._rate_limit: RateLimit | None = None
        self.backups: dict[str, tuple[Backup, ...]] = {}
        self.partials: dict[str, tuple[PartialEntry, ...]] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            child_read_fd, write_fd = os.pipe()
            read_fd, child_write_fd = os.pipe()
            for fd in (write_fd, read_fd):
                stack.callback(os.close, fd)
                pipes.enlarge(fd)
            try:
                self._process = stack.enter_context(
                    process.spawn(self._argv(), stdin=child_read_fd, stdout=child_write_fd)
                )
            finally:
                os.close(child_read_fd)
                os.close(child_write_fd)
            if self.config.path is not None:
                stack.callback(self._let_it_keep)
            self._wire = stack.enter_context(Wire(read_fd, write_fd, peer=self.name))
            if (sharing := self._sharing) is not None:
                stack.enter_context(self._wire.stoppable(sharing.stop_fd, sharing.stop_error))
            self._stack = stack.pop_all()
        self._is_open = True
        self.is_lost = False
        return self

    def renew(self) -> None:
        """Start a new connection in place of one that is lost, or that was not greeted in time."""
        self.close()
        self.__enter__()

    def __exit__(self, exception: object, *_: object) -> None:
        if not self._is_open:
            return
        if exception is None and not self.is_lost:
            with contextlib.suppress(BtrsyncError, OSError):
                self._wire.send(Bye())
                # ssh takes its time to hang up: it is ended, and to the server the end of the line
                # between two transfers means the same as Bye. A server of our own ends by itself.
                if self.config.path is not None:
                    self._process.wait(timeout_s=EXIT_WAIT_S)
        self.close()

    def close(self) -> None:
        """End the connection without a word."""
        self._is_open = False
        self._stack.close()

    def _let_it_keep(self) -> None:
        # A server of our own would be killed before what it has received is on disk.
        self._process.terminate()
        with contextlib.suppress(CommandTimeoutError):
            self._process.wait(timeout_s=KEEPING_S)

    def _argv(self) -> list[str]:
        config = self.config
        if config.path is not None:
            if not config.path.is_dir():
                # Never made by itself: below a mount point without its disk it would lie on another one.
                raise StorageError(
                    f"{self.name}: {config.path} is not there",
                    hint=f"is its disk mounted? Otherwise: mkdir {config.path}",
                )
            # -P: or whatever `btrsync` lies in the working directory would run as root.
            return [
                sys.executable, "-P", "-m", "btrsync", "serve",
                "--root", str(config.path.parent), "--allow-fetch",
                "--", config.path.name,
            ]  # fmt: skip
        return ssh.ssh_argv(
            str(config.host),
            user=config.user,
            port=config.port,
            key=config.key,
            known_hosts=config.known_hosts,
            options=config.ssh_options,
            connect_timeout_s=config.connect_timeout_s,
            sharing=self._ssh_sharing(),
            command=SERVE_WORDS,
        )

    def _ssh_sharing(self) -> dict[str, str]:
        if self._sharing is None or self._sharing.socket is None:
            return {}
        if not self._session:
            # Left by an ssh that was killed: the next one would take it for in use.
            self._sharing.socket.unlink(missing_ok=True)
        return ssh.sharing_options(self._sharing.socket, is_first=not self._session)

    def greet(self, on_waiting: Callable[[str], None]) -> None:
        """Exchange banners and hellos, wait our turn, take in the inventory as `backups`.

        on_waiting: called with who is being served first. Raises UnreachableError, ProtocolError,
        LockedError, or RemoteError with what the server says is wrong.
        """
        with self._explained():
            # ssh itself needs time to connect and log in before the server can speak.
            self._wire.greet(OUR_VERSIONS, timeout_s=self.config.connect_timeout_s + 10.0)
            self._wire.start_heartbeats()
            self._wire.send(self._hello())
            self.peer = self._expect(Hello)
            if not self.peer.is_server:
                raise ProtocolError(
                    f"{self.name} gives our own words back",
                    hint="the forced command there must be `btrsync serve CLIENT`",
                )
            message = self._wait_for_inventory(on_waiting)
            self.leftovers_deleted = tuple(message.leftovers_deleted)
            self.backups = {job: tuple(map(_backup, entries)) for job, entries in message.jobs.items()}
            self.partials = {job: tuple(entries) for job, entries in message.partials.items()}
            self.available_bytes = message.available_bytes
            self.is_greeted = True
            # Nothing is under way there, so what it does not name it does not hold.
            self.may_hold &= self._partial_uuids() | {
                backup.received_uuid for backups in self.backups.values() for backup in backups
            }

    def send(self, order: Order, listener: Listener) -> Committed:
        """Send one stream and return what came of it; `sent_bytes` counts it.

        Raises what `Sending.run` does, and UncertainError if the target was lost when it may have
        committed already.
        """
        # Late: most runs send nothing.
        from btrsync.sending import Sending

        begin = order.begin
        sending = Sending(self._wire, self.name, self.config, order, self._rate(), listener)
        with self._explained():
            try:
                committed = sending.run()
            except (UnreachableError, ProtocolError) as error:
                if not sending.has_ended:
                    raise
                why = self._explain(error) if isinstance(error, ClosedError) else error
                raise UncertainError(
                    f"{why}; {begin.name} may have been committed there",
                    hint="the next run finds out by itself",
                ) from error
            except RemoteError as error:
                # The other end goes down, or has lost us.
                self.is_lost = error.retryable
                raise
            finally:
                self.sent_bytes += sending.sent_bytes
                self._note_held(begin, sending)
        self.may_hold.add(begin.uuid)
        self.backups[begin.job] = (*self.backups.get(begin.job, ()), _backup(committed.backup))
        return committed

    def converse(self, conversation: Callable[[Wire], Result]) -> Result:
        """Return what comes of a conversation over the greeted wire that begins and ends here."""
        with self._explained():
            try:
                return conversation(self._wire)
            except RemoteError as error:
                # The other end goes down, or has lost us.
                self.is_lost = error.retryable
                raise

    def wait_input(self, fd: int) -> None:
        """Wait until `fd` can be read. Raises UnreachableError if the target is lost meanwhile."""
        with self._explained():
            if not self._wire.wait_input(fd):
                self._expect(Ready)

    def _note_held(self, begin: Begin, sending: Sending) -> None:
        if sending.has_begun:
            self.may_hold.add(begin.uuid)
        if sending.kept_bytes == 0 and begin.uuid not in self._partial_uuids():
            self.may_hold.discard(begin.uuid)

    def _partial_uuids(self) -> set[UUID]:
        return {partial.uuid for entries in self.partials.values() for partial in entries}

    def _rate(self) -> RateLimit:
        if self._sharing is not None:
            return self._sharing.rate
        if self._rate_limit is None:
            self._rate_limit = rate_limit(self.config)
        return self._rate_limit

    def _hello(self) -> Hello:
        # Late, while ssh connects.
        from btrsync.system import btrfs

        return Hello(
            self._run_id, self._software, os.uname().release, btrfs.send_protocol(), self._is_look_only,
            session=self._session,
        )  # fmt: skip

    def _expect(self, wanted: type[Expected]) -> Expected:
        message = self._wire.receive()
        if isinstance(message, Failed):
            raise message.as_error()
        if not isinstance(message, wanted):
            raise ProtocolError(f"{self.name} sent {type(message).__name__} instead of {wanted.__name__}")
        return message

    def _wait_for_inventory(self, on_waiting: Callable[[str], None]) -> Inventory:
        deadline = time.monotonic() + self.config.busy_wait_s
        while True:
            message = self._wire.receive()
            if isinstance(message, Failed):
                raise message.as_error()
            if isinstance(message, Inventory):
                return message
            if not isinstance(message, Waiting):
                raise ProtocolError(f"{self.name} sent {type(message).__name__} instead of Inventory")
            if time.monotonic() > deadline:
                raise LockedError(f"{self.name} is busy with another run of this client", message.holder)
            on_waiting(message.holder)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Let ssh's own last words explain a connection that ended."""
        try:
            yield
        except ClosedError as error:
            self.is_lost = True
            raise self._explain(error) from error
        except (UnreachableError, ProtocolError):
            self.is_lost = True
            raise

    def _explain(self, error: ClosedError) -> BtrsyncError:
        """Return why the other end closed the connection; only where it did so does its ssh end soon."""
        try:
            exit = self._process.wait(timeout_s=EXIT_WAIT_S)
        except CommandTimeoutError:
            return error
        if not exit.has_failed:
            error.hint = error.hint or "the forced command there must be `btrsync serve CLIENT`"
            return error
        explained = ssh.classify(exit) if self.config.path is None else CommandError(exit)
        status = exit.returncode
        if self.is_greeted and isinstance(explained, CommandError) and (status in LOST_US or status < 0):
            return UnreachableError(f"{self.name}: the connection was lost: {explained}")
        return explained


def rate_limit(config: TargetConfig) -> RateLimit:
    """Return the limit for all that is sent to a target in one run."""
    from btrsync.rate import RateLimit

    return RateLimit(config.rate_limit_bytes, config.rate_limits, lambda: datetime.now(UTC).astimezone())


def _backup(entry: BackupEntry) -> Backup:
    return Backup(
        entry.name,
        entry.uuid,
        entry.received_uuid,
        entry.generation,
        entry.is_readonly,
        entry.created,
        entry.copies,
        entry.was_edited,
    )
