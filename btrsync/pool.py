"""The sessions of one target in a run that serves several jobs at once: each is lent to one job at a time.

The first one makes the connection. The others go through it, and are made when another job wants the
target at the same time. If one is lost, all are: those at work are told to stop, and once nobody uses any,
one job connects anew and the others follow. So no new session meets an old one of its own run, which might
still be putting on disk what it had.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Protocol, Self

from btrsync.errors import BtrsyncError, RemoteError, UnreachableError
from btrsync.remote import Remote, rate_limit
from btrsync.wire import StopAskedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType
    from uuid import UUID

    from btrsync.config import TargetConfig
    from btrsync.remote import Sharing
    from btrsync.report import Reporter


class Opener(Protocol):
    """Who greets the first session, and connects it anew: `btrsync.connections.Connections`."""

    def open(self, name: str) -> Remote: ...
    def reopen(self, name: str) -> Remote: ...


class Pool:
    """The sessions at the target `name`, at most `limit` at once; entering it starts the first one.

    make: makes the session of a number. What they share is this (`btrsync.remote.Sharing`): `socket` is to
    be set before it is entered if they go through one ssh.
    """

    def __init__(
        self,
        name: str,
        config: TargetConfig,
        limit: int,
        *,
        make: Callable[[int, Sharing], Remote],
        opener: Opener,
        report: Reporter,
    ) -> None:
        self.goes_through_ssh = limit > 1 and config.path is None
        self.socket: Path | None = None
        self.stop_fd = -1
        self.rate = rate_limit(config)
        self.first = make(0, self)
        self._name = name
        self._limit = limit
        self._make = make
        self._opener = opener
        self._report = report
        self._remotes = [self.first]
        """All that there ever were: each remembers what the target may hold."""
        self._changed = threading.Condition()
        self._free: list[Remote] = []
        self._used: set[Remote] = set()
        self._lost: set[Remote] = set()
        """Those whose jobs wait for the connection to be made anew."""
        self._has_opened_first = False
        self._is_opening = False
        self._is_broken = False
        self._is_renewing = False
        self._renewals = 0
        self._failure: BtrsyncError = UnreachableError(f"{name}: there is no connection")
        self._is_stopping = False

    def __enter__(self) -> Self:
        self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.first.__enter__()
        except BaseException:
            os.close(self.stop_fd)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self.stop_fd)
            for remote in self._remotes:
                # The first one is left last: the others go through it.
                stack.push(remote)
            stack.__exit__(kind, exception, traceback)

    def stop_error(self) -> BtrsyncError:
        """Return why all sessions are to end now."""
        if self._is_stopping:
            return StopAskedError("this machine ended the transfer: it was asked to stop")
        return UnreachableError(f"{self._name}: the connection was lost in the transfer of another job")

    def stop(self) -> None:
        """Let every wait of a job end by StopAskedError, here and at its session."""
        with self._changed:
            self._is_stopping = True
            os.eventfd_write(self.stop_fd, 1)
            self._changed.notify_all()

    def may_hold(self, uuid: UUID) -> bool:
        """Tell whether the target holds, or may hold, that snapshot."""
        return any(uuid in remote.may_hold for remote in list(self._remotes))

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """The connection of one job for one delivery; it waits for its turn when it is opened."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            if lease.remote is not None:
                self._give_back(lease.remote)

    # --- taking and giving back ------------------------------------------------------------------

    def take(self) -> Remote:
        """Return a greeted session that nobody else uses. Raises what the last attempt to have one did."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_free() or self._may_open() or not self._is_hopeful())
                self._check_stop()
                if self._has_free():
                    remote = self._free.pop(0)
                    self._used.add(remote)
                    return remote
                if not self._may_open():
                    raise self._failure
                self._is_opening = True
            self._open_another()

    def _has_free(self) -> bool:
        return bool(self._free) and not self._is_broken

    def _may_open(self) -> bool:
        alive = len(self._free) + len(self._used) + len(self._lost)
        return not self._is_broken and not self._is_opening and alive < self._limit

    def _is_hopeful(self) -> bool:
        return not self._is_stopping and bool(self._is_opening or self._used or self._lost)

    def _open_another(self) -> None:
        try:
            remote = self._further() if self._has_opened_first else self._opener.open(self._name)
        except BtrsyncError as error:
            with self._changed:
                self._note_refusal(error)
        else:
            with self._changed:
                self._has_opened_first = True
                self._free.append(remote)
        finally:
            with self._changed:
                self._is_opening = False
                self._changed.notify_all()

    def _note_refusal(self, error: BtrsyncError) -> None:
        if not self._has_opened_first:
            self._is_broken, self._failure = True, error
        elif not self._is_broken and not self._is_stopping:
            self._limit = len(self._free) + len(self._used) + len(self._lost)
            self._report.warning(
                f"{self._name}: {self._limit} at once and no more, `parallel` asks for more: {error}"
            )

    def _further(self) -> Remote:
        remote = self._make(len(self._remotes), self)
        self._remotes.append(remote)
        try:
            remote.__enter__()
            self._greet(remote)
        except BaseException:
            remote.close()
            raise
        return remote

    def _greet(self, remote: Remote) -> None:
        remote.greet(lambda holder: self._report.step("", self._name, f"waiting: {holder}"))

    def _give_back(self, remote: Remote) -> None:
        with self._changed:
            if remote in self._used and not remote.is_lost:
                self._free.append(remote)
            self._used.discard(remote)
            self._lost.discard(remote)
            self._changed.notify_all()

    # --- lost, and made anew ---------------------------------------------------------------------

    def lose(self, remote: Remote, error: BtrsyncError) -> None:
        """Take in that a session is lost: all are, if another try may help; else this one alone."""
        with self._changed:
            self._used.discard(remote)
            may_pass = error.retryable and isinstance(error, (UnreachableError, RemoteError))
            if may_pass:
                self._lost.add(remote)
            if not self._is_broken:
                self._failure = error
                if may_pass:
                    self._is_broken = True
                    os.eventfd_write(self.stop_fd, 1)
            self._changed.notify_all()

    def renew(self, remote: Remote) -> None:
        """Make a lost session anew, and the connection before it if nobody else has. Raises what fails."""
        with self._changed:
            renewals = self._renewals
            self._changed.wait_for(
                lambda: (
                    self._is_stopping
                    or not self._is_broken
                    or not (self._is_renewing or self._is_opening or self._used)
                )
            )
            self._check_stop()
            if self._is_broken and self._renewals != renewals:
                # Another job has just tried, while we waited.
                raise self._failure
            is_ours = self._is_broken
            if is_ours:
                self._is_renewing = True
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.stop_fd)
        if is_ours:
            self._renew_first()
        self._renew_own(remote)

    def _renew_first(self) -> None:
        try:
            for remote in self._remotes[1:]:
                remote.close()
            self._opener.reopen(self._name)
        except BtrsyncError as error:
            self._failure = error
            raise
        else:
            with self._changed:
                self._is_broken = False
                self._free = [] if self.first in self._lost else [self.first]
        finally:
            with self._changed:
                self._renewals += 1
                self._is_renewing = False
                self._changed.notify_all()

    def _renew_own(self, remote: Remote) -> None:
        with self._changed:
            if self._is_broken:
                # Once more, since.
                raise self._failure
            self._lost.discard(remote)
            self._used.add(remote)
        if remote is self.first:
            return
        try:
            remote.renew()
            self._greet(remote)
        except BaseException as error:
            if isinstance(error, UnreachableError) and error.retryable:
                # The connection that it would be a session of is gone again: it is made anew first.
                self.lose(remote, error)
                raise
            with self._changed:
                self._used.discard(remote)
                self._lost.add(remote)
                self._changed.notify_all()
            raise

    def pause(self, seconds: float) -> None:
        """Let time pass. Raises StopAskedError as soon as all are to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping, seconds)
            self._check_stop()

    def _check_stop(self) -> None:
        if self._is_stopping:
            raise self.stop_error()


class Lease:
    """What one delivery has of a pool: `btrsync.delivery.Line`. The session is the same one throughout."""

    def __init__(self, pool: Pool) -> None:
        self.remote: Remote | None = None
        self._pool = pool

    def open(self, _name: str) -> Remote:
        """Wait for a session that is free, and return it, greeted. Raises what its greeting raised."""
        if self.remote is None:
            self.remote = self._pool.take()
        return self.remote

    def lose(self, _name: str, error: BtrsyncError) -> None:
        """Tell that the session is gone, and why."""
        assert self.remote is not None
        self._pool.lose(self.remote, error)

    def pause(self, seconds: float) -> None:
        """Let time pass, unless the run is to stop."""
        self._pool.pause(seconds)

    def reopen(self, name: str) -> Remote:
        """Return a new session in place of the one that was lost; raises what its greeting raises."""
        remote = self.open(name)
        self._pool.renew(remote)
        return remote
