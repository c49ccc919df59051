"""The one place where a command line becomes a command, and an error words and an exit status.

`btrsync serve NAME`, the forced command, starts at every sync on the server: that exact form is
recognised here and never meets click.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from btrsync.commands.invocation import Invocation
from btrsync.errors import BtrsyncError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

BUG_STATUS = 70
BROKEN_PIPE_STATUS = 128 + signal.SIGPIPE
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignal(BaseException):
    """A signal that asks to stop, raised so that context managers put back what they opened."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; the only place that prints errors."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    invocation = Invocation(shows_traceback=os.environ.get("BTRSYNC_TRACEBACK", "") not in ("", "0"))
    if hasattr(sys.stdout, "reconfigure"):
        # "→" and odd file names must not stop a run whose locale cannot show them.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _stop_signals():
            status = _run(arguments, invocation)
    except BtrsyncError as error:
        status = _explain(error, invocation)
    except StopSignal as stop:
        print(f"btrsync: stopped by {signal.Signals(stop.number).name}", file=sys.stderr)
        status = 128 + stop.number
    except Exception as error:  # noqa: BLE001  the last handler: whatever comes here is a bug, and says so
        if isinstance(error, BrokenPipeError) and _has_lost_its_reader():
            status = BROKEN_PIPE_STATUS
        else:
            status = _explain_bug(error, invocation)
    return _settle_stdout(status)


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


def _has_lost_its_reader() -> bool:
    """Tell whether stdout is a pipe that nobody reads any more, as after `btrsync list | head -1`."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLERR)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, ValueError):
        return False


def _settle_stdout(status: int) -> int:
    """Write out what stdout still holds, and return the status: a lost reader is told, a full disk too."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or BROKEN_PIPE_STATUS
    except OSError as error:
        print(f"btrsync: standard output: {error.strerror}", file=sys.stderr)
        status = status or 1
    except ValueError:
        # Closed by whoever started us.
        return status
    else:
        return status
    # The interpreter flushes once more on its way out, and would complain by itself.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
