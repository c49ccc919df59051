"""`./rehearse --vm`: the rehearsal in a guest of `vmimages`, whose kernel has what this one may lack.

vmimages is a command here, never imported: it stands above the harness. A guest runs as nobody's root,
so no root is needed; the words go in with the working tree, the report comes out with the results.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command, containment
from harness.host import REPOSITORY
from harness.rehearsal import room
from harness.rehearsal.problems import UNFIT, CannotRehearse
from harness.rehearsal.show import stderr
from harness.rehearsal.signals import Interrupted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

SCRIPT = "harness/rehearsal/guest.sh"
CONFIG = ".guest/btrsync.toml"
DISK = "16G"
"""For what the rehearsal plays with; sparse, so it costs what is written to it."""
MEMORY = "1G"
SWEPT = "btrsync-vm-"
"""What vmimages removes if nobody has it locked."""
VM_FAILED = 1
"""The status of vmimages where there is no guest to be had; its words say why."""
GRACE_S = 10.0
FIRST_GRACE_S = 2.0


def rehearse_in_guest(wanted: argparse.Namespace) -> int:
    """Hold the rehearsal in a guest of the image `wanted.vm`, and return its exit status.

    What it says goes to standard output, or to standard error with `--json`, whose line then is the only
    one on standard output. Raises CannotRehearse, Interrupted.
    """
    _check(wanted)
    with _results() as results:
        argv = vm_argv(wanted, results)
        status = _run(argv, stdout=sys.stderr.fileno() if wanted.json else None)
        report = read_report(results / "report.json")
    if report is None:
        return UNFIT if status == VM_FAILED else status
    if wanted.json:
        print(report, flush=True)
    return status


@contextlib.contextmanager
def _results() -> Iterator[Path]:
    """A directory for what comes out; after a SIGKILL the next guest sweeps it, as the guest's own disks."""
    with tempfile.TemporaryDirectory(prefix=SWEPT, dir=room.directory()) as name:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(fd)


def vm_argv(wanted: argparse.Namespace, results: Path) -> list[str]:
    """Return the command, to be run in the clone, that boots the guest and rehearses in it."""
    argv = [sys.executable, "-m", "vmimages", "run", wanted.vm, "--memory", MEMORY, "--disk", DISK]
    argv += ["--results", str(results)]
    words = ["--size", wanted.size, "--seed", str(wanted.seed)]
    if wanted.steps is not None:
        words += ["--steps", ",".join(wanted.steps)]
    if wanted.config is not None:
        argv += ["--put", f"{CONFIG}={wanted.config.absolute()}"]
        words += ["--config", f"/work/{CONFIG}"]
    return [*argv, "--", "sh", SCRIPT, *words]


def _check(wanted: argparse.Namespace) -> None:
    """See that it can be held in a guest. Raises CannotRehearse."""
    hint = "only root can do that on this machine itself: sudo ./rehearse"
    if wanted.source is not None:
        raise CannotRehearse("--source: this machine's own files do not get into a guest", hint=hint)
    if wanted.keep:
        raise CannotRehearse("--keep: a guest has no other terminal to look around from", hint=hint)
    if wanted.config is not None and not os.access(wanted.config, os.R_OK):
        raise CannotRehearse(f"--config: {wanted.config} cannot be read", exit_status=UNFIT)
    if not (REPOSITORY / SCRIPT).is_file() or not (REPOSITORY / "pyproject.toml").is_file():
        raise CannotRehearse(
            f"a guest takes btrsync from a clone, and {REPOSITORY} is none", exit_status=UNFIT
        )
    room.check(room.TREE_BYTES[wanted.size])


def _run(argv: list[str], *, stdout: int | None) -> int:
    """Run it with our own terminal; it ends with us, and takes its guest along, however we end."""
    env = {**os.environ, "TMPDIR": str(room.directory())}
    # In the clone: vmimages is not installed, and nothing where the caller stands can stand in for it.
    process = command.Process(
        containment.dying_with_us(argv), env=env, stdout=stdout, cwd=REPOSITORY, with_terminal=True
    )
    try:
        status = process.wait()
    except Interrupted as interrupted:
        _end(process, interrupted.signal)
        raise
    finally:
        process.kill()
        process.wait()
        process.close()
    return 128 - status if status < 0 else status


def _end(process: command.Process, number: int) -> None:
    """Let it take its guest down; a Ctrl-C of the terminal it has heard itself."""
    if number == signal.SIGINT:
        with contextlib.suppress(TimeoutError):
            process.wait(FIRST_GRACE_S)
            return
    process.signal(signal.SIGINT)
    with contextlib.suppress(TimeoutError):
        process.wait(GRACE_S)


def read_report(path: Path) -> str | None:
    """Return the report's line, or None if the rehearsal did not come to one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        json.loads(lines[-1])
    except (OSError, LookupError, ValueError):
        return None
    return lines[-1]


def say_why(image: str) -> None:
    """Say why a rehearsal goes to a guest unasked."""
    stderr(f"not root, so the rehearsal is held in a guest, as by --vm {image}")
