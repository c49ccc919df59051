"""Several targets, several jobs: one connection for each target, and each failure by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.scenario import Job, Target
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")

USB = Target("usb", path=Path("/mnt/usb/backups"))
SHARE = Path("/home/foo/share")
MUSIC = Path("/home/foo/music")
JOBS = (
    Job("share", SHARE, SHARE / "snapshots", ("daisy", "usb")),
    Job("music", MUSIC, MUSIC / "snapshots", ("daisy", "usb")),
)


@pytest.fixture
def fourfold() -> Iterator[TwoHosts]:
    """Two jobs, and each goes to daisy and to a disk."""
    with mirror.small(jobs=JOBS, targets=(Target(), USB)) as made:
        yield made


def test_two_jobs_go_to_two_targets_over_one_connection_each(fourfold: TwoHosts) -> None:
    first = fourfold.sync()
    assert len(first.outcomes) == 4
    for job in fourfold.jobs:
        names = {mirror.assert_mirrored(fourfold, first, job, target) for target in fourfold.targets}
        # One snapshot for both targets.
        assert fourfold.snapshots(job) == sorted(names)
        assert len(names) == 1
        mirror.change(fourfold, job)
    assert mirror.connections(fourfold) == 1
    assert fourfold.daisy.read_text("/var/log/syslog").count("client workstation connected") == 1
    second = fourfold.sync("-v")
    for job in fourfold.jobs:
        for target in fourfold.targets:
            assert second.outcome(job, target)["kind"] == "incremental"
            mirror.assert_mirrored(fourfold, second, job, target)
    assert mirror.connections(fourfold) == 2


def test_a_target_that_fails_is_named_and_does_not_keep_the_others_from_being_served(
    fourfold: TwoHosts,
) -> None:
    mirror.bind(fourfold, "false")
    synced = fourfold.sync(ok=(1,))
    for job in fourfold.jobs:
        assert synced.outcome(job, "daisy")["result"] == "failed"
        assert "daisy" in synced.outcome(job, "daisy")["error"]["message"]
        mirror.assert_mirrored(fourfold, synced, job, "usb")
        assert fourfold.backups(job, "daisy") == []
    mirror.bind(fourfold, fourfold.forced_command())
    again = fourfold.sync()
    for job in fourfold.jobs:
        # What the disk has, daisy gets too: no new snapshot.
        assert again.outcome(job, "usb")["result"] == "nothing_changed"
        name = mirror.assert_mirrored(fourfold, again, job, "daisy")
        assert fourfold.snapshots(job) == [name]


def test_a_source_that_fails_is_named_and_does_not_keep_the_other_job_from_being_done(
    fourfold: TwoHosts,
) -> None:
    fourfold.workstation.run(["btrfs", "subvolume", "delete", MUSIC])
    synced = fourfold.sync(ok=(1,))
    for target in fourfold.targets:
        assert f"{MUSIC} does not exist" in synced.outcome("music", target)["error"]["message"]
        mirror.assert_mirrored(fourfold, synced, "share", target)


def test_only_the_chosen_job_and_target_are_served(fourfold: TwoHosts) -> None:
    synced = fourfold.sync("music", "--target", "usb")
    assert [(outcome["job"], outcome["target"]) for outcome in synced.outcomes] == [("music", "usb")]
    mirror.assert_mirrored(fourfold, synced, "music", "usb")
    assert mirror.connections(fourfold) == 0
    assert fourfold.snapshots("share") == []


def test_a_disk_is_served_by_the_installed_btrsync_and_not_by_what_lies_in_the_working_directory(
    fourfold: TwoHosts,
) -> None:
    # `python -m` looks there first unless told otherwise, and the directory may be anybody's.
    fourfold.workstation.write_text("/tmp/btrsync/__init__.py", "open('/tmp/was-run', 'w')\n")
    fourfold.workstation.write_text("/tmp/btrsync/__main__.py", "open('/tmp/was-run', 'w')\n")
    command = f"cd /tmp && exec {fourfold.btrsync_path} sync share --target usb"
    run = fourfold.workstation.run(["sh", "-c", command], ok=None)
    assert not fourfold.workstation.path("/tmp/was-run").exists()
    assert run.returncode == 0, run
    assert fourfold.snapshots("share") == fourfold.backups("share", "usb")


def test_a_local_target_whose_disk_is_not_mounted_is_not_made_elsewhere(fourfold: TwoHosts) -> None:
    place = fourfold.workstation.path(USB.path or Path())
    place.rmdir()
    synced = fourfold.sync("--target", "usb", ok=(8,))
    for job in fourfold.jobs:
        assert "is its disk mounted?" in synced.outcome(job, "usb")["error"]["hint"]
    assert not place.exists()
    assert fourfold.snapshots() == []


def test_two_targets_that_reach_one_directory_do_not_take_over_from_each_other() -> None:
    twin = Target("twin", host="twin")
    with mirror.small(jobs=(Job(targets=("daisy", "twin")),), targets=(Target(), twin)) as both:
        config = both.workstation.read_text("/etc/btrsync/btrsync.toml")
        both.workstation.write_text(
            "/etc/btrsync/btrsync.toml", config.replace("port = 22", "port = 22\nbusy_wait_s = 1")
        )
        synced = both.sync(ok=(0, 1))
        mirror.assert_mirrored(both, synced, "share", "daisy")
        assert synced.outcome("share", "twin")["error"]["exit_status"] == 4
