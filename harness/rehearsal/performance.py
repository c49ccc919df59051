"""One rehearsal from the first word to the last: build, fill, play the steps, sum up, take down."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from typing import TYPE_CHECKING, Any

from pyroute2 import NetlinkError

from harness import command, enter, requires
from harness.command import CommandFailed
from harness.filesystem import LABEL
from harness.host import HostFailed
from harness.rehearsal import room, user_config
from harness.rehearsal.cut_link import NOISE_BYTES
from harness.rehearsal.problems import UNFIT, CannotRehearse, StepFailed
from harness.rehearsal.session import Session, readonly
from harness.rehearsal.show import Result
from harness.rehearsal.signals import Interrupted
from harness.rehearsal.steps import STEPS
from harness.scenario import MIRROR_ROOT, Job, Target, TwoHosts

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from harness.rehearsal.show import Show
    from harness.rehearsal.steps import Step
    from harness.rehearsal.user_config import Mapped

MEMBERS = 4
ALIVE_OPTIONS = ("ServerAliveInterval=3", "ServerAliveCountMax=2")
"""A cut link is noticed after 9 s instead of 30: what an impatient administrator would write."""
CHANGES_BYTES = 16_000_000
NEEDED = ("loop", "btrfs", "host", "veth", "tbf", "sshd")
BUILD_FAILURES = (CommandFailed, HostFailed, AssertionError, NetlinkError, OSError)


def perform(wanted: argparse.Namespace, show: Show) -> dict[str, Any]:
    """Hold the rehearsal and return its report, as `--json` prints it.

    Raises CannotRehearse if it cannot begin; a step that fails is in the report.
    """
    began = time.monotonic()
    mapped = _mapped(wanted)
    tree_bytes = room.TREE_BYTES[wanted.size] if wanted.source is None else _measure(wanted)
    space = room.make(
        tree_bytes,
        jobs=len(mapped.jobs),
        local_targets=sum(target.path is not None for target in mapped.targets),
        step_bytes=CHANGES_BYTES + NOISE_BYTES,
    )
    versions = find_versions()
    is_encrypted = requires.reason("dm_crypt") is None
    both = TwoHosts(
        jobs=mapped.jobs,
        targets=mapped.targets,
        members=MEMBERS,
        size_bytes=space.member_bytes,
        source_size_bytes=space.source_bytes,
        source_mount=Job().subvolume.parent if wanted.config is None else None,
        directory=space.directory,
        is_encrypted=is_encrypted,
    )
    _introduce(show, both, wanted, mapped, versions)
    results: list[Result] = []
    with _standing(both):
        show.fact("built in", f"{time.monotonic() - began:.1f} s")
        session = Session(both, show, wanted.seed, wanted.size, wanted.source)
        _fill(session)
        results += _play_all(_chosen(wanted, session), session)
        show.table(results)
        _sum_up(show, results, wanted)
        if wanted.keep:
            _keep(show, both)
    show.line(f"{time.monotonic() - began:.1f} s in all; the hosts and disks have been taken down")
    return {
        "ok": bool(results) and all(result.ok for result in results),
        "steps": [
            {
                "name": result.name,
                "ok": result.ok,
                "seconds": round(result.seconds, 3),
                "bytes_sent": result.bytes_sent,
                "detail": result.detail,
            }
            for result in results
        ],
        **versions,
    }


def find_versions() -> dict[str, str]:
    """Return the versions of kernel, btrfs-progs and OpenSSH. Host commands used: btrfs, ssh."""
    try:
        progs = command.run(["btrfs", "--version"]).stdout
        openssh = command.run(["ssh", "-V"]).stderr
    except (CommandFailed, OSError) as error:
        raise CannotRehearse(f"a program is missing: {error}", exit_status=UNFIT) from error
    return {
        "kernel": os.uname().release,
        "btrfs_progs": _first(r"v(\S+)", progs),
        "openssh": _first(r"OpenSSH_([^\s,]+)", openssh),
    }


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else text.strip()


def _mapped(wanted: argparse.Namespace) -> Mapped:
    if wanted.config is not None:
        return user_config.read(wanted.config)
    target = Target(host="daisy.local", settings={"ssh_options": list(ALIVE_OPTIONS)})
    return user_config.Mapped((Job(),), (target,), ())


def _measure(wanted: argparse.Namespace) -> int:
    # Absolute: the copy is made by another process, and a mount point must be.
    wanted.source = wanted.source.absolute()
    if not wanted.source.exists():
        raise CannotRehearse(f"--source: {wanted.source} is not there")
    if not wanted.source.is_dir():
        raise CannotRehearse(f"--source: {wanted.source} is not a directory")
    # Under the same protection as the copying: even listing a directory changes its access time.
    with readonly(wanted.source):
        return room.measure(wanted.source)


def _introduce(
    show: Show, both: TwoHosts, wanted: argparse.Namespace, mapped: Mapped, versions: dict[str, str]
) -> None:
    """Say what is going to be built."""
    show.line("Rehearsal: nothing of this machine's own is changed, nothing outside it is contacted.")
    show.fact(
        "versions",
        f"kernel {versions['kernel']}, btrfs-progs {versions['btrfs_progs']}, OpenSSH {versions['openssh']}",
    )
    for job in mapped.jobs:
        show.fact("workstation", f"job {job.name}: {job.subvolume}, snapshots in {job.snapshots}")
    show.fact(
        "daisy",
        f"btrfs array {LABEL} of {both.members} disks at {MIRROR_ROOT}, data single, metadata raid1,",
        both.options,
    )
    if both.is_encrypted:
        show.fact("dm-crypt", "each disk of the array is a plain mapping, twofish-xts-plain")
    else:
        show.fact(
            "dm-crypt",
            "none in this kernel, so the array is not encrypted: ./rehearse --vm plays it in a guest",
        )
    clients = sorted({target.client for target in mapped.targets if target.path is None})
    if clients:
        commands = ", ".join(f'"btrsync serve {client}"' for client in clients)
        show.fact("ssh", f"PermitRootLogin forced-commands-only; the key runs {commands} alone")
    for note in mapped.notes:
        show.fact("mapped", note)
    tree = f"a generated tree, {wanted.size}, seed {wanted.seed}"
    show.fact("data", tree if wanted.source is None else f"a copy of {wanted.source}, which is only read")


@contextlib.contextmanager
def _standing(both: TwoHosts) -> Iterator[None]:
    """The hosts, up; a machine that cannot have them is told what it lacks."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(both)
        except BUILD_FAILURES as error:
            lacking = requires.missing(*NEEDED)
            reason = "; ".join(lacking) or str(error)
            raise CannotRehearse(f"the hosts could not be built here: {reason}", exit_status=UNFIT) from error
        yield


