"""A subvolume and a target on this machine, two filesystems: the whole tool without ssh between."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from btrsync.system import btrfs
from harness import command, manifest
from harness.filesystem import Array, mount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """How a sync ended: its status, the outcome of its only job, its stderr."""

    returncode: int
    outcome: dict[str, Any]
    stderr: str

    @property
    def words(self) -> str:
        """The sentence and the hint of its failure."""
        error = self.outcome.get("error") or {}
        return f"{error.get('message')}\n{error.get('hint')}"


@dataclass(frozen=True, slots=True)
class LocalMirror:
    """`live` is mirrored by way of `snapshots` into `backups`; `config` says so."""

    live: Path
    snapshots: Path
    target: Path
    config: Path

    @property
    def backups(self) -> Path:
        return self.target / "job"

    def btrsync(self, *words: str) -> command.Completed:
        argv = [sys.executable, "-m", "btrsync", *words, "--config", str(self.config)]
        return command.run(argv, ok=None, timeout_s=60)

    def sync(self, *words: str) -> Run:
        done = self.btrsync("sync", "--json", *words)
        lines = done.stdout.splitlines()
        report = json.loads(lines[-1]) if lines else {"outcomes": [{}]}
        return Run(done.returncode, report["outcomes"][0], done.stderr)

    def snapshot(self, name: str) -> Path:
        """Make a read-only snapshot by hand, as another tool would."""
        command.run(["btrfs", "subvolume", "snapshot", "-r", self.live, self.snapshots / name])
        return self.snapshots / name

    def change(self, words: str) -> None:
        (self.live / "file").write_text(words)

    def assert_mirrored(self) -> None:
        """See that the latest backup is what the subvolume is now, and that nothing hidden is there."""
        found = btrfs.subvolumes_in(self.backups)
        assert sorted(found) == sorted(os.listdir(self.backups)), "nothing but backups is there"
        assert not [name for name in found if name.startswith(".")], found
        latest = max(found, key=lambda name: found[name].otransid)
        seen = [
            manifest.without_root_time(manifest.read(path)) for path in (self.live, self.backups / latest)
        ]
        assert manifest.difference(*seen) == []


@contextlib.contextmanager
def local_mirror(directory: Path) -> Iterator[LocalMirror]:
    """Two filesystems of their own below `directory`, which is empty."""
    with (
        Array(members=1, label="Source") as one,
        Array(members=1, label="Target") as other,
        mount(one, directory / "source", subvolume=None) as source,
        mount(other, directory / "target", subvolume=None) as target,
    ):
        command.run(["btrfs", "subvolume", "create", source / "live"])
        (source / "snapshots").mkdir()
        (target / "mirror").mkdir(mode=0o700)
        config = directory / "btrsync.toml"
        config.write_text(
            f'[targets.disk]\npath = "{target / "mirror"}"\n'
            f'[jobs.job]\nsubvolume = "{source / "live"}"\nsnapshots = "{source / "snapshots"}"\n'
            'targets = ["disk"]\n'
        )
        config.chmod(0o600)
        made = LocalMirror(source / "live", source / "snapshots", target / "mirror", config)
        made.change("first")
        yield made
