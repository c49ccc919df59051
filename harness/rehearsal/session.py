"""What the steps of a rehearsal work on: the two hosts, the trees of the jobs, and their comparison."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command, containment, tree
from harness.rehearsal.problems import CannotRehearse, StepFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.rehearsal.show import Show
    from harness.scenario import Synced, TwoHosts

TREE = "rehearsal-tree"
"""Directory in each job's subvolume that holds the tree: what else is there, snapshots say, is left alone."""
LOG_LINES = 12
FEW_MUTATIONS = ("name-rotation", "changed-and-moved", "reflinks-between", "holes", "churn")
"""For a copy of real data, which may be large: each mutation walks all of it."""

Pair = tuple[str, str]


@dataclass(slots=True)
class Session:
    """The hosts and what has happened to them so far.

    source: a directory to copy, or None for a generated tree of `size`. latest: each job's last
    snapshot, by the name it has on the workstation now.
    """

    both: TwoHosts
    show: Show
    seed: int
    size: str
    source: Path | None
    latest: dict[str, str] = field(default_factory=dict)
    changes: int = 0

    @property
    def pairs(self) -> list[Pair]:
        """Each job with each of its targets, as the configuration has them."""
        return [(job.name, target) for job in self.both.jobs.values() for target in job.targets]

    @property
    def remote_pair(self) -> Pair | None:
        """The first job with a target behind ssh, or None if every target is a local disk."""
        return next((pair for pair in self.pairs if self.both.targets[pair[1]].path is None), None)

    # ------------------------------------------------------------------------------- changing

    def tree(self, job: str) -> Path:
        """Return the directory with a job's tree, as seen from here."""
        return self.both.source(job) / TREE

    def fill(self) -> None:
        """Give each job its tree: generated, or a copy of the source, which is only read."""
        for job in self.both.jobs:
            root = self.tree(job)
            root.mkdir()
            if self.source is None:
                tree.generate(root, self.seed, self.size)
            else:
                copy(self.source, root)

    def change(self, names: Sequence[str] | None = None) -> list[str]:
        """Change each job's tree, differently each time; return which mutations found something to do."""
        self.changes += 1
        if names is None and self.source is not None:
            names = FEW_MUTATIONS
        applied: dict[str, None] = {}
        for job in self.both.jobs:
            applied |= dict.fromkeys(tree.mutate(self.tree(job), self.seed + self.changes, names))
        if not applied:
            raise StepFailed("no change could be made to the tree, so there is nothing to send")
        return list(applied)

    # -------------------------------------------------------------------------------- syncing

    def sync(self, *words: str | Path) -> tuple[Synced, float]:
        """Run `btrsync sync`; return what it reported and how many seconds it took."""
        began = time.monotonic()
        synced = self.both.sync(*words, ok=None, timeout_s=3600)
        return synced, time.monotonic() - began

    def sync_all(self, result: str, kind: str | None) -> tuple[Synced, float]:
        """Run it for all jobs; every job must come out with that result and kind at each target."""
        synced, seconds = self.sync()
        evidence = [f"btrsync: {line}" for line in synced.stderr.splitlines()] + self.logs()
        if synced.returncode != 0:
            raise StepFailed(f"btrsync sync ended with status {synced.returncode}", evidence)
        for job, target in self.pairs:
            outcome = synced.outcome(job, target)
            if (outcome["result"], outcome["kind"]) != (result, kind):
                found = " ".join(str(word) for word in (outcome["result"], outcome["kind"] or "") if word)
                raise StepFailed(f"{job} → {target}: {found}, not {result} {kind or ''}".rstrip(), evidence)
        return synced, seconds

    def take_in(self, synced: Synced, pairs: Sequence[Pair] | None = None) -> int:
        """Compare what was sent, on both sides, whole trees; return the number of paths compared."""
        paths = 0
        for job, target in self.pairs if pairs is None else pairs:
            name = str(synced.outcome(job, target)["snapshot"])
            paths += self.compare(name, job, target)
            self.latest[job] = name
        return paths

    def compare(self, name: str, job: str, target: str) -> int:
        """Compare one backup with its snapshot; return the number of paths.

        Raises StepFailed if they differ, if the backup can be written to, or if anything hidden
        stands beside it.
        """
        both = self.both
        leftovers = [found for found in both.backups(job, target) if found.startswith(".")]
        if leftovers:
            raise StepFailed(f"{job} → {target}: {', '.join(leftovers)} was left behind", self.logs())
        for side, path in (
            ("snapshot", both.snapshot_path(name, job)),
            ("backup", both.backup_directory(job, target) / name),
        ):
            if not path.exists():
                raise StepFailed(f"{job} → {target}: the {side} {name} is not there", self.logs())
            if "ro=true" not in command.run(["btrfs", "property", "get", "-ts", path, "ro"]).stdout:
                raise StepFailed(f"{job} → {target}: the {side} {name} can be written to")
        differences = both.differences(name, job, target)
        if differences:
            raise StepFailed(f"{job} → {target}: the backup {name} differs from its snapshot", differences)
        return len(both.source_manifest(name, job).entries)

    def names(self) -> dict[str, list[str]]:
        """Return every snapshot and backup there is, by place."""
        found = {f"snapshots of {job}": self.both.snapshots(job) for job in self.both.jobs}
        for job, target in self.pairs:
            found[f"backups of {job} at {target}"] = self.both.backups(job, target)
        return found

    def logs(self) -> list[str]:
        """Return the last lines of daisy's logs, as evidence."""
        lines = [f"daisy sshd: {line}" for line in self.both.sshd.log_text().splitlines()[-LOG_LINES:]]
        syslog = Path("/var/log/syslog")
        if self.both.daisy.is_alive and self.both.daisy.path(syslog).exists():
            text = self.both.daisy.read_text(syslog)
            lines += [f"daisy syslog: {line}" for line in text.splitlines()[-LOG_LINES:]]
        return lines


def copy(source: Path, directory: Path) -> None:
    """Copy a directory's content, with all that belongs to it, on its own file system only.

    Raises CannotRehearse with what cp says. Host commands used: cp.
    """
    argv: list[str | Path] = [
        "cp",
        "--archive",
        "--one-file-system",
        "--reflink=never",
        "--",
        f"{source}/.",
        directory,
    ]
    with readonly(source):
        said = command.run(argv, ok=None, timeout_s=24 * 3600)
    if said.returncode != 0:
        words = (said.stderr.strip().splitlines() or [f"cp ended with status {said.returncode}"])[0]
        raise CannotRehearse(f"--source: {source} could not be copied whole: {words}")


@contextlib.contextmanager
def readonly(directory: Path) -> Iterator[None]:
    """The directory read-only at its own place, in our mount namespace: not even an access time changes.

    Outside of containment the mount would be everybody's; then nothing is done.
    """
    if not containment.is_contained():
        yield
        return
    command.run(["mount", "--bind", directory, directory])
    try:
        command.run(["mount", "-o", "remount,bind,ro,noatime", directory])
        yield
    finally:
        command.run(["umount", directory])


def write_noise(path: Path, size_bytes: int) -> None:
    """Write bytes that no compression makes fewer."""
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(os.urandom(1 << 20))