def _fill(session: Session) -> None:
    try:
        session.fill()
    except OSError as error:
        raise CannotRehearse(f"the tree could not be made: {error}", exit_status=UNFIT) from error


def _chosen(wanted: argparse.Namespace, session: Session) -> list[Step]:
    """Return the steps to play; what cannot be shown here is left out, aloud."""
    both = session.both
    chosen = []
    for step in STEPS:
        if not (step.is_needed or wanted.steps is None or step.name in wanted.steps):
            continue
        if step.needs_remote and session.remote_pair is None:
            why = "every target of this configuration is a local disk"
        elif step.needs_encryption and not both.is_encrypted:
            why = "this kernel has no dm-crypt; ./rehearse --vm plays it in a guest"
        else:
            chosen.append(step)
            continue
        session.show.fact("left out", f"{step.name}: {why}")
    return chosen


def _play_all(steps: list[Step], session: Session) -> list[Result]:
    """Play the steps; without its array the server has nothing for the others to stand on."""
    results: list[Result] = []
    for step in steps:
        results.append(_play(step, session))
        if step.needs_encryption and step.is_needed and not results[-1].ok:
            break
    return results


def _play(step: Step, session: Session) -> Result:
    """Play one step and show what came of it; whatever goes wrong in it is its result."""
    session.show.step(step.name)
    began = time.monotonic()
    try:
        result = step.run(session)
    except (StepFailed, AssertionError, LookupError, OSError, ValueError) as error:
        if isinstance(error, StepFailed):
            problem, evidence = error.problem, list(error.evidence)
        else:
            problem, *evidence = str(error).splitlines() or [type(error).__name__]
            evidence += session.logs()
        result = Result(step.name, False, time.monotonic() - began, 0, problem, evidence=tuple(evidence))
    session.show.result(result)
    return result


def _sum_up(show: Show, results: list[Result], wanted: argparse.Namespace) -> None:
    failed = [result.name for result in results if not result.ok]
    show.line()
    if not failed:
        show.line(f"all {len(results)} steps hold")
        return
    show.line(f"{len(failed)} of {len(results)} steps failed: {', '.join(failed)}")
    data = f"--size {wanted.size}" if wanted.source is None else f"--source {wanted.source}"
    words = f" --config {wanted.config}" if wanted.config is not None else ""
    if os.environ.get("BTRSYNC_VM"):
        show.line(f"again: ./rehearse --vm {os.uname().nodename} --seed {wanted.seed} {data}{words}")
        return
    show.line(f"again, and look around afterwards: ./rehearse --seed {wanted.seed} {data}{words} --keep")


def _keep(show: Show, both: TwoHosts) -> None:
    """Wait for Ctrl-C with the hosts up."""
    show.line()
    show.line("The hosts stay up. From another terminal, as root:")
    show.line(enter.hint([both.workstation.name, both.daisy.name]))
    show.line(f"The tool in there is {both.btrsync_path}. Ctrl-C here takes everything down.")
    try:
        while True:
            signal.pause()
    except Interrupted:
        show.line()
