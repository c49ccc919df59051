"""One command in one boot: the tree in, what it says shown as it comes, the results out."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmimages import results
from vmimages.control import Channel
from vmimages.disks import Disks
from vmimages.running import GuestEnded, GuestHung, Running, choose_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vmimages.accel import Choice
    from vmimages.image import BackendName, Image
    from vmimages.results import Results

BEGINS = "btrsync: guest: begins\n"
ENDED = "btrsync: guest: ended with status "
COMMAND = ".guest/command"
CONSOLE = "console"
TICK_S = 0.05
TIMEOUT_S = 3600.0
MEMORY_MIB = 1024


@dataclass(frozen=True, slots=True)
class Options:
    """How a guest is made, besides its image: as for Machine."""

    backend: BackendName | None = None
    disks: Sequence[int] = ()
    memory_mib: int = MEMORY_MIB
    tree: Path | None = None
    wheels: Sequence[Path] = ()
    extra: Mapping[str, bytes] | None = None
    accel: Choice = "auto"


def run(
    image: Image,
    argv: Sequence[str],
    directory: Path,
    *,
    options: Options,
    timeout_s: float = TIMEOUT_S,
    show: Callable[[str], None] | None = None,
    watch: Callable[[Disks], None] | None = None,
) -> Results:
    """Boot, run a command in /work, and return its results, unpacked into `directory`.

    The command leaves files in $BTRSYNC_RESULTS; `kernel.log` and the console are always there.
    show: is given what the command writes, as it comes. watch: is given the disks again and again while
    the guest runs, and once when it has ended, however it did. Raises GuestPanicked, GuestEnded and
    GuestHung; the console is in `directory` then, too.
    """
    backend = choose_backend(image, options.backend)
    extra = {**(options.extra or {}), COMMAND: f"exec {shlex.join(argv)}\n".encode()}
    directory.mkdir(parents=True, exist_ok=True)
    channel = Channel()
    try:
        with Disks(options.disks, tree=options.tree, extra=extra, wheels=options.wheels) as disks:
            boot = disks.boot(
                image,
                backend,
                words=("btrsync.mode=run", f"btrsync.host={image.name}"),
                control_fd=channel.guest.fileno(),
                memory_mib=options.memory_mib,
                wanted_accel=options.accel,
            )
            running = Running(boot, backend, disks.console)
            try:
                _wait(running, timeout_s, show or _silent, lambda: watch(disks) if watch else None)
                try:
                    return results.read(disks.results, directory)
                except results.NoResults as error:
                    raise GuestEnded(str(error), running.text()) from None
            finally:
                running.close()
                if watch is not None:
                    watch(disks)
                shutil.copyfile(disks.console, directory / CONSOLE)
    finally:
        channel.close()


def _silent(_: str) -> None:
    pass


def _wait(running: Running, timeout_s: float, show: Callable[[str], None], watch: Callable[[], None]) -> None:
    """Wait for the guest's end, and show what lies on the console between the two marks."""
    deadline = time.monotonic() + timeout_s
    shown = Shown(show)
    while True:
        has_ended = running.status() is not None
        if running.console is not None:
            shown.take(running.console.text())
        watch()
        running.check_console()
        if has_ended:
            return
        if time.monotonic() > deadline:
            raise GuestHung(f"the command had not ended after {timeout_s:g} s", running.text())
        time.sleep(TICK_S)


class Shown:
    """What was shown of a console: only what a command wrote, and that once."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._at = 0

    def take(self, text: str) -> None:
        """Show what is new in the whole console."""
        begin = text.find(BEGINS)
        if begin < 0:
            return
        begin += len(BEGINS)
        end = text.find(ENDED, begin)
        # A mark may be there in part: whole lines only, until the end is.
        end = end if end >= 0 else text.rfind("\n") + 1
        if end > begin + self._at:
            self._show(text[begin + self._at : end])
            self._at = end - begin


def shell(image: Image, *, options: Options) -> int:
    """Boot with our own terminal as the console, and a shell on it; return the exit status of the guest."""
    backend = choose_backend(image, options.backend)
    channel = Channel()
    try:
        with Disks(options.disks, tree=options.tree, extra=options.extra, wheels=options.wheels) as disks:
            boot = disks.boot(
                image,
                backend,
                words=("btrsync.mode=shell", f"btrsync.host={image.name}"),
                control_fd=channel.guest.fileno(),
                memory_mib=options.memory_mib,
                wanted_accel=options.accel,
                has_terminal=sys.stdin.isatty(),
            )
            running = Running(boot, backend, None)
            try:
                return running.wait(float("inf"))
            finally:
                running.close()
    finally:
        channel.close()
