"""Two runs at the same time: the same job is refused, another job waits its turn, a look waits for nobody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import faults, wait
from harness.scenario import Job
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd", "tbf")

MUSIC = Path("/home/foo/music")


@pytest.fixture
def twofold() -> Iterator[TwoHosts]:
    """Two jobs of one client."""
    with mirror.small(jobs=(Job(), Job("music", MUSIC, MUSIC / "snapshots"))) as made:
        yield made


def test_a_second_run_of_a_job_is_told_who_is_at_it_and_changes_nothing(both: TwoHosts) -> None:
    mirror.add_bulk(both)
    with mirror.moving(both) as process:
        snapshots = both.snapshots()
        second = both.sync(ok=(4,))
        (running,) = faults.find(both.workstation, "btrsync sync")
        said = mirror.words(second)
        assert "job share is running already: busy since " in said
        assert f"pid {pid_inside(running.pid)}" in said
        assert both.snapshots() == snapshots
        # Looking is free at any time.
        assert both.sync("--dry-run").outcome()["result"] == "would_send"
        assert "never synced" in both.btrsync("status", ok=(1,)).stdout
        both.link.normal()
        synced = mirror.finished(process)
    mirror.assert_mirrored(both, synced)
    assert both.snapshots() == snapshots


def pid_inside(pid: int) -> int:
    """Return the pid of a process in its own pid namespace. Source: proc(5), NSpid."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("NSpid:")]
    return int(line.split()[-1])


def test_another_job_of_the_client_waits_its_turn_and_is_then_served(twofold: TwoHosts) -> None:
    mirror.add_bulk(twofold)
    with mirror.moving(twofold, "share") as first, twofold.syncing("-v", "music") as second:
        wait.until(lambda: "waiting: busy since" in second.stderr, timeout_s=15, what="the second run waits")
        assert first.poll() is None, "not exercised: the first was done already"
        assert twofold.backups("music") == []
        twofold.link.normal()
        done, waited = mirror.finished(first), mirror.finished(second)
    mirror.assert_mirrored(twofold, done, "share")
    mirror.assert_mirrored(twofold, waited, "music")


def test_a_run_that_gives_up_waiting_says_who_is_at_work(twofold: TwoHosts) -> None:
    mirror.add_bulk(twofold)
    impatient = twofold.write_client_file(Path("/root/impatient.toml"), busy_wait_s=1)
    with mirror.moving(twofold, "share") as first:
        second = twofold.sync("--config", impatient, "music", ok=(4,))
        assert "daisy is busy with another run of this client: busy since " in mirror.words(second)
        assert twofold.snapshots("music") == []
        twofold.link.normal()
        mirror.assert_mirrored(twofold, mirror.finished(first), "share")
    mirror.assert_mirrored(twofold, twofold.sync("music"), "music")
