"""A backup that is itself mirrored on: the third machine gets what the first one had."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from harness import command, manifest
from harness.filesystem import Array, mount

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "loop", "btrfs")


def sync(config: Path) -> str:
    """Run the tool and return what came of the one job."""
    done = command.run([sys.executable, "-m", "btrsync", "sync", "--json", "--config", config])
    return str(json.loads(done.stdout.splitlines()[-1])["outcomes"][0]["result"])


def test_a_received_subvolume_is_mirrored_on_under_its_first_uuid(tmp_path: Path) -> None:
    with (
        Array(members=1, label="A") as one,
        Array(members=1, label="B") as other,
        mount(one, tmp_path / "a", subvolume=None) as first,
        mount(other, tmp_path / "b", subvolume=None) as second,
    ):
        live = first / "live"
        command.run(["btrfs", "subvolume", "create", live])
        for number in range(3):
            (live / f"file-{number}").write_text(str(number))
            command.run(["btrfs", "filesystem", "sync", first])
        stream = tmp_path / "stream"
        command.run(["btrfs", "subvolume", "snapshot", "-r", live, first / "s1"])
        command.run(["btrfs", "send", "-q", "-f", stream, first / "s1"])
        command.run(["btrfs", "receive", "-f", stream, second])
        (second / "snapshots").mkdir()
        (first / "third").mkdir()
        config = tmp_path / "btrsync.toml"
        config.write_text(
            f'[targets.third]\npath = "{first / "third"}"\n'
            f'[jobs.relay]\nsubvolume = "{second / "s1"}"\nsnapshots = "{second / "snapshots"}"\n'
            'targets = ["third"]\n'
        )
        config.chmod(0o600)
        assert sync(config) == "sent"
        (backup,) = (first / "third" / "relay").iterdir()
        assert manifest.difference(manifest.read(first / "s1"), manifest.read(backup)) == []
        assert sync(config) == "nothing_changed"
