"""A sync to a disk of this machine that is asked to stop: its server is given the time to keep what came."""

from __future__ import annotations

import os
import random
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from btrsync.system import process
from harness import wait
from tests.kernel.local_mirror import local_mirror
from tests.kernel.test_serve_stops import wrapped

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "loop", "btrfs")


def test_what_takes_its_time_to_reach_a_local_disk_is_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a process that is asked to end has before it is killed.
    wrapped(tmp_path, monkeypatch, '$REAL "$@"; status=$?; sleep 5.5; exit $status')
    place = tmp_path / "mirror"
    place.mkdir()
    with local_mirror(place) as mirror:
        for number in range(20):
            (mirror.live / f"{number}").write_bytes(random.Random(number).randbytes(200_000))
        config = mirror.config.read_text()
        mirror.config.write_text(config.replace("[jobs", "rate_limit_bytes = 1000000\n[jobs"))
        argv = [sys.executable, "-m", "btrsync", "sync", "--config", str(mirror.config)]
        with process.spawn(argv) as sync:

            def is_moving() -> bool:
                return any(path.exists() for path in mirror.backups.glob(".incoming-*/5"))

            wait.until(is_moving, timeout_s=20, what="a transfer under way")
            os.kill(sync.pid, signal.SIGTERM)
            assert sync.wait(30).returncode == 128 + signal.SIGTERM
        assert len(list(mirror.backups.glob(".partial-*.json"))) == 1
        (snapshot,) = os.listdir(mirror.snapshots)
        mirror.config.write_text(config)
        monkeypatch.undo()
        again = mirror.sync()
        assert again.outcome["snapshot"] == snapshot
        assert again.outcome["resumed_from_bytes"] > 0
        mirror.assert_mirrored()
