"""Each end killed before each system call that changes or tells something, or met by an error there.

A run is traced once, to learn its steps; then it dies at one of them, and the next plain run puts it right.
With BTRSYNC_EVERY_STEP=1 every step is tried, otherwise as many as the time allows, the weightiest first.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.scenario import INCOMING_PREFIX, Synced
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd", "program:strace")

TRACE = "/run/trace"
WRAPPER = Path("/opt/wrapped/btrfs")
BUDGET_S = 5.0
"""For each victim, after the first two runs: about three deaths each."""
STEPS = (
    "write,pwrite64,ioctl,splice,vfork,wait4,mkdir,rmdir,unlink,flock,ftruncate,syncfs,renameat2,fsync,"
    "rename,utimensat,lsetxattr,chroot,kill,pidfd_open,exit_group"
)
NO_STEP = re.compile(
    r"TCGETS|TREE_SEARCH|INO_LOOKUP|FS_INFO|DEV_INFO|DEV_STATS|FIOCLEX|FIONBIO|FIONREAD|^write\(2,"
)
WEIGHTY = re.compile(r"SNAP_|SYNC|^(renameat2|syncfs|fsync|ftruncate|write\(\d, \"\\1)")
CALL = re.compile(r"^(\w+)\(.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Step:
    """The `number`-th call of one system call; `words` as strace shows it."""

    call: str
    number: int
    words: str

    @property
    def death(self) -> str:
        return f"-o {TRACE} -e trace={self.call} -e inject={self.call}:signal=KILL:when={self.number}"

    @property
    def error(self) -> str:
        return f"-o {TRACE} -e trace={self.call} -e inject={self.call}:error=EIO:when={self.number}"


VICTIMS = (
    ("serve", "goes well"), ("sync", "goes well"), ("receive", "goes well"), ("send", "goes well"),
    ("serve", "receive fails"), ("sync", "receive fails"), ("serve", "finds a leftover"),
)  # fmt: skip
"""Who is killed, in a run that would otherwise have what course."""
VICTIMS_OF_ERRORS = (("serve", "goes well"), ("sync", "goes well"), ("sync", "receive fails"))
NEVER_FAIL = {"exit_group", "kill", "wait4", "vfork"}


class Stage:
    """A mirror in which one process is started through strace: to see its steps, or to die at one."""

    def __init__(self, both: TwoHosts, victim: str, course: str) -> None:
        self.both = both
        self.victim = victim
        self.course = course
        self.real = both.daisy.run(["sh", "-c", "command -v btrfs"]).stdout.strip()
        self.changes = 0

    def trace(self) -> list[Step]:
        """Run once under strace and return the steps from the first word on the wire to the end."""
        host = self.both.workstation if self.victim in {"sync", "send"} else self.both.daisy
        self.run(f"-o {TRACE} -e trace={STEPS}")
        seen: dict[str, int] = {}
        steps = []
        has_begun = self.victim in {"send", "receive"}
        for match in CALL.finditer(host.read_text(TRACE)):
            call, words = match[1], match[0]
            seen[call] = seen.get(call, 0) + 1
            has_begun = has_begun or "btrsync wire" in words or "BTRFS_IOC" in words
            if has_begun and not NO_STEP.search(words):
                steps.append(Step(call, seen[call], words))
        return steps

    def run(self, options: str) -> Synced:
        """Change the source a little and sync, the victim under `strace OPTIONS`."""
        self._change()
        if self.course == "finds a leftover":
            self._sync("serve", "-e trace=syncfs -e inject=syncfs:signal=KILL:when=1")
            assert any(name.startswith(INCOMING_PREFIX) for name in self.both.backups())
        return self._sync(self.victim, options)

    def _change(self) -> None:
        self.changes += 1
        (self.both.source() / "changed").write_text(f"{self.victim} {self.course} {self.changes}")

    def _sync(self, victim: str, options: str) -> Synced:
        strace = f"/usr/bin/strace {options}"
        for host, program in ((self.both.daisy, "receive"), (self.both.workstation, "send")):
            traced = f"exec {strace} {self.real}" if victim == program else f"exec {self.real}"
            if self.course == "receive fails" and program == "receive":
                traced = "exit 1"
            script = f"""#!/bin/sh
if [ "$1" = {program} ]; then {traced} "$@"; fi
exec {self.real} "$@"
"""
            host.write_text(WRAPPER, script, mode=0o755)
        path = f"PATH={WRAPPER.parent}:$PATH"
        serve, sync = self.both.forced_command(), f"{self.both.btrsync_path} sync --json"
        mirror.bind(self.both, f"{path} {strace if victim == 'serve' else ''} {serve}")
        traced = f"{path} exec {strace if victim == 'sync' else ''} {sync}"
        return Synced.of(self.both.workstation.run(["sh", "-c", traced], ok=None))

    def heal(self) -> None:
        """Sync plainly, and see both sides equal and nothing left over."""
        mirror.bind(self.both, self.both.forced_command())
        live = (self.both.source() / "changed").read_text()
        synced = self.both.sync(ok=None)
        assert synced.returncode == 0, synced
        name = mirror.assert_mirrored(self.both, synced)
        assert self.both.snapshots() == self.both.backups(), "all that was made is at both ends, and no more"
        assert (self.both.snapshot_path(name) / "changed").read_text() == live


def sample(steps: list[Step]) -> Iterator[Step]:
    """Yield steps, the weightiest first and then far apart, until the time is over; or all of them."""
    deadline = time.monotonic() + BUDGET_S
    spread = sorted(range(len(steps)), key=lambda index: f"{index:08b}"[::-1])
    for index in sorted(spread, key=lambda index: WEIGHTY.search(steps[index].words) is None):
        if time.monotonic() > deadline and not os.environ.get("BTRSYNC_EVERY_STEP"):
            return
        yield steps[index]


@pytest.fixture(scope="module")
def mirrored() -> Iterator[TwoHosts]:
    with mirror.small() as made:
        made.sync()
        yield made


@pytest.mark.parametrize(("victim", "course"), VICTIMS)
def test_whoever_dies_at_whatever_step_the_next_run_puts_it_right(
    mirrored: TwoHosts, victim: str, course: str
) -> None:
    stage = Stage(mirrored, victim, course)
    steps = stage.trace()
    stage.heal()
    assert len(steps) > 3, steps
    struck = 0
    for step in sample(steps):
        synced = stage.run(step.death)
        struck += synced.returncode != 0
        healed(stage, step, synced)
    assert struck


@pytest.mark.parametrize(("victim", "course"), VICTIMS_OF_ERRORS)
def test_an_error_at_whatever_step_is_one_sentence_and_the_next_run_puts_it_right(
    mirrored: TwoHosts, victim: str, course: str
) -> None:
    stage = Stage(mirrored, victim, course)
    steps = [step for step in stage.trace() if step.call not in NEVER_FAIL]
    stage.heal()
    struck = 0
    for step in sample(steps):
        synced = stage.run(step.error)
        assert synced.returncode in range(11), synced
        struck += synced.returncode != 0
        healed(stage, step, synced)
    assert struck


def healed(stage: Stage, step: Step, synced: Synced) -> None:
    """See that a run said nothing but sentences, and that the next one mends what it left."""
    try:
        assert "Traceback" not in synced.stderr
        assert "this is a bug" not in synced.stderr + synced.completed.stdout
        stage.heal()
    except AssertionError as error:
        raise AssertionError(f"{stage.victim} at {step}: {synced}") from error
