"""`btrsync-rehearse`: contain ourselves, build the hosts, play the steps, show what came of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from harness import containment
from harness.rehearsal import arguments
from harness.rehearsal.problems import UNFIT, CannotRehearse
from harness.rehearsal.show import Show, stderr
from harness.rehearsal.signals import Interrupted, interruptible

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

BROKEN_PIPE = 128 + signal.SIGPIPE


def main(words: Sequence[str] | None = None) -> int:
    """Hold a rehearsal and return its exit status. words: the command line, by default the process's."""
    words = list(sys.argv[1:] if words is None else words)
    wanted = arguments.parse(words)
    try:
        if wanted.vm is not None or os.geteuid() != 0:
            with interruptible():
                return _send(wanted)
        if containment.is_contained():
            with interruptible():
                return _perform(wanted)
        return _contain(words)
    except CannotRehearse as error:
        for problem in error.problems:
            stderr(problem)
        if error.hint:
            stderr(f"hint: {error.hint}")
        return error.exit_status
    except Interrupted as interrupted:
        stderr(f"stopped by {interrupted.signal.name}; everything has been taken down")
        return 128 + interrupted.signal
    except BrokenPipeError:
        # Nobody reads our output any more. Python would complain once more when it flushes at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _send(wanted: argparse.Namespace) -> int:
    """Do it in a guest: whoever is not root can do it nowhere else."""
    from harness.rehearsal import in_guest

    if wanted.vm is None:
        wanted.vm = arguments.IMAGE
        in_guest.say_why(wanted.vm)
    return in_guest.rehearse_in_guest(wanted)


def _contain(words: Sequence[str]) -> int:
    """Do it again in namespaces of its own, of which a SIGKILL leaves nothing."""
    problem = containment.problem()
    if problem:
        raise CannotRehearse(
            f"the rehearsal cannot be contained in namespaces of its own here: {problem}",
            exit_status=UNFIT,
            hint="./rehearse in a clone installs what is missing; a container must be privileged",
        )
    # -P: nothing in the present directory can stand in for the harness.
    return containment.run([sys.executable, "-P", "-m", "harness.rehearsal", *words])


def _perform(wanted: argparse.Namespace) -> int:
    # Only now: bad words and --help need no pyroute2.
    from harness.rehearsal.performance import perform

    with contextlib.redirect_stdout(sys.stderr) if wanted.json else contextlib.nullcontext():
        report = perform(wanted, Show(sys.stdout))
    if wanted.json:
        print(json.dumps(report), flush=True)
    return 0 if report["ok"] else 1
