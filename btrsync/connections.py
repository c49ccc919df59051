"""The connections of one run: one for each target, whatever the number of jobs."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Self

from btrsync import __version__
from btrsync.errors import BtrsyncError, UnreachableError
from btrsync.remote import Remote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType
    from uuid import UUID

    from btrsync.config import ClientConfig, TargetConfig
    from btrsync.pool import Lease, Pool
    from btrsync.remote import Sharing
    from btrsync.report import Reporter

SOFTWARE = f"btrsync {__version__}"
FRESH_S = 5.0
"""How old a connection may be when it is first used: a server waits for the banner for twice as long."""


class Connections:
    """One connection for each target, started together; a failed one fails every job that wants it.

    One that is first wanted only after a long transfer to another target is started anew then.
    sessions: of a run that serves several jobs at once, how many may be at each target; socket_directory:
    where a directory for the sockets is made through which they share an ssh; needed with those.
    """

    def __init__(
        self,
        config: ClientConfig,
        targets: list[str],
        run_id: str,
        *,
        is_look_only: bool,
        report: Reporter,
        sessions: Mapping[str, int] | None = None,
        socket_directory: Path | None = None,
    ) -> None:
        self._config = config
        self._run_id = run_id
        self._is_look_only = is_look_only
        self._report = report
        self._socket_directory = socket_directory
        self._pools = {name: self._pool(name, sessions[name]) for name in targets} if sessions else {}
        self._remotes = {
            name: self._pools[name].first if self._pools else self._remote(name) for name in targets
        }
        self._opened: dict[str, BtrsyncError | None] = {}
        self._started = 0.0
        self._stack = contextlib.ExitStack()

    def _remote(self, name: str, session: int = 0, sharing: Sharing | None = None) -> Remote:
        return Remote(
            name,
            self._config.targets[name],
            # Of each target its own: two that reach one directory must not take over from each other.
            run_id=f"{self._run_id}/{name}" if self._run_id else "",
            software=SOFTWARE,
            is_look_only=self._is_look_only,
            session=session,
            sharing=sharing,
        )

    def _pool(self, name: str, limit: int) -> Pool:
        # Late: most runs have none.
        from btrsync.pool import Pool

        make = functools.partial(self._remote, name)
        return Pool(name, self._config.targets[name], limit, make=make, opener=self, report=self._report)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        with contextlib.ExitStack() as stack:
            self._make_sockets(stack)
            for name, remote in self._remotes.items():
                try:
                    stack.enter_context(self._pools.get(name, remote))
                except BtrsyncError as error:
                    self._opened[name] = error
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, exception, traceback)

    def _make_sockets(self, stack: contextlib.ExitStack) -> None:
        """Give those that share an ssh the path of a socket, which only root can reach."""
        sharing = [pool for pool in self._pools.values() if pool.goes_through_ssh]
        if not sharing:
            return
        from btrsync.system.lock import own_directory

        assert self._socket_directory is not None
        path = stack.enter_context(own_directory(self._socket_directory, "ssh-"))
        for number, pool in enumerate(sharing):
            # Short: the path of a socket has 107 bytes at most. Source: unix(7).
            pool.socket = path / str(number)

    def config(self, name: str) -> TargetConfig:
        """Return the configuration of a target."""
        return self._config.targets[name]

    def lent(self, name: str) -> AbstractContextManager[Connections | Lease]:
        """The connection to a target, for one job at one time."""
        return self._pools[name].lease() if self._pools else contextlib.nullcontext(self)

    def stop(self) -> None:
        """Let every job that goes on beside others end soon, by StopAskedError."""
        for pool in self._pools.values():
            pool.stop()

    @staticmethod
    def pause(seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def open(self, name: str) -> Remote:
        """Return the greeted connection to a target; raises what its greeting raised, each time."""
        remote = self._remotes[name]
        if name not in self._opened:
            self._greet(remote, is_new=time.monotonic() - self._started > FRESH_S)
        failure = self._opened[name]
        if failure is not None:
            raise failure
        return remote

    def reopen(self, name: str) -> Remote:
        """Return a new connection in place of one that was lost; raises what its greeting raises."""
        self._greet(self._remotes[name], is_new=True)
        return self.open(name)

    def _greet(self, remote: Remote, *, is_new: bool) -> None:
        name = remote.name
        # Whatever ends the greeting, no connection may look open then, and empty.
        self._opened[name] = UnreachableError(f"{name}: the greeting did not come to its end")
        try:
            if is_new:
                remote.renew()
            remote.greet(lambda holder: self._report.step("", name, f"waiting: {holder}"))
        except BtrsyncError as error:
            self._opened[name] = error
        else:
            self._opened[name] = None
            for leftover in remote.leftovers_deleted:
                self._report.step("", name, f"deleted {leftover}, left by an interrupted transfer")

    def may_hold(self, uuid: UUID) -> bool:
        """Tell whether any target holds, or may hold, a snapshot that this run sent."""
        if self._pools:
            return any(pool.may_hold(uuid) for pool in self._pools.values())
        return any(uuid in remote.may_hold for remote in self._remotes.values())

    def lose(self, name: str, error: BtrsyncError) -> None:
        """Remember that the connection to a target is gone, and why."""
        self._opened[name] = error
