"""Running a whole session in namespaces of its own, so that a SIGKILL of it leaves nothing behind.

With the first process of the pid namespace all others die, with the last of them the mounts go,
and with the mounts the loop devices. Host commands used: `setpriv`, `unshare`, `tini`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    from harness.command import Process, Word

CONTAINED_VARIABLE = "BTRSYNC_CONTAINED"
"""Set inside, to the pid (as seen outside) of the process that keeps the containment."""
INIT = Path(__file__).with_name("containment_init.py")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_contained() -> bool:
    """Whether this process runs in a containment."""
    return bool(os.environ.get(CONTAINED_VARIABLE))


def keeper_pid() -> int:
    """Return the pid, as seen outside, by which `python -m harness enter` finds this session."""
    return int(os.environ.get(CONTAINED_VARIABLE) or os.getpid())


def dying_with_us(argv: Sequence[Word]) -> list[str]:
    """Return the command that runs `argv` and is killed when this thread ends, however it ends.

    PR_SET_PDEATHSIG is set by the child, so we may have died before: then its parent is another
    one, which the fixed script sees. Neither word of `argv` nor any other is part of the script.
    """
    return [
        "setpriv", "--pdeathsig", "KILL",
        "sh", "-c", 'test "$PPID" = "$0" && exec "$@"', str(os.getpid()),
        *(os.fspath(word) for word in argv),
    ]  # fmt: skip


def contained_argv(argv: Sequence[Word]) -> list[str]:
    """Return the command that runs `argv` contained, and dies with its parent.

    tini is the first process: it reaps orphans, and signals have their usual effect, which they
    have not on a first process of any other kind.
    """
    tini = shutil.which("tini-static") or shutil.which("tini") or "tini"
    return dying_with_us([
        "unshare", "--mount", "--propagation", "unchanged", "--pid", "--fork", "--kill-child=KILL", "--",
        tini, "--",
        sys.executable, "-I", "-S", INIT, *argv,
    ])  # fmt: skip


@functools.cache
def problem() -> str | None:
    """Return why there can be no containment here, or None: found out by making one."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("setpriv", "unshare", "tini"):
        if shutil.which(program) is None:
            return f"no {program} here"
    tried = command.run(contained_argv(["true"]), ok=None)
    return None if tried.returncode == 0 else (tried.stderr.strip() or f"status {tried.returncode}")


def run(argv: Sequence[Word], *, env: Mapping[str, str] | None = None, cwd: Path | str | None = None) -> int:
    """Run a command contained, with our own terminal and output, and return its exit status.

    env: its whole environment, by default ours. Signals that would end us are passed on to it;
    the second one kills it. A command killed by signal N gives 128 + N.
    """
    inside = {**(os.environ if env is None else env), CONTAINED_VARIABLE: str(os.getpid())}
    process = command.Process(contained_argv(argv), env=inside, cwd=cwd, with_terminal=True)
    try:
        with _forwarding(process):
            status = process.wait()
    finally:
        # Reached with the process alive only by an exception: then nothing is worth saving.
        process.kill()
        process.wait()
        process.close()
    return 128 - status if status < 0 else status


@contextlib.contextmanager
def _forwarding(process: Process) -> Iterator[None]:
    """Pass signals on to the first process inside; `unshare --fork` itself blocks them (measured)."""
    seen: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            process.kill()
            return
        first = _only_child(process.pid)
        if first is None:
            process.kill()
        else:
            os.kill(first, number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _only_child(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(words[0]) if words else None
    return None
