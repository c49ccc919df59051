"""The one place where a command line becomes a command, and an error words and an exit status.

`btrsync serve NAME`, the forced command, starts at every sync on the server: that exact form is
recognised here and never meets click.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from btrsync.commands.invocation import Invocation
from btrsync.errors import MACHINE_ERRNOS, BtrsyncError, storage_error
from btrsync.system.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from _typeshed import ReadableBuffer

BUG_STATUS = 70
BROKEN_PIPE_STATUS = 128 + signal.SIGPIPE


class StopSignal(BaseException):
    """A signal that asks to stop, raised so that context managers put back what they opened."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stdout(io.FileIO):
    """Standard output that takes everything, and remembers why the first thing was not written.

    A backup goes on when nobody reads its report any more, and no command need think of `| head`.
    """

    def __init__(self) -> None:
        super().__init__(1, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: ReadableBuffer) -> int:
        """Write, as far as it goes; `failure` tells the rest."""
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; the only place that prints errors."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    invocation = Invocation(shows_traceback=os.environ.get("BTRSYNC_TRACEBACK", "") not in ("", "0"))
    with _standard_streams() as stdout:
        try:
            with _stop_signals():
                status = _run(arguments, invocation)
        except BtrsyncError as error:
            status = _explain(error, invocation)
        except OSError as error:
            known = error.errno in MACHINE_ERRNOS
            status = _explain(storage_error(error), invocation) if known else _explain_bug(error, invocation)
        except StopSignal as stop:
            print(f"btrsync: stopped by {signal.Signals(stop.number).name}", file=sys.stderr)
            status = 128 + stop.number
        except Exception as error:  # noqa: BLE001  the last handler: what comes here is a bug, and says so
            status = _explain_bug(error, invocation)
    if stdout.failure is None:
        return status
    if stdout.failure.errno == errno.EPIPE:
        return status or BROKEN_PIPE_STATUS
    print(f"btrsync: standard output: {stdout.failure.strerror}", file=sys.stderr)
    return status or 1


@contextmanager
def _standard_streams() -> Iterator[Stdout]:
    """Standard output as one that remembers its failure; whatever of 0, 1 and 2 is closed leads nowhere.

    Were it left closed, the next file that is opened would be taken for it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115  a descriptor, for the whole run
    before, raw = sys.stdout, Stdout()
    # "→" and odd file names must not stop a run whose locale cannot show them.
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), errors="backslashreplace", line_buffering=raw.isatty()
    )
    try:
        yield raw
    finally:
        sys.stdout.flush()
        sys.stdout = before


def _run(arguments: list[str], invocation: Invocation) -> int:
    if len(arguments) == 2 and arguments[0] == "serve" and not arguments[1].startswith("-"):
        from btrsync.commands.serve import run_serve

        return run_serve(arguments[1])
    from btrsync.commands.group import run_group

    return run_group(arguments, invocation)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """The time in which the first signal that asks to stop becomes an exception, and later ones wait.

    What it interrupts cleans up within deadlines of its own. A handler, unlike SIG_IGN, is not
    inherited by children.
    """
    has_stopped = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal has_stopped
        if not has_stopped:
            has_stopped = True
            raise StopSignal(number)

    # nohup, and a shell for its background jobs, ignore a signal on purpose.
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = [(number, signal.signal(number, handle)) for number in handled]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _explain(error: BtrsyncError, invocation: Invocation) -> int:
    if invocation.shows_traceback:
        _print_traceback(error)
    for line in error.message.splitlines():
        print(f"btrsync: {line}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)
    return error.exit_status


def _explain_bug(error: Exception, invocation: Invocation) -> int:
    if invocation.shows_traceback:
        _print_traceback(error)
    words = " ".join(str(error).split())
    print(f"btrsync: {type(error).__name__}" + (f": {words}" if words else ""), file=sys.stderr)
    print("  this is a bug in btrsync, not a mistake of yours", file=sys.stderr)
    print(
        "  to report it, add what the same command prints with BTRSYNC_TRACEBACK=1, and btrsync --version",
        file=sys.stderr,
    )
    return BUG_STATUS


def _print_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)
