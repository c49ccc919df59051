"""Arrays and mounts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import command, kernel_log, loop, wait
from harness.filesystem import OPTIONS, Array, mount
from harness.identity import run_prefix

if TYPE_CHECKING:
    from harness.host import Host

pytestmark = pytest.mark.requires("btrfs", "host")
SIZE = 256 << 20
PROFILES = [
    (1, "single", "dup"),
    (1, "single", "single"),
    (2, "raid0", "raid1"),
    (2, "raid1", "raid1"),
    (3, "raid1c3", "raid1c3"),
    (4, "single", "raid1"),
    (4, "raid10", "raid10"),
    (4, "raid1c4", "raid1c4"),
    (5, "raid5", "raid1c3"),
    (6, "raid6", "raid1c4"),
]


@pytest.mark.parametrize(("members", "data", "metadata"), PROFILES)
def test_an_array_of_any_profile_is_mounted_and_gone(
    members: int, data: str, metadata: str, daisy: Host
) -> None:
    with Array(members, SIZE, data=data, metadata=metadata) as array:
        assert len(array.devices) == members
        with mount(array, "/MirrorRoot", host=daisy) as path:
            (path / "file").write_text("words")
            usage = daisy.run(["btrfs", "filesystem", "usage", "/MirrorRoot"], ok=None).stdout
        assert f"Data,{data}".lower() in usage.lower() and f"Metadata,{metadata}".lower() in usage.lower()
        devices = array.devices
        array.check()
    assert not [device for device in devices if run_prefix() in loop.attached().get(device, "")]


def test_the_original_array_has_its_label_options_and_subvolume(daisy: Host, array: Array) -> None:
    with mount(array, "/MirrorRoot", host=daisy):
        line = daisy.run(["grep", " /MirrorRoot ", "/proc/self/mounts"]).stdout
        for word in (*OPTIONS.split(","), "subvol=/mirror"):
            assert word in line
        assert "MirrorBtr" in daisy.run(["btrfs", "filesystem", "show", "/MirrorRoot"]).stdout


def test_an_array_is_mounted_in_its_own_host_only(workstation: Host, daisy: Host, array: Array) -> None:
    with mount(array, "/MirrorRoot", host=daisy) as path:
        (path / "here").write_text("daisy's")
        assert daisy.run(["cat", "/MirrorRoot/here"]).stdout == "daisy's"
        assert "/MirrorRoot" not in workstation.run(["cat", "/proc/self/mounts"]).stdout
        assert "/MirrorRoot" not in Path("/proc/self/mounts").read_text()


def test_only_the_members_are_shown_in_the_host(daisy: Host, array: Array) -> None:
    def nodes() -> str:
        return daisy.run(["find", "/dev", "-type", "b"]).stdout

    with mount(array, "/MirrorRoot", host=daisy):
        assert set(nodes().split()) == {str(device) for device in array.devices}
    assert nodes() == ""


def test_what_was_written_is_there_after_the_next_mount(daisy: Host, array: Array) -> None:
    for turn in range(3):
        with mount(array, "/MirrorRoot", host=daisy) as path:
            assert sorted(entry.name for entry in path.iterdir()) == [str(number) for number in range(turn)]
            (path / str(turn)).write_text("words")


def test_an_array_is_mounted_here_too(array: Array, tmp_path: Path) -> None:
    with mount(array, tmp_path) as path:
        assert path == tmp_path
        (path / "file").write_text("words")
        assert os.statvfs(path).f_bsize == 4096
    assert list(tmp_path.iterdir()) == []


def test_an_array_is_made_while_one_of_the_same_label_is_mounted(array: Array, tmp_path: Path) -> None:
    """mkfs.btrfs takes two loop devices for one, and that for mounted, if their files have one name."""
    with mount(array, tmp_path), Array(label=array.label) as other:
        assert other.devices[0] != array.devices[0]


def test_a_mount_survives_nothing_when_its_host_is_killed(daisy: Host, array: Array) -> None:
    with mount(array, "/MirrorRoot", host=daisy) as path:
        (path / "file").write_text("not synced")
        daisy.kill()
    array.check()


def test_killing_a_host_is_no_power_cut(workstation: Host, daisy: Host, array: Array) -> None:
    with mount(array, "/MirrorRoot", host=daisy) as path:
        (path / "file").write_text("not synced")
        daisy.kill()
    with mount(array, "/MirrorRoot", host=workstation) as path:
        assert (path / "file").read_text() == "not synced"


def test_a_mount_in_use_names_who_uses_it(daisy: Host, array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.filesystem.UMOUNT_S", 0.2)
    manager = mount(array, "/MirrorRoot", host=daisy)
    manager.__enter__()
    with daisy.spawn(["sh", "-c", "cd /MirrorRoot; echo in; exec sleep 3137"]) as process:
        wait.until(lambda: process.stdout == "in\n", timeout_s=5, what="a process in the mount")
        with pytest.raises(AssertionError, match=r"umount /MirrorRoot.*held by \d+ sleep"):
            manager.__exit__(None, None, None)
    daisy.run(["umount", "/MirrorRoot"])


@pytest.mark.kernel_errors_expected
@pytest.mark.requires("kernel_log")
def test_space_cache_of_the_year_2014_is_refused_today(daisy: Host, array: Array) -> None:
    """mkfs makes a free space tree since btrfs-progs 5.15; the option asks to disable it: EINVAL."""
    with kernel_log.Marker() as marker:
        with pytest.raises(command.CommandFailed) as failed:
            with mount(array, "/MirrorRoot", host=daisy, options=f"{OPTIONS},space_cache"):
                pass
        said = marker.lines()
    assert failed.value.completed.returncode == 32
    assert "wrong fs type, bad option, bad superblock" in failed.value.completed.stderr
    ours = [line for line in said if f"(device {array.devices[0].name}" in line]
    assert any("cannot disable free-space-tree" in line for line in ours), said


def test_a_number_of_members_that_the_harness_does_not_make_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 6 members, not 7"):
        Array(7)
