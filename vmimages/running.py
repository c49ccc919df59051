"""One boot of one guest: its processes, its console, its end."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import stat
import time
from typing import TYPE_CHECKING, cast

from harness import command
from vmimages import keeper
from vmimages.console import Console
from vmimages.errors import VmError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmimages.boot import Boot, Launch
    from vmimages.image import BackendName, Image

BACKENDS = {"uml": "vmimages.uml", "qemu": "vmimages.qemu"}
"""Each module has `launch(boot: Boot) -> Launch`; imported when it is wanted."""
END_S = 5.0
TICK_S = 0.1
TAIL_LINES = 25


class GuestFailed(AssertionError):
    """A guest did not do what a healthy one does; the text ends with the last of its console."""

    def __init__(self, problem: str, console: str) -> None:
        self.problem = problem
        tail = "\n".join(console.rstrip().split("\n")[-TAIL_LINES:])
        super().__init__(f"{problem}\nconsole, its last lines:\n{tail or '-'}")


class GuestPanicked(GuestFailed):
    """The guest's kernel said that it has failed."""


class GuestEnded(GuestFailed):
    """The guest ended without being told to."""


class GuestHung(GuestFailed):
    """The guest did not come to what was waited for by its deadline."""


def choose_backend(image: Image, wanted: BackendName | None) -> BackendName:
    """Return the backend wanted, or the first of "uml", "qemu" that the image has a kernel for.

    Raises VmError if it has none for the one wanted.
    """
    chosen: BackendName = wanted or ("uml" if "uml" in image.kernels else "qemu")
    if chosen not in image.kernels:
        raise VmError(f"the image {image.name} has no kernel for {chosen}")
    return chosen


def check_reach(path: Path) -> None:
    """See that the user a guest runs as gets to a file. Raises VmError if a directory is closed to it."""
    user = keeper.unprivileged()
    if user is None:
        return
    for parent in path.resolve().parents:
        entry = parent.stat()
        if not entry.st_mode & stat.S_IXOTH and entry.st_uid != user[0]:
            raise VmError(
                f"no guest gets to {path}: it runs as {keeper.UNPRIVILEGED}, to whom {parent} is closed",
                hint=f"keep it elsewhere, or: chmod o+x {parent}",
            )


def give(path: Path) -> None:
    """Make the user that a guest runs as the owner of a file or directory."""
    user = keeper.unprivileged()
    if user is not None:
        os.chown(path, *user)


class Running:
    """A guest that runs, from its start until `kill()` or its own end; nothing of it outlives us.

    console: the file it is written to, at its end; None where `boot.has_terminal`.
    """

    def __init__(self, boot: Boot, backend: BackendName, console: Path | None) -> None:
        """Start it. Raises VmError if one of its disks is out of reach."""
        for drive in boot.drives:
            check_reach(drive.path)
        launch = cast("Callable[[Boot], Launch]", importlib.import_module(BACKENDS[backend]).launch)(boot)
        self.console = None if console is None else Console(console)
        reading, self._pipe = os.pipe2(os.O_CLOEXEC)
        out = None if console is None else os.open(console, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        fds = [reading, boot.control_fd, *([] if boot.link_fd is None else [boot.link_fd])]
        try:
            self._process: command.Process = command.Process(
                keeper.keeper_argv(launch, reading, own_session=not boot.has_terminal),
                stdout=out,
                pass_fds=fds,
                cwd="/",
                with_terminal=boot.has_terminal,
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(reading)
            if out is not None:
                os.close(out)

    @property
    def pid(self) -> int:
        """The pid of the command that all processes of the guest descend from."""
        return self._process.pid

    def status(self) -> int | None:
        """Return the exit status of the guest if it has ended, else None."""
        return self._process.poll()

    def text(self) -> str:
        """Return what the guest has said since its start, its backend's complaints last."""
        said = self.console.text() if self.console is not None else ""
        return f"{said}\n{self._process.stderr}"

    def check_console(self) -> None:
        """Raise GuestPanicked if the console says so."""
        alarm = self.console.alarm() if self.console is not None else None
        if alarm is not None:
            raise GuestPanicked(f"the guest has failed: {alarm}", self.text())

    def check(self) -> None:
        """Raise GuestPanicked or GuestEnded if it came to that."""
        self.check_console()
        status = self.status()
        if status is not None:
            raise GuestEnded(f"the guest has ended, status {status}", self.text())

    def wait(self, timeout_s: float) -> int:
        """Wait for the guest's own end and return its exit status.

        Raises GuestPanicked as soon as the console says so, GuestHung after `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            self.check_console()  # after the status: what was said last is looked at too
            if status is not None:
                return status
            if time.monotonic() > deadline:
                raise GuestHung(f"the guest had not ended after {timeout_s:g} s", self.text())
            with contextlib.suppress(TimeoutError):
                self._process.wait(TICK_S)

    def kill(self) -> None:
        """End all its processes at once, as a power cut does; its disks keep what it had written."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        try:
            self._process.wait(END_S)
        except TimeoutError:
            self._process.signal(signal.SIGKILL)
            self._process.wait(END_S)

    def close(self) -> None:
        """End it if it runs, and let go of everything; may be called twice."""
        self.kill()
        self._process.close()
