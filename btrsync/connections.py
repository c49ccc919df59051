"""The connections of one run: one for each target, whatever the number of jobs."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Self

from btrsync import __version__
from btrsync.errors import BtrsyncError, UnreachableError
from btrsync.remote import Remote

if TYPE_CHECKING:
    from types import TracebackType
    from uuid import UUID

    from btrsync.config import ClientConfig, TargetConfig
    from btrsync.report import Reporter

SOFTWARE = f"btrsync {__version__}"
FRESH_S = 5.0
"""How old a connection may be when it is first used: a server waits for the banner for twice as long."""


class Connections:
    """One connection for each target, started together; a failed one fails every job that wants it.

    One that is first wanted only after a long transfer to another target is started anew then.
    """

    def __init__(
        self, config: ClientConfig, targets: list[str], run_id: str, *, is_look_only: bool, report: Reporter
    ) -> None:
        self._config = config
        self._remotes = {
            name: Remote(
                name,
                config.targets[name],
                # Of each target its own: two that reach one directory must not take over from each other.
                run_id=f"{run_id}/{name}" if run_id else "",
                software=SOFTWARE,
                is_look_only=is_look_only,
            )
            for name in targets
        }
        self._report = report
        self._opened: dict[str, BtrsyncError | None] = {}
        self._started = 0.0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        with contextlib.ExitStack() as stack:
            for name, remote in self._remotes.items():
                try:
                    stack.enter_context(remote)
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

    def config(self, name: str) -> TargetConfig:
        """Return the configuration of a target."""
        return self._config.targets[name]

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
        return any(uuid in remote.may_hold for remote in self._remotes.values())

    def lose(self, name: str, error: BtrsyncError) -> None:
        """Remember that the connection to a target is gone, and why."""
        self._opened[name] = error
