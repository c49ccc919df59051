"""Lines of mountinfo and what they say."""

from __future__ import annotations

from pathlib import Path

from btrsync.system.mounts import Mount, parse_mountinfo

LINES = rb"""21 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
66 44 0:39 /mirror /mnt/a\040b\011c\012d\134e rw,noatime master:1 propagate_from:2 - btrfs /dev/mapper/m\0401 rw,subvol=/mirror
67 44 0:40 / /ro ro - tmpfs none rw,size=1k
68 44 0:41 / /gone rw - ext4 /dev/sda1 ro,errors=remount-ro
"""


def test_each_line_is_a_mount_with_its_own_options_and_its_filesystems() -> None:
    assert parse_mountinfo(LINES)[0] == Mount(
        id=21,
        mount_point=Path("/sys"),
        root=Path("/"),
        fstype="sysfs",
        source="sysfs",
        options=frozenset({"rw", "nosuid"}),
        super_options=frozenset({"rw"}),
        number="0:20",
    )


def test_names_are_unescaped_and_optional_fields_passed_over() -> None:
    mount = parse_mountinfo(LINES)[1]
    assert mount.mount_point == Path("/mnt/a b\tc\nd\\e")
    assert mount.root == Path("/mirror")
    assert mount.source == "/dev/mapper/m 1"
    assert mount.super_options == {"rw", "subvol=/mirror"}


def test_a_mount_is_readonly_by_itself_or_by_its_filesystem() -> None:
    assert [mount.is_readonly for mount in parse_mountinfo(LINES)] == [False, False, True, True]


def test_a_name_with_a_carriage_return_is_one_line() -> None:
    (mount,) = parse_mountinfo(b"1 2 0:3 / /odd\rname rw - tmpfs none rw\n")
    assert mount.mount_point == Path("/odd\rname")


def test_a_source_may_be_empty() -> None:
    (mount,) = parse_mountinfo(b"1 2 0:3 / /x rw - tmpfs  rw\n")
    assert (mount.source, mount.super_options) == ("", frozenset({"rw"}))
