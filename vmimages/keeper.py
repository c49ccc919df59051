"""Keeping a guest: its processes end with ours, however ours ends.

The keeper is a small process between us and the guest. It holds the reading end of a pipe whose
writing end is ours: at its end, which a SIGKILL of us brings too, the keeper kills the guest and
ends. Where a pid namespace can be had the keeper is its first process, so that the kernel kills all
others with it: User Mode Linux runs its guest's programs in processes of their own, which outlive
it. Elsewhere the keeper adopts and kills them itself. PR_SET_PDEATHSIG will not do for us: it acts
when the *thread* that started the guest ends. Host commands used: `unshare`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import pwd
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmimages.boot import Launch

    Order = dict[str, Any]

UNPRIVILEGED = "nobody"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SIGNALLED = 128


@functools.cache
def unprivileged() -> tuple[int, int] | None:
    """Return the uid and gid that a guest runs as, or None where that is our own: not root."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(UNPRIVILEGED)
    return entry.pw_uid, entry.pw_gid


@functools.cache
def namespace_argv() -> tuple[str, ...]:
    """Return the command that makes a pid namespace here, or nothing: found out by making one."""
    from harness import command  # late: the keeper itself runs this file without any package

    user = () if os.geteuid() == 0 else ("--user", "--map-current-user")
    argv = ("unshare", *user, "--pid", "--fork", "--kill-child=KILL", "--")
    with contextlib.suppress(OSError):
        if command.run([*argv, "true"], ok=None).returncode == 0:
            return argv
    return ()


def keeper_argv(launch: Launch, pipe_fd: int, *, own_session: bool) -> list[str]:
    """Return the command that keeps a guest until `pipe_fd`, which it inherits, is at its end.

    own_session: without the terminal; else in the foreground of ours.
    """
    from harness import command

    user = unprivileged()
    order = {
        "pipe": pipe_fd,
        "user": user and [*user, list(launch.groups)],
        "own_session": own_session,
        "argv": launch.argv,
        # Not for unshare or the keeper: a guest's kernel may bring a libc of its own.
        "env": {**command.environment(path=command.SYSTEM_PATH), **launch.env},
        "cwd": str(launch.cwd or "/"),
    }
    return [*namespace_argv(), sys.executable, "-I", "-S", __file__, json.dumps(order)]


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _begin(order: Order) -> None:
    """Become the guest; in the child."""
    if order["own_session"]:
        os.setsid()
    if order["user"]:
        uid, gid, groups = order["user"]
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    # After the change of user, which would clear it. Our parent is the keeper, of one thread only.
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(order["cwd"])
    os.execve(order["argv"][0], order["argv"], order["env"])  # noqa: S606 - a backend's, no shell sees it


def _children() -> Iterable[int]:
    """Return our children, adopted ones too; /proc may be of another pid namespace than ours."""
    return [int(word) for word in Path("/proc/thread-self/children").read_text().split()]


def _kill_adopted() -> None:
    """Kill our children until none is left; the children of those killed become ours."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def main(order: Order) -> int:
    """Run the guest; return its exit status, or 128 + N if signal N ended it."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    guest = os.fork()
    if guest == 0:
        try:
            _begin(order)
        except OSError as error:
            print(f"vmimages: the guest does not start: {error}", file=sys.stderr, flush=True)
        os._exit(127)
    # The guest's own business: Ctrl-C in a terminal ends us by our parent, or by nothing at all.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    fd = os.pidfd_open(guest)
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    waiting.register(order["pipe"], select.POLLIN)
    waiting.poll()
    status = SIGNALLED + signal.SIGKILL
    if os.waitid(os.P_PID, guest, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
        ended = os.waitstatus_to_exitcode(os.waitpid(guest, 0)[1])
        status = ended if ended >= 0 else SIGNALLED - ended
    if os.getpid() != 1:
        _kill_adopted()
    return status


if __name__ == "__main__":
    os._exit(main(json.loads(sys.argv[1])))
